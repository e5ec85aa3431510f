"""Gradient accumulation: a batch in microbatches, and how much of its loss each one stands for.

The loss of a batch is sum(w * loss) / sum(w), so a microbatch stands for its share of the weights,
not for one part of so many. The mean over microbatches, which many loops take, is another number as
soon as weights are uneven. Ranks of data parallelism share a loss in the same way.
"""

import inspect
from typing import Any

import torch
from torch import nn

from trax_torch import _nest
from trax_torch import layers as tl

# Losses of PyTorch that weigh their items themselves, by their targets.
WEIGHING = (nn.CrossEntropyLoss, nn.NLLLoss)


class Shares:
    """Cuts batches of a model and its loss into microbatches along the first axis.

    What a loss weighs its items by is found once: by the third of its inputs, where that comes from
    the batch and, in a module of PyTorch or a `tl.Fn`, is called weights or mask; by the targets
    that are not ignored in `nn.CrossEntropyLoss` and `nn.NLLLoss`; else every row counts alike. A
    loss with `reduction='sum'`, or that ends in Trax's WeightedSum, is the sum of its parts.

    Args:
      model: takes the first items of a batch.
      loss: takes the model's outputs and the items that follow.
    """

    def __init__(self, model: tl.Layer, loss: tl.Layer):
        n_own = max(0, loss.n_in - model.n_out)  # items of the batch that the loss takes itself
        self._last = model.n_in + n_own - 1
        module = loss.module if isinstance(loss, tl.Wrapped) else None
        self._module = module
        self._is_sum = getattr(module, "reduction", None) == "sum" or _is_sum(loss)
        self._by_weights = n_own > 0 and loss.n_in == 3 and _takes_weights(loss)
        self._by_targets = n_own > 0 and weighs_by_targets(loss)

    @property
    def counts_rows(self) -> bool:
        """Whether every row counts alike, for want of anything else that is known."""
        return not (self._is_sum or self._by_weights or self._by_targets)

    def n_rows(self, batch: tuple[Any, ...]) -> int:
        """Returns how many rows a batch has."""
        return _n_rows(batch)

    def weight_of(self, batch: tuple[Any, ...]) -> float:
        """Returns what a batch counts for: the sum of its weights, or how many rows it has."""
        if self._by_weights or self._by_targets:
            return float(self._weight_of(batch))
        return float(_n_rows(batch))

    def cut(
        self, batch: tuple[Any, ...], n_parts: int, total: float | None = None, size: int = 1
    ) -> list[tuple[tuple[Any, ...], Any]]:
        """Returns `(part, share)` pairs; the shares add up to 1, or are all 1 for a sum.

        A part whose weights are all 0 has the share 0 and other weights, or other targets: nothing
        of it counts, and its loss is not 0 / 0.

        Args:
          batch: a tuple of tensors (or nests of them), which agree on their first axis if there
            are several parts.
          n_parts: how many parts; at most as many as there are rows.
          total: what the batches of all ranks together count for; None stands for this one alone.
          size: how many ranks there are, over which gradients are not added up but averaged: all
            shares are so many times larger.

        Raises:
          ValueError: if the items do not agree on their first axis.
        """
        parts = _rows_of(batch, n_parts) if n_parts > 1 else [batch]
        if self._is_sum:
            return [(part, float(size)) for part in parts]
        if self.counts_rows:
            weights: list[Any] = [float(_n_rows(part)) for part in parts]
            whole: Any = sum(weights) if total is None else total
            return [(p, size * w / whole) for p, w in zip(parts, weights, strict=True)]
        weights = [self._weight_of(part) for part in parts]
        whole = torch.stack(weights).sum() if total is None else total
        return [
            (self._made_finite(p, w), size * w / whole) for p, w in zip(parts, weights, strict=True)
        ]

    def _weight_of(self, part: tuple[Any, ...]) -> torch.Tensor:
        """Returns the sum of weights in a part; in float64 where anything in the part is."""
        item = part[self._last]
        is_double = any(
            getattr(leaf, "dtype", None) == torch.float64 for leaf in _nest.leaves(part)
        )
        dtype = torch.float64 if is_double else torch.float32
        if self._by_weights:
            return item.to(dtype).sum()
        if item.is_floating_point():  # probabilities of classes: nothing is ignored
            return torch.full((), float(len(item)), dtype=dtype, device=item.device)
        loss: Any = self._module
        counts = item != loss.ignore_index
        if loss.weight is None:
            return counts.sum(dtype=dtype)
        weight = loss.weight.to(item.device, dtype)
        return weight[item.where(counts, 0)].where(counts, 0.0).sum()

    def _made_finite(self, part: tuple[Any, ...], weight: torch.Tensor) -> tuple[Any, ...]:
        item = part[self._last]
        if self._by_weights:
            item = item + (weight == 0).to(item.dtype)
        elif not item.is_floating_point():
            item = item.where(weight != 0, self._class_that_counts(item.device))
        return (*part[: self._last], item, *part[self._last + 1 :])

    def _class_that_counts(self, device: torch.device) -> Any:
        """Returns a class that is not ignored and weighs something, if there is one."""
        loss: Any = self._module
        if loss.weight is None:
            return 1 if loss.ignore_index == 0 else 0
        classes = torch.arange(len(loss.weight), device=device)
        counts = (loss.weight.to(device) != 0) & (classes != loss.ignore_index)
        return counts.int().argmax()  # chosen on the device: nobody waits for it


