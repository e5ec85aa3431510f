"""Batches of a TensorDataset taken at once, where a DataLoader takes row by row and stacks them.

They are the same to the last bit: each pass looks whether its first batch is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from trax_torch.data._streams.swapped import swapped

_NUMBERS = {int, np.int64}


def swaps_for(loader: Any) -> dict[str, Any]:
    """Returns attributes with which a pass of a loader takes batches at once; {} if none can.

    That is for rows of contiguous tensors in memory, put together torch's way, in this process.
    """
    if type(loader) is not DataLoader or loader.num_workers or loader.batch_sampler is None:
        return {}
    tensors = _tensors_of(loader.dataset)
    if not tensors or not all(map(_is_plain, tensors)) or loader.collate_fn is not default_collate:
        return {}
    return {"dataset": Rows(loader.dataset), "collate_fn": _as_it_is}


def begin(loader: Any) -> Iterator[Any]:
    """Begins a pass of a loader."""
    with swapped(loader, swaps_for(loader)):
        return iter(loader)


class Rows:
    """A dataset of tensors, or some rows of one, that gives whole batches.

    Args:
      dataset: a `TensorDataset`, or a `Subset` of one.
    """

    def __init__(self, dataset: Any):
        self._dataset = dataset
        self._is_same: bool | None = None  # as row by row; None until that was looked at

    def __getitems__(self, indices: Any) -> Any:
        """Returns the batch of the rows at some indices, as `default_collate` makes it."""
        taken = self._at_once(indices) if self._is_same is not False else None
        if taken is not None and self._is_same:
            return taken
        stacked = default_collate(_one_by_one(self._dataset, indices))
        if taken is not None:
            self._is_same = _are_same(taken, stacked)
        return stacked

    def _at_once(self, indices: Any) -> Any:
        """Returns the batch; None where indices are no numbers."""
        dataset: Any = self._dataset
        if type(indices) is not list or not indices:
            return None
        while type(dataset) is Subset:
            indices = [dataset.indices[i] for i in indices]
            dataset = dataset.dataset
        if not {type(i) for i in indices} <= _NUMBERS:
            return None
        index = torch.tensor(indices)
        return [tensor[index] for tensor in dataset.tensors]


def _tensors_of(dataset: Any) -> tuple[Any, ...]:
    """Returns what the rows of a dataset are of; () where that is not known."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return tuple(dataset.tensors) if type(dataset) is TensorDataset else ()


def _is_plain(tensor: Any) -> bool:
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided:
        return False
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.requires_grad


def _one_by_one(dataset: Any, indices: Any) -> Any:
    several = getattr(dataset, "__getitems__", None)
    return [dataset[i] for i in indices] if several is None else several(indices)


def _are_same(taken: list[torch.Tensor], stacked: Any) -> bool:
    if type(stacked) is not list or len(stacked) != len(taken):
        return False
    return all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        for a, b in zip(taken, stacked, strict=True)
    )


def _as_it_is(batch: Any) -> Any:
    return batch
