"""First values of weights: functions `(shape, rng) -> tensor`, drawn in float32 on the CPU.

`rng` is a generator, or a seed: a whole number, or a key of several, as Trax's programs have it.
On the CPU, so that one seed gives the same weights whatever the device they move to.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from trax_torch._seeds import as_generator

Initializer = Callable[..., torch.Tensor]
Rng: TypeAlias = Any  # a generator; or a whole number, or a key of several

FanMode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["normal", "uniform", "truncated_normal"]

# The deviation of a standard normal distribution cut off at -2 and 2.
_TRUNCATED_STDDEV = 0.87962566103423978


def RandomNormalInitializer(stddev: float = 1e-2) -> Initializer:
    """Returns an initializer that draws from a normal distribution of mean 0."""
    return _Normal(stddev)


def RandomUniformInitializer(lim: float = 1.0) -> Initializer:
    """Returns an initializer that draws uniformly from [-lim, lim)."""
    return _Uniform(lim)


def ScaledInitializer(
    out_dim: int, in_dim: int, scale: float, mode: FanMode, distribution: Distribution
) -> Initializer:
    """Returns an initializer whose variance is `scale` over a number of units.

    Args:
      out_dim: axis of the shape that counts outputs.
      in_dim: axis of the shape that counts inputs. The other axes, a kernel's window, multiply
        both, except for those that a call names in `nonreceptive_dims`. A vector's length counts
        as both.
      scale: the variance before the division; above 0.
      mode: divide by `'fan_in'`, `'fan_out'` or their mean, `'fan_avg'`.
      distribution: `'normal'`, `'uniform'`, or `'truncated_normal'`, which draws again what is
        beyond two deviations and is scaled to the same variance.

    Raises:
      ValueError: if `scale`, `mode` or `distribution` is none of these.

    Source: Trax `layers/initializers.py::ScaledInitializer`, which leaves a kernel's window out;
      Glorot and Bengio 2010 count it.
    """
    if scale <= 0:
        raise ValueError(f"scale is a variance, so above 0; got {scale}.")
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"mode is 'fan_in', 'fan_out' or 'fan_avg'; got {mode!r}.")
    if distribution not in ("normal", "uniform", "truncated_normal"):
        raise ValueError(
            f"distribution is 'normal', 'uniform' or 'truncated_normal'; got {distribution!r}."
        )
    return _Scaled(out_dim, in_dim, scale, mode, distribution)


def GlorotNormalInitializer(out_dim: int = -1, in_dim: int = -2, scale: float = 1.0) -> Initializer:
    """Returns Glorot and Bengio's normal initializer: variance 2 scale / (fan_in + fan_out)."""
    return ScaledInitializer(out_dim, in_dim, scale, "fan_avg", "normal")


def GlorotUniformInitializer(
    out_dim: int = -1, in_dim: int = -2, scale: float = 1.0
) -> Initializer:
    """Returns Glorot and Bengio's uniform initializer: limit sqrt(6 scale / (fan_in + fan_out))."""
    return ScaledInitializer(out_dim, in_dim, scale, "fan_avg", "uniform")


def LeCunNormalInitializer(out_dim: int = -1, in_dim: int = -2, scale: float = 1.0) -> Initializer:
    """Returns LeCun's normal initializer: variance scale / fan_in."""
    return ScaledInitializer(out_dim, in_dim, scale, "fan_in", "normal")


def LeCunUniformInitializer(out_dim: int = -1, in_dim: int = -2, scale: float = 1.0) -> Initializer:
    """Returns LeCun's uniform initializer: variance scale / fan_in."""
    return ScaledInitializer(out_dim, in_dim, scale, "fan_in", "uniform")


def KaimingNormalInitializer(
    out_dim: int = -1, in_dim: int = -2, param: float = 0.0
) -> Initializer:
    """Returns He's normal initializer: variance 2 / (fan_in sqrt(1 + param^2)).

    `param` is a leaky ReLU's slope below 0. Trax has the root; the paper (He et al. 2015) has not.
    """
    return ScaledInitializer(out_dim, in_dim, 2 / math.sqrt(1 + param**2), "fan_in", "normal")


def KaimingUniformInitializer(
    out_dim: int = -1, in_dim: int = -2, param: float = 0.0
) -> Initializer:
    """Returns He's uniform initializer, of the same variance as `KaimingNormalInitializer`."""
    return ScaledInitializer(out_dim, in_dim, 2 / math.sqrt(1 + param**2), "fan_in", "uniform")


def OrthogonalInitializer(stddev: float = 1.0) -> Initializer:
    """Returns an initializer of orthogonal matrices times `stddev`.

    All axes but the last are taken as rows; rows or columns, whichever are fewer, are orthonormal.

    Source: Trax `layers/initializers.py::OrthogonalInitializer`; Saxe et al. 2013, arXiv:1312.6120.
    """
    return _Orthogonal(stddev)