def weighs_by_targets(loss: tl.Layer) -> bool:
    """Tells whether a loss is one of PyTorch's that weigh their items by their targets.

    Subclasses are taken for their kind. None is where label smoothing has targets count whose class
    weighs nothing: a part of these alone is a number by 0.
    """
    module: Any = loss.module if isinstance(loss, tl.Wrapped) else None
    if not isinstance(module, WEIGHING):
        return False
    is_smooth = isinstance(module, nn.CrossEntropyLoss) and module.label_smoothing > 0
    return not (is_smooth and module.weight is not None and bool((module.weight == 0).any()))


def _is_sum(loss: tl.Layer) -> bool:
    """Tells whether a loss ends in one of Trax's sums over items."""
    while isinstance(loss, tl.Serial) and loss.sublayers:
        loss = loss.sublayers[-1]
    return loss.name in ("WeightedSum", "CrossEntropySum", "BinaryCrossEntropySum")


def _takes_weights(loss: tl.Layer) -> bool:
    """Tells whether a loss's third input is weights: always with Trax's losses."""
    function = loss.module.forward if isinstance(loss, tl.Wrapped) else getattr(loss, "fn", None)
    if function is None:
        return True
    names = list(inspect.signature(function).parameters)
    return len(names) > 2 and any(word in names[2].lower() for word in ("weight", "mask"))


def _rows_of(batch: tuple[Any, ...], n_parts: int) -> list[tuple[Any, ...]]:
    """Returns the batch in parts, which differ by one row at most."""
    leaves = list(_nest.leaves(batch))
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    n_rows = {shape[0] if shape else 0 for shape in shapes}
    if len(n_rows) != 1 or 0 in n_rows:
        raise ValueError(
            f"A batch is cut into {n_parts} parts along the first axis of its items, which must "
            f"agree; got shapes {shapes}. Yield one row of targets and weights for each row of "
            f"inputs, or leave n_accumulation_steps at 1 and loss_chunk_size at 0."
        )
    n_parts = max(1, min(n_parts, *n_rows))
    cut = [torch.tensor_split(leaf, n_parts) for leaf in leaves]
    return [_nest.rebuild(batch, [pieces[i] for pieces in cut]) for i in range(n_parts)]


def _n_rows(part: Any) -> int:
    return int(next(_nest.leaves(part)).shape[0])
