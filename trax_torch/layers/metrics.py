"""Losses and metrics: layers that take (output, targets) or (output, targets, weights) to a scalar.

A weighted one is sum(weights * value) / sum(weights); one without weights is the mean over items.
Weights broadcast to the values; weights that sum to 0 give NaN. All sums are taken in float32 or
better, whatever type the model computes in.
"""

import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch import _nest, shapes
from trax_torch.layers._ids import can_look, check_targets
from trax_torch.layers.activation_fns import cut_off
from trax_torch.layers.base import Layer, PureLayer
from trax_torch.layers.combinators import Serial
from trax_torch.layers.core import ArgMax, LogSoftmax


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


def MaskedSequenceAccuracy() -> PureLayer:
    """Returns a layer that gives the share of sequences that are right from end to end.

    Its inputs are activations (..., length, categories), integer targets (..., length), and weights
    that broadcast to the targets: where they are 0, any category is right. What else they are does
    not matter.

    Source: Trax `layers/metrics.py::MaskedSequenceAccuracy`.
    """
    return PureLayer(_masked_sequence_accuracy, n_in=3, name="MaskedSequenceAccuracy")


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


def BinaryCrossEntropy() -> PureLayer:
    """Returns a layer that gives the mean cross-entropy of yes-or-no targets, in nats.

    Its inputs are activations, before the sigmoid, and targets in {0, 1} of the same shape. It is
    finite for every finite activation, where Trax's takes the logarithm of a rounded 0.

    Example:
      >>> BinaryCrossEntropy()((torch.tensor([200.]), torch.tensor([0])))
      tensor(200.)

    Source: Trax `layers/metrics.py::BinaryCrossEntropy`.
    """
    return PureLayer(_binary_cross_entropy, n_in=2, name="BinaryCrossEntropy")


def L2Loss() -> PureLayer:
    """Returns a layer that gives the weighted mean of squared differences.

    Its inputs are output, targets and weights, all of one shape: sum(w (y - t)^2) / sum(w).

    Source: Trax `layers/metrics.py::L2Loss`.
    """
    return PureLayer(functools.partial(_regression, loss=F.mse_loss), n_in=3, name="L2Loss")


def SmoothL1Loss() -> PureLayer:
    """Returns a layer that gives the weighted mean of Huber losses.

    Its inputs are output, targets and weights, all of one shape. A difference d costs d^2 / 2 below
    1 and |d| - 1/2 from there on.

    Source: Trax `layers/metrics.py::SmoothL1Loss`.
    """
    f = functools.partial(_regression, loss=F.smooth_l1_loss)
    return PureLayer(f, n_in=3, name="SmoothL1Loss")


def MacroAveragedFScore(beta: float = 1.0, initial_category_index: int = 0) -> PureLayer:
    """Returns a layer that gives the mean F-score over categories, each counting alike.

    Its inputs are activations (..., categories) and integer targets (...). Where precision, recall
    or their F-score is 0 / 0, it counts as 0.

    Args:
      beta: recall weighs `beta` times as much as precision.
      initial_category_index: the first category that counts; 1 leaves out padding.

    Source: Trax `layers/metrics.py::MacroAveragedFScore`.
    """
    f = functools.partial(_f_score, beta=beta, first=initial_category_index, weighted=False)
    return PureLayer(f, n_in=2, name="MacroAveragedFScore")


def WeightedFScore(beta: float = 1.0, initial_category_index: int = 0) -> PureLayer:
    """Returns a layer like `MacroAveragedFScore`, each category counting by its targets' number.

    Source: Trax `layers/metrics.py::WeightedFScore`.
    """
    f = functools.partial(_f_score, beta=beta, first=initial_category_index, weighted=True)
    return PureLayer(f, n_in=2, name="WeightedFScore")


def WeightedSum() -> PureLayer:
    """Returns a layer that gives sum(values * weights)."""
    return PureLayer(_weighted_sum, n_in=2, name="WeightedSum")


# Older names, which Trax keeps, and whose parts it puts in series.


def Accuracy(classifier: Layer | None = None) -> Layer:
    """Returns a layer that gives the weighted share of right predictions.

    Args:
      classifier: maps activations to predictions of the targets' shape; `ArgMax()` by default.

    Its inputs are activations, targets and weights. `WeightedCategoryAccuracy` is its newer name.

    Example:
      >>> Accuracy()
      Accuracy_in3

    Source: Trax `layers/metrics.py::Accuracy`.
    """
    return _series("Accuracy", classifier or ArgMax(), _Accuracy(), _WeightedMean())


