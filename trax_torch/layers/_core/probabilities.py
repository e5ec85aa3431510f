"""Functions of probabilities, of tensors or arrays: one-hot, Gaussians, and a draw of a category.

Trax keeps them in `layers/core.py`, and so they are shown there.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from trax_torch import _nest, shapes
from trax_torch.layers._promotion import as_float


def _for_arrays_too(f: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Lets a function of tensors take arrays as well, and answer arrays then."""

    @functools.wraps(f)
    def either(*args: Any, **kwargs: Any) -> Any:
        if not any(map(_is_array, (*args, *kwargs.values()))):
            return f(*args, **kwargs)

        def convert(x: Any) -> Any:
            return _nest.to_tensor(x) if _is_array(x) else x

        return _nest.to_arrays(f(*map(convert, args), **{k: convert(x) for k, x in kwargs.items()}))

    return either


def _is_array(x: Any) -> bool:
    # numpy's types and its numbers, such as a temperature, have the attribute as well.
    return hasattr(x, "__array__") and not isinstance(x, (torch.Tensor, np.generic, type))


@_for_arrays_too
def log_softmax(x: Any, axis: int = -1) -> Any:
    """Returns the logarithm of the softmax of a tensor or array along an axis, in nats."""
    return F.log_softmax(as_float(x), dim=axis)


@_for_arrays_too
def one_hot(x: Any, n_categories: int, dtype: Any = torch.float32) -> Any:
    """Returns a new last axis that holds 1 at the place each item of `x` names, and 0 elsewhere.

    Args:
      x: tensor or array (...); an item outside [0, n_categories) names no place.
      n_categories: size of the new axis.
      dtype: type of the result.

    Example:
      >>> one_hot(np.array([2, 0, 3]), 3)
      array([[0., 0., 1.],
             [1., 0., 0.],
             [0., 0., 0.]], dtype=float32)

    Source: Trax `layers/core.py::one_hot`.
    """
    places = torch.arange(n_categories, device=x.device)
    return (x.unsqueeze(-1) == places).to(shapes.ShapeDtype((), dtype).dtype)


@_for_arrays_too
def log_gaussian_pdf(x: Any, mu: Any, sigma: Any) -> Any:
    """Returns the logarithm of the normal density N(x | mu, sigma), in nats.

    Args:
      x: where; (..., d).
      mu: the mean; (..., d).
      sigma: the covariance; (..., d, d).

    Returns:
      A tensor (...).

    Source: Trax `layers/core.py::log_gaussian_pdf`.
    """
    difference = as_float(x - mu, sigma.dtype).unsqueeze(-1)
    distance = (difference * torch.linalg.solve(sigma, difference)).sum(dim=(-2, -1))
    log_volume = torch.linalg.slogdet(sigma).logabsdet
    return -0.5 * (mu.shape[-1] * math.log(2 * math.pi) + log_volume + distance)


@_for_arrays_too
def log_gaussian_diag_pdf(x: Any, mu: Any, diag_sigma: Any) -> Any:
    """Returns the logarithm of the normal density with independent components, in nats.

    Args:
      x: where; (..., d).
      mu: the mean; (..., d).
      diag_sigma: the variances; (..., d).

    Returns:
      A tensor (...).

    Source: Trax `layers/core.py::log_gaussian_diag_pdf`, which divides mu alone by the variances;
      it is right for a mean of 0 and unit variances. Here it is the density.
    """
    distance = ((x - mu) ** 2 / diag_sigma).sum(dim=-1)
    log_volume = diag_sigma.log().sum(dim=-1)
    return -0.5 * (mu.shape[-1] * math.log(2 * math.pi) + log_volume + distance)


@_for_arrays_too
def multigaussian_loss(preds: Any, targets: Any, ngauss: int = 1) -> Any:
    """Returns the log-density of targets under mixtures of Gaussians, in nats.

    It grows as the fit gets better, as in Trax: a loss to minimize is its negative.

    Args:
      preds: (batch, ngauss * (1 + 2 d)): first the mixture's logits, then the means, then the
        square roots of the variances, to which 1e-6 is added.
      targets: (batch, d).
      ngauss: number of Gaussians in a mixture.

    Returns:
      A tensor (batch,).

    Raises:
      ValueError: if `preds` does not have ngauss * (1 + 2 d) columns.

    Source: Trax `layers/core.py::multigaussian_loss`, which fails with a TypeError (a product sign
      is missing).
    """
    d = targets.shape[-1]
    wanted = ngauss * (1 + 2 * d)
    if preds.shape[-1] != wanted:
        raise ValueError(
            f"A mixture of {ngauss} Gaussians over {d} components takes {wanted} numbers: a logit, "
            f"{d} means and {d} deviations each; got {preds.shape[-1]}. Let the last Dense layer "
            f"have {wanted} units."
        )
    logits, means, deviations = as_float(preds).split([ngauss, ngauss * d, ngauss * d], dim=-1)
    means = means.unflatten(-1, (ngauss, d))
    variances = deviations.unflatten(-1, (ngauss, d)) ** 2 + 1e-6
    each = log_gaussian_diag_pdf(targets.unsqueeze(-2), means, variances)
    return torch.logsumexp(F.log_softmax(logits, dim=-1) + each, dim=-1)


@_for_arrays_too
def logsoftmax_sample(
    log_probs: Any, temperature: float = 1.0, *, generator: torch.Generator | None = None
) -> Any:
    """Returns categories drawn with the given log-probabilities.

    A draw is the argmax of log_probs + temperature * g with Gumbel noise g in float32. Temperature
    0 is the exact argmax and draws nothing; ties go to the lower category. A category of
    log-probability -inf is never drawn while another is finite.

    Args:
      log_probs: tensor or array (..., categories), nats; any constant may be added to it.
      temperature: 1 follows the probabilities, less sharpens them, more flattens them.
      generator: what to draw from, on the device of `log_probs`; torch's default if None.

    Returns:
      Integers (...).

    Raises:
      ValueError: if `temperature` is negative or NaN.

    Source: Trax `layers/core.py::logsoftmax_sample`, which draws from numpy.
    """
    if not temperature >= 0:
        raise ValueError(
            f"A temperature is at least 0 (0: the most probable category, 1: as the probabilities "
            f"say); got {temperature}."
        )
    if temperature == 0:
        return log_probs.argmax(dim=-1)
    waits = torch.empty(log_probs.shape, dtype=torch.float32, device=log_probs.device)
    waits.exponential_(generator=generator)
    # A wait of exactly 0 would make the noise infinite, and inf - inf of a masked category NaN.
    noise = -waits.clamp_min_(torch.finfo(torch.float32).tiny).log()
    return (log_probs + temperature * noise).argmax(dim=-1)
