"""Losses and metrics: layers that take (output, targets) or (output, targets, weights) to a scalar.

A weighted one is sum(weights * value) / sum(weights); one without weights is the mean over items.
"""

import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch import shapes
from trax_torch.layers.base import PureLayer


def CategoryAccuracy() -> PureLayer:
    """Returns a layer that gives the share of items whose largest activation is the target's.

    Its inputs are activations (..., categories) and integer targets (...). Ties go to the lower
    category.

    Source: Trax `layers/metrics.py::CategoryAccuracy`.
    """
    return PureLayer(_category_accuracy, n_in=2, name="CategoryAccuracy")


def WeightedCategoryAccuracy() -> PureLayer:
    """Returns a layer like `CategoryAccuracy`, with weights as third input.

    The weights have the targets' shape or broadcast to it.
    """
    return PureLayer(_category_accuracy, n_in=3, name="WeightedCategoryAccuracy")


def CategoryCrossEntropy(label_smoothing: float | None = None) -> PureLayer:
    """Returns a layer that gives the mean cross-entropy of targets under a softmax, in nats.

    Its inputs are activations (..., categories), before the softmax, and integer targets (...).

    Args:
      label_smoothing: the share of probability that is spread evenly over all categories, in
        [0, 1].

    Raises:
      ValueError: if `label_smoothing` is out of range.

    Source: Trax `layers/metrics.py::CategoryCrossEntropy`.
    """
    _check_smoothing(label_smoothing)
    f = functools.partial(_category_cross_entropy, label_smoothing=label_smoothing, cutoff=0.0)
    return PureLayer(f, n_in=2, name="CategoryCrossEntropy")


def WeightedCategoryCrossEntropy(
    label_smoothing: float | None = None, cutoff: float = 0.0
) -> PureLayer:
    """Returns a layer like `CategoryCrossEntropy`, with weights as third input.

    Args:
      label_smoothing: the share of probability that is spread evenly over all categories.
      cutoff: an item's cross-entropy counts from here on, in nats: max(value, cutoff) - cutoff.

    The weights have the targets' shape or broadcast to it.

    Source: Trax `layers/metrics.py::WeightedCategoryCrossEntropy`.
    """
    _check_smoothing(label_smoothing)
    f = functools.partial(_category_cross_entropy, label_smoothing=label_smoothing, cutoff=cutoff)
    return PureLayer(f, n_in=3, name="WeightedCategoryCrossEntropy")


def L2Loss() -> PureLayer:
    """Returns a layer that gives the weighted mean of squared differences.

    Its inputs are output, targets and weights, all of one shape: sum(w (y - t)^2) / sum(w).

    Source: Trax `layers/metrics.py::L2Loss`.
    """
    return PureLayer(_l2, n_in=3, name="L2Loss")


def _mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The mean over items, or sum(w * value) / sum(w)."""
    if weights is None:
        return values.float().mean()
    return (values * weights).sum() / weights.sum()


def _category_accuracy(xs: Any) -> torch.Tensor:
    output, targets, *weights = xs
    predictions = output.argmax(dim=-1)
    shapes.assert_same_shape(predictions, targets)
    return _mean((predictions == targets).float(), *(weights or [None]))


def _category_cross_entropy(xs: Any, label_smoothing: float | None, cutoff: float) -> torch.Tensor:
    output, targets, *weights = xs
    _check_targets(output, targets)
    output = output if output.dtype == torch.float64 else output.float()
    values = F.cross_entropy(
        output.flatten(0, -2),
        targets.flatten().long(),
        reduction="none",
        label_smoothing=label_smoothing or 0.0,
    ).view(targets.shape)
    if cutoff > 0:
        values = values.clamp(min=cutoff) - cutoff
    return _mean(values, *(weights or [None]))


def _l2(xs: Any) -> torch.Tensor:
    output, targets, weights = xs
    shapes.assert_same_shape(output, targets)
    shapes.assert_same_shape(output, weights)
    return _mean((output - targets) ** 2, weights)


def _check_targets(output: torch.Tensor, targets: torch.Tensor) -> None:
    if targets.is_floating_point():
        raise TypeError(
            f"Targets are category numbers, so integers; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}. A batch is (inputs, targets, weights), in this order."
        )
    if output.shape[:-1] != targets.shape:
        raise ValueError(
            f"Activations (..., categories) and targets (...) must agree; got shapes "
            f"{tuple(output.shape)} and {tuple(targets.shape)}."
        )


def _check_smoothing(label_smoothing: float | None) -> None:
    if label_smoothing is not None and not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is a share, from 0 to 1; got {label_smoothing}.")