def SequenceAccuracy(classifier: Layer | None = None) -> Layer:
    """Returns a layer that gives the share of sequences that are right wherever weights are not 0.

    Args:
      classifier: maps activations to predictions of the targets' shape; `ArgMax()` by default.

    Its inputs are activations, targets and weights, the batch first. `MaskedSequenceAccuracy` is
    its newer name.

    Source: Trax `layers/metrics.py::SequenceAccuracy`.
    """
    return _series("SequenceAccuracy", classifier or ArgMax(), _Accuracy(), _WeightedSequenceMean())


def CrossEntropyLoss() -> Layer:
    """Returns a layer that gives the weighted mean of -log p of the targets, in nats.

    Its inputs are log-probabilities (..., categories), such as `LogSoftmax` gives, category numbers
    (...), and weights. `WeightedCategoryCrossEntropy` takes activations instead.

    Source: Trax `layers/metrics.py::CrossEntropyLoss`.
    """
    return _series("CrossEntropyLoss", _CrossEntropy(), _WeightedMean())


def CrossEntropyLossWithLogSoftmax() -> Layer:
    """Returns a layer like `CrossEntropyLoss` that takes activations before the softmax."""
    name = "CrossEntropyLossWithLogSoftmax"
    return _series(name, LogSoftmax(), _CrossEntropy(), _WeightedMean())


def CrossEntropySum() -> Layer:
    """Returns a layer like `CrossEntropyLoss` that gives sum(weights * value)."""
    return _series("CrossEntropySum", _CrossEntropy(), WeightedSum())


def BinaryCrossEntropyLoss() -> Layer:
    """Returns a layer that gives the weighted mean cross-entropy of yes-or-no targets, in nats.

    Its inputs are probabilities, after the sigmoid, targets in {0, 1} and weights, all of one
    shape. A probability of 0 for what came true costs 100 nats, not infinitely many.

    Source: Trax `layers/metrics.py::BinaryCrossEntropyLoss`, where the items are averaged first and
      the weights have no say; equal weights give its numbers.
    """
    return _series("BinaryCrossEntropyLoss", _BinaryCrossEntropy(), _WeightedMean())


def BinaryCrossEntropySum() -> Layer:
    """Returns a layer like `BinaryCrossEntropyLoss` that gives sum(weights * value)."""
    return _series("BinaryCrossEntropySum", _BinaryCrossEntropy(), WeightedSum())


def _series(name: str, *layers: Layer) -> Layer:
    return Serial(*layers, name=name, sublayers_to_print=[])


def _Accuracy() -> PureLayer:
    return PureLayer(_is_right, n_in=2, name="_Accuracy")


def _CrossEntropy() -> PureLayer:
    return PureLayer(_surprise, n_in=2, name="_CrossEntropy")


def _BinaryCrossEntropy() -> PureLayer:
    return PureLayer(_binary_surprise, n_in=2, name="_BinaryCrossEntropy")


def _WeightedMean() -> PureLayer:
    return PureLayer(_weighted_mean, n_in=2, name="_WeightedMean")