def InitializerFromFile(path: str) -> Initializer:
    """Returns an initializer that reads a numpy file; nothing in the file is run.

    Args:
      path: of a `.npy` file that holds one array. It is read when weights are made.

    The initializer raises FileNotFoundError if there is no such file, and ValueError if the array
    has another shape than the weights, or is none of numbers.
    """
    return _FromFile(path)


def AtariConvInit(
    kernel_shape: Sequence[int], rng: Rng, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Returns values for a convolution's kernel, uniform with limit 1 / sqrt(inputs of a unit).

    It is an initializer itself.

    Args:
      kernel_shape: (height, width, inputs, outputs).
      rng: what to draw from.
      dtype: the type of the result.

    Raises:
      ValueError: if the shape does not have four axes.
    """
    if len(kernel_shape) != 4:
        raise ValueError(
            f"AtariConvInit needs a kernel (height, width, inputs, outputs); got a shape "
            f"{tuple(kernel_shape)}."
        )
    return _Uniform(1 / math.sqrt(math.prod(kernel_shape[:3])))(kernel_shape, rng).to(dtype)


class _Normal:
    def __init__(self, stddev: float):
        self.stddev = stddev

    def __call__(
        self,
        shape: Sequence[int],
        rng: Rng,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=as_generator(rng), device="cpu") * self.stddev


class _Uniform:
    def __init__(self, lim: float):
        self.lim = lim

    def __call__(
        self,
        shape: Sequence[int],
        rng: Rng,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        return (
            torch.rand(tuple(shape), generator=as_generator(rng), device="cpu") * 2 - 1
        ) * self.lim


class _Scaled:
    def __init__(
        self, out_dim: int, in_dim: int, scale: float, mode: FanMode, distribution: Distribution
    ):
        self.out_dim, self.in_dim = out_dim, in_dim
        self.scale, self.mode, self.distribution = scale, mode, distribution

    def __call__(
        self,
        shape: Sequence[int],
        rng: Rng,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        shape = tuple(shape)
        fan_in, fan_out = self._fans(shape, nonreceptive_dims)
        units = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        stddev = math.sqrt(self.scale / max(units[self.mode], 1))
        if self.distribution == "normal":
            return torch.randn(shape, generator=as_generator(rng), device="cpu") * stddev
        if self.distribution == "truncated_normal":
            draws = torch.nn.init.trunc_normal_(
                torch.empty(shape, device="cpu"), a=-2, b=2, generator=as_generator(rng)
            )
            return draws * (stddev / _TRUNCATED_STDDEV)
        return (torch.rand(shape, generator=as_generator(rng), device="cpu") * 2 - 1) * (
            math.sqrt(3) * stddev
        )

    def _fans(
        self, shape: tuple[int, ...], nonreceptive_dims: Sequence[int] | None
    ) -> tuple[int, int]:
        if len(shape) < 2:
            return math.prod(shape), math.prod(shape)
        aside = {axis % len(shape) for axis in nonreceptive_dims or ()}
        ends = {self.in_dim % len(shape), self.out_dim % len(shape)}
        window = math.prod(n for axis, n in enumerate(shape) if axis not in aside | ends)
        return shape[self.in_dim] * window, shape[self.out_dim] * window


class _Orthogonal:
    def __init__(self, stddev: float):
        self.stddev = stddev

    def __call__(self, shape: Sequence[int], rng: Rng) -> torch.Tensor:
        shape = tuple(shape)
        n_rows, n_columns = math.prod(shape[:-1]), math.prod(shape[-1:])
        tall = torch.randn(
            max(n_rows, n_columns),
            min(n_rows, n_columns),
            generator=as_generator(rng),
            device="cpu",
        )
        q, r = torch.linalg.qr(tall)
        q = q * r.diagonal().sign()  # else the signs of r's diagonal are not spread evenly
        result: torch.Tensor = (q.t() if n_rows < n_columns else q).reshape(shape) * self.stddev
        return result


class _FromFile:
    def __init__(self, path: str):
        self.path = path

    def __call__(self, shape: Sequence[int], rng: Rng) -> torch.Tensor:
        array = np.load(self.path, allow_pickle=False)
        if not isinstance(array, np.ndarray) or tuple(array.shape) != tuple(shape):
            came = getattr(array, "shape", "several arrays")
            raise ValueError(
                f"Weights of shape {tuple(shape)} are needed, but {self.path} holds {came}. Give a "
                f".npy file of one array of that shape."
            )
        return torch.from_numpy(array.astype(np.float32))
