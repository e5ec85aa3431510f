"""Gradient accumulation: a batch in microbatches, and how much of its loss each one stands for.

The loss of a batch is sum(w * loss) / sum(w), so a microbatch stands for its share of the weights,
not for one part of so many. The mean over microbatches, which many loops take, is another number as
soon as weights are uneven. Ranks of data parallelism share a loss in the same way.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch import _nest
from trax_torch import layers as tl

# Losses of PyTorch that weigh their items themselves, by their targets.
WEIGHING = (nn.CrossEntropyLoss, nn.NLLLoss)


@dataclass(frozen=True)
class Count:
    """What a batch counts for, where that was found out; see `Shares`.

    Attributes:
      text: says what counts.
      of_items: gives a tensor that is what each item counts for; None where every row counts alike.
      fillings: what to put into items, by their names in `_nest.named_leaves`, so that a batch that
        counts for nothing has a loss all the same: a function of the item.
      is_sum: whether the loss is the sum of its parts.
    """

    text: str
    of_items: Callable[[dict[str, Any]], torch.Tensor] | None = None
    fillings: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...] = ()
    is_sum: bool = False

    def is_of(self, name: str) -> bool:
        """Tells whether nothing else but an item of this name, or rows, is counted."""
        return all(each == name for each, _ in self.fillings)

    def of(self, batch: Any) -> torch.Tensor:
        """Returns what a batch counts for, on its device."""
        assert self.of_items is not None
        items = self.of_items(_nest.named_leaves(batch))
        return items.sum(dtype=torch.float32 if items.device.type == "mps" else torch.float64)

    def made_finite(self, batch: Any, weight: torch.Tensor) -> Any:
        """Returns a batch that counts for nothing with other items, and any other one as it is."""
        named = _nest.named_leaves(batch)
        for name, filling in self.fillings:
            named[name] = torch.where(weight == 0, filling(named[name]), named[name])
        return _nest.rebuild(batch, list(named.values()))


class Shares:
    """Cuts batches of a model and its loss into microbatches along the first axis.

    What a loss weighs its items by is found once: by the third of its inputs, where that comes from
    the batch and, in a module of PyTorch or a `tl.Fn`, is called weights or mask; by the targets
    that are not ignored in `nn.CrossEntropyLoss` and `nn.NLLLoss`; else every row counts alike, as
    do sequences in Trax's accuracies of whole sequences. Weights that are broadcast to the targets
    count once for each of them. A loss with `reduction='sum'`, or that ends in Trax's WeightedSum,
    is the sum of its parts.

    Args:
      model: takes the first items of a batch.
      loss: takes the model's outputs and the items that follow.
      count: what a batch counts for, where nothing of the above is known.
      tell: is told what the whole of a batch counts for before its parts are computed, whose losses
        then add up to that of the whole; None where each is a mean over what is in it. Goes with a
        count of items.
    """

    def __init__(
        self,
        model: tl.Layer,
        loss: tl.Layer,
        count: Count | None = None,
        tell: Callable[[torch.Tensor], None] | None = None,
    ):
        self._tell = tell
        self._count = None if count is None or count.of_items is None else count
        n_own = max(0, loss.n_in - model.n_out)  # items of the batch that the loss takes itself
        self._last = model.n_in + n_own - 1
        module = loss.module if isinstance(loss, tl.Wrapped) else None
        self._module = module
        self._is_sum = getattr(module, "reduction", None) == "sum" or _is_sum(loss)
        self._is_sum = self._is_sum or (count is not None and count.is_sum)
        self._by_weights = n_own > 0 and loss.n_in == 3 and _takes_weights(loss)
        self._has_targets = n_own > 1
        self._by_targets = n_own > 0 and weighs_by_targets(loss)

    @property
    def counts_rows(self) -> bool:
        """Whether every row counts alike, for want of anything else that is known."""
        is_known = self._is_sum or self._by_weights or self._by_targets
        return not is_known and self._count is None

    def n_rows(self, batch: tuple[Any, ...]) -> int:
        """Returns how many rows a batch has."""
        return _n_rows(batch)

    def weight_of(self, batch: tuple[Any, ...]) -> float:
        """Returns what a batch counts for: the sum of its weights, or how many rows it has."""
        if self.counts_rows or self._is_sum:
            return float(_n_rows(batch))
        return float(self._weight_of(batch))

    def share_of_mean(self, batch: tuple[Any, ...]) -> Any:
        """Returns what a batch's value counts for in the mean over several batches.

        It is what `weight_of` says, on the device that the batch is on; 1 for a sum, whose mean
        over batches is taken.
        """
        if self._is_sum:
            return 1.0
        return float(_n_rows(batch)) if self.counts_rows else self._weight_of(batch)

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
        if self._tell is not None:
            self._tell(torch.as_tensor(whole, dtype=weights[0].dtype, device=weights[0].device))
            return [(part, float(size)) for part in parts]
        if self._count is not None:
            # Where nothing counts, what the whole is, 0 or no number, its parts are as they came.
            none = torch.as_tensor(whole, device=weights[0].device) == 0
            weights = [torch.where(none, 1.0, weight) for weight in weights]
            whole = torch.where(none, float(size * len(parts)), whole)
        return [
            (self._made_finite(p, w), size * w / whole) for p, w in zip(parts, weights, strict=True)
        ]

    def _weight_of(self, part: tuple[Any, ...]) -> torch.Tensor:
        """Returns the sum of weights in a part; in float64 where anything in the part is."""
        if self._count is not None:
            return self._count.of(part)
        item: torch.Tensor = part[self._last]
        is_double = any(
            getattr(leaf, "dtype", None) == torch.float64 for leaf in _nest.leaves(part)
        )
        dtype = torch.float64 if is_double else torch.float32
        if self._by_weights:
            total = item.to(dtype).sum()
            targets = part[self._last - 1] if self._has_targets else item
            return total if _is_whole(item, targets) else total * (targets.numel() / item.numel())
        if item.is_floating_point():  # probabilities of classes: nothing is ignored
            return torch.full((), float(len(item)), dtype=dtype, device=item.device)
        loss: Any = self._module
        counts: torch.Tensor = item != loss.ignore_index
        if loss.weight is None:
            return counts.sum(dtype=dtype)
        weight: torch.Tensor = loss.weight.to(item.device, dtype)
        return weight[item.where(counts, 0)].where(counts, 0.0).sum()

    def _made_finite(self, part: tuple[Any, ...], weight: torch.Tensor) -> Any:
        if self._count is not None:
            return self._count.made_finite(part, weight)
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
    return _last_of(loss).name in ("WeightedSum", "CrossEntropySum", "BinaryCrossEntropySum")


def _last_of(loss: tl.Layer) -> tl.Layer:
    while isinstance(loss, tl.Serial) and loss.sublayers:
        loss = loss.sublayers[-1]
    return loss


def _is_whole(weights: Any, targets: Any) -> bool:
    """Tells whether weights are not broadcast to the targets, as far as shapes tell."""
    if not isinstance(targets, torch.Tensor) or weights.dim() != targets.dim():
        return True
    pairs = zip(weights.shape, targets.shape, strict=True)
    return weights.shape == targets.shape or not all(n in (1, m) for n, m in pairs)


def _takes_weights(loss: tl.Layer) -> bool:
    """Tells whether a loss's third input is what its items count by: Trax's weights are, mostly."""
    if _last_of(loss).name in ("MaskedSequenceAccuracy", "_WeightedSequenceMean"):
        return False  # they say what of a sequence is to be right
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
    shapes = (getattr(leaf, "shape", ()) for leaf in _nest.leaves(part))
    return next((int(shape[0]) for shape in shapes if shape), 1)