def _WeightedSequenceMean() -> PureLayer:
    return PureLayer(_weighted_sequence_mean, n_in=2, name="_WeightedSequenceMean")


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _fit(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns the weights in the values' shape, so that their sum counts every item."""
    try:
        return weights.expand(values.shape)
    except RuntimeError as error:
        raise ValueError(
            f"Weights have the items' shape, {tuple(values.shape)}, or broadcast to it; got "
            f"{tuple(weights.shape)}. A batch is (inputs, targets, weights), one weight a target."
        ) from error


def _mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The mean over items, or sum(w * value) / sum(w)."""
    values = _precise(values)
    if weights is None:
        return values.mean()
    weights = _precise(_fit(weights, values))
    return (values * weights).sum() / weights.sum()


def _weighted_mean(xs: Any) -> torch.Tensor:
    return _mean(*xs)


def _weighted_sum(xs: Any) -> torch.Tensor:
    values, weights = xs
    return (_precise(values) * _precise(_fit(weights, values))).sum()


def _category_accuracy(xs: Any) -> torch.Tensor:
    output, targets, *weights = xs
    return _mean(_is_right((output.argmax(dim=-1), targets)), *(weights or [None]))


def _is_right(xs: Any) -> torch.Tensor:
    predictions, targets = xs
    shapes.assert_same_shape(predictions, targets)
    result: torch.Tensor = (predictions == targets).float()
    return result


def _masked_sequence_accuracy(xs: Any) -> torch.Tensor:
    output, targets, weights = xs
    right = _is_right((output.argmax(dim=-1), targets)).bool()
    return (right | (_fit(weights, targets) == 0)).all(dim=-1).float().mean()


def _weighted_sequence_mean(xs: Any) -> torch.Tensor:
    right, weights = xs
    passes = right.bool() | (_fit(weights, right) == 0)
    result: torch.Tensor = passes.flatten(1).all(dim=1).float().mean()
    return result


def _category_cross_entropy(xs: Any, label_smoothing: float | None, cutoff: float) -> torch.Tensor:
    output, targets, *weights = xs
    if targets.is_floating_point():
        raise TypeError(
            f"Targets are category numbers, so integers; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}. A batch is (inputs, targets, weights), in this order."
        )
    _check_targets(output, targets)
    known, targets = _known(targets.long(), output.shape[-1], *weights)
    values = F.cross_entropy(
        _precise(output).flatten(0, -2),
        targets.flatten(),
        reduction="none",
        label_smoothing=label_smoothing or 0.0,
    ).view(targets.shape)
    values = values.where(known, 0.0)
    if cutoff > 0:
        values = cut_off(values, cutoff) - cutoff
    return _mean(values, *(weights or [None]))


def _surprise(xs: Any) -> torch.Tensor:
    log_probs, targets = xs
    _check_targets(log_probs, targets)
    # Trax takes category numbers of any type here, and old programs pass them as floats.
    known, targets = _known(targets.long(), log_probs.shape[-1])
    return -_precise(log_probs).gather(-1, targets.unsqueeze(-1)).squeeze(-1).where(known, 0.0)


def _binary_cross_entropy(xs: Any) -> torch.Tensor:
    output, targets = xs
    shapes.assert_same_shape(output, targets)
    output = _precise(output)
    return F.binary_cross_entropy_with_logits(output, targets.to(output.dtype))


def _binary_surprise(xs: Any) -> torch.Tensor:
    probabilities, targets = xs
    shapes.assert_same_shape(probabilities, targets)
    probabilities = _precise(probabilities)
    return F.binary_cross_entropy(probabilities, targets.to(probabilities.dtype), reduction="none")


def _regression(xs: Any, loss: Any) -> torch.Tensor:
    output, targets, weights = xs
    shapes.assert_same_shape(output, targets)
    shapes.assert_same_shape(output, weights)
    return _mean(loss(_precise(output), _precise(targets), reduction="none"), weights)


def _f_score(xs: Any, beta: float, first: int, weighted: bool) -> torch.Tensor:
    output, targets = xs
    _check_targets(output, targets)
    categories = torch.arange(first, output.shape[-1], device=output.device)
    predicted = output.argmax(dim=-1).flatten()[:, None] == categories
    wanted = targets.flatten()[:, None] == categories
    n_right, n_predicted, n_wanted = (
        x.sum(dim=0).float() for x in (predicted & wanted, predicted, wanted)
    )
    precision, recall = _or_zero(n_right, n_predicted), _or_zero(n_right, n_wanted)
    scores = _or_zero((beta**2 + 1) * precision * recall, beta**2 * precision + recall)
    return _mean(scores, n_wanted if weighted else None)


def _or_zero(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def _known(
    targets: torch.Tensor, n: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which targets are categories, and the targets with 0 in the place of others.

    What is no category costs nothing, as in Trax: -1 is a common padding. One that is too large,
    and counts, is an error within `torch.autograd.detect_anomaly()`.
    """
    if not torch.compiler.is_compiling() and torch.is_anomaly_enabled() and can_look(targets):
        check_targets(targets, n, weights)
    known = (targets >= 0) & (targets < n)
    return known, targets.where(known, 0)


def look_at_targets(loss: Layer, n_categories: int, targets: Any, weights: Any = None) -> None:
    """Warns if category numbers that count are too large for a loss of theirs; see `_known`.

    Args:
      loss: one whose targets are no category numbers is not looked at.
      n_categories: how many the model tells apart.
      targets, weights: of a batch.
    """
    functions = [getattr(m, "_forward_fn", None) for m in loss.modules()]
    functions = [f.func if isinstance(f, functools.partial) else f for f in functions]
    targets = _nest.to_tensor(targets)
    if any(f in (_category_cross_entropy, _surprise) for f in functions) and can_look(targets):
        check_targets(targets, n_categories, _nest.to_tensor(weights))


def _check_targets(output: torch.Tensor, targets: torch.Tensor) -> None:
    if output.shape[:-1] != targets.shape:
        raise ValueError(
            f"Activations (..., categories) and targets (...) must agree; got shapes "
            f"{tuple(output.shape)} and {tuple(targets.shape)}."
        )


def _check_smoothing(label_smoothing: float | None) -> None:
    if label_smoothing is not None and not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is a share, from 0 to 1; got {label_smoothing}.")
