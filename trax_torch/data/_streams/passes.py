"""Passes through data that has an end: which one begins, and, in an eval, each row once.

A pass of an eval leaves the data's generators as it found them, so each has the same order, and
training that shares one draws what it would have drawn.
"""

import logging
import operator
from collections.abc import Generator, Iterator, Sized
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from trax_torch import _nest
from trax_torch.data._streams.remembered import kept_generator

_MOST_PARTS = 100  # of a loader; a set of more is not looked into
_PLAIN = (str, bytes, bool, int, float)  # what a row may have besides arrays

_log = logging.getLogger("trax_torch")


def n_batches_of(data: Any) -> int | None:
    """Returns how many batches there are in what can be gone through anew; None if it is unknown.

    An iterator is none of that, though it may have a length: what it gave is gone.
    """
    if hasattr(data, "__next__"):
        return None
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # a DataLoader over an iterable, say
        return None


def why_empty(data: Any) -> str:
    """Returns why a loader gives no batch, and what to do, where that can be told; else ""."""
    try:
        n_rows = len(data.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return ""
    size, sampler = getattr(data, "batch_size", None), getattr(data, "batch_sampler", None)
    if n_rows == 0:
        return " Its dataset has no rows: look at the path, or the filter, that it was made with."
    if getattr(sampler, "drop_last", False) and size is not None and n_rows < size:
        return (
            f" Its dataset has {n_rows} rows, fewer than batch_size={size}, and drop_last=True "
            f"drops such a batch. Make batches smaller, or leave drop_last out."
        )
    return f" Its dataset has {n_rows} rows, but its sampler draws none."


def why_others(data: Any) -> str:
    """Returns what to do where batches that are drawn again are others than they were."""
    kept = kept_generator(getattr(data, "dataset", None))
    if kept is None:
        return (
            "Seed what it draws from before the task is built, or give it state_dict and "
            "load_state_dict."
        )
    name = f"{type(kept).__module__.partition('.')[0]}'s {type(kept).__name__}"
    return (
        f"Its dataset keeps a generator of its own, {name}, which goes on for whoever draws: build "
        f"it anew, seeded alike, for each task and each run; or draw from torch, np.random or "
        f"random, whose numbers are each batch's own."
    )


def tell_epoch(data: Any, epoch: int) -> None:
    """Tells data, and what a loader draws from, which pass begins, if they have set_epoch.

    Args:
      data: what is gone through.
      epoch: the number of the pass, from 0.
    """
    for part in _parts_of(data):
        if callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(epoch)
        elif isinstance(part, DataLoader) and hasattr(part, "current_epoch"):
            cast(Any, part).current_epoch = epoch  # litdata's, whose passes add one as they begin


def generators_of(data: Any) -> list[torch.Generator]:
    """Returns the generators that a loader, its samplers and its dataset keep, each once."""
    found = [x for part in _parts_of(data) for x in getattr(part, "__dict__", {}).values()]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def without_padding(data: Any, batches: Iterator[Any], name: str) -> Generator[Any, None, None]:
    """Yields the batches of one pass, without the rows that a DistributedSampler repeats.

    So that all ranks have equally many rows, it begins anew at the end: the last ones of some
    ranks are rows that others have, too.

    Args:
      data: what is gone through.
      batches: the pass.
      name: how messages call the data.
    """
    for k, batch in enumerate(batches):
        kept = own_rows(data, batch, k, name)
        if kept is not None:
            yield kept


def own_rows(data: Any, batch: Any, k: int, name: str) -> Any:
    """Returns a batch without the rows that a DistributedSampler repeats; None if none are left.

    Args:
      data: what is gone through.
      batch: the batch.
      k: which batch of a pass it is, from 0.
      name: how messages call the data.
    """
    sampler = _sampler_of(data)
    n_padded = _n_padded(sampler)
    if not n_padded:
        return batch
    size = 1 if data.batch_sampler is None else data.batch_sampler.batch_size
    n = min(size, sampler.num_samples - k * size)
    n_kept = min(n, max(0, sampler.num_samples - n_padded - k * size))
    if n_kept == n:
        return batch
    if n_kept == 0:
        _log.info("%s: left out %d rows that the sampler repeats", name, n)
        return None
    if _has_rows(batch, n):
        _log.info("%s: left out %d rows that the sampler repeats", name, n - n_kept)
        return _first_rows(batch, n, n_kept)
    _log.warning(
        "%s: %d rows that the sampler repeats count twice: they cannot be cut off a batch whose "
        "items are not all arrays or tensors of %d rows.",
        name,
        n - n_kept,
        n,
    )
    return batch


def _parts_of(data: Any) -> list[Any]:
    """Returns data, and what it draws from: samplers, datasets, and what these are made of."""
    parts: list[Any] = []
    waiting = [data]
    while waiting and len(parts) < _MOST_PARTS:
        part = waiting.pop(0)
        if part is None or any(part is seen for seen in parts):
            continue
        parts.append(part)
        for name in ("sampler", "batch_sampler", "dataset", "datasets"):
            inner = getattr(part, name, None)
            waiting += inner if isinstance(inner, (list, tuple)) else [inner]
    return parts


def _sampler_of(data: Any) -> Any:
    """Returns what gives a loader its indices, one by one; None if that is not known."""
    if not isinstance(data, DataLoader):
        return None
    batch_sampler: Any = data.batch_sampler
    if batch_sampler is None:
        return data.sampler
    # A batch sampler of another kind may put indices together as it likes.
    return batch_sampler.sampler if isinstance(batch_sampler, BatchSampler) else None


def _n_padded(sampler: Any) -> int:
    """Returns how many of its last indices a sampler took from the beginning again."""
    if not isinstance(sampler, DistributedSampler):
        return 0
    own = type(sampler).__iter__ is DistributedSampler.__iter__
    if not own and not type(sampler).__module__.startswith("torchdata."):
        return 0  # another order, of which nothing is known
    n_rows = len(cast(Sized, sampler.dataset))
    return max(0, sampler.num_samples - len(range(sampler.rank, n_rows, sampler.num_replicas)))


def _has_rows(batch: Any, n: int) -> bool:
    """Tells whether all items of a batch are of n rows: arrays, tensors, or lists of words, say."""
    if _is_list_of_rows(batch, n):
        return True
    named = _nest.items_by_name(batch)
    items = batch if isinstance(batch, (list, tuple)) else named and named.values()
    if items:
        return all(_has_rows(item, n) for item in items)
    shape: Any = getattr(batch, "shape", None)
    return bool(shape) and shape[0] == n


def _is_list_of_rows(batch: Any, n: int) -> bool:
    """Tells whether an item of a batch is a list of n words or numbers, as a loader makes."""
    is_list = isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields")
    return is_list and len(batch) == n and all(isinstance(x, _PLAIN) for x in batch)


def _first_rows(batch: Any, n: int, n_kept: int) -> Any:
    """Returns the first rows of a batch of n, of which `_has_rows` is known."""
    if _is_list_of_rows(batch, n):
        return batch[:n_kept]
    if isinstance(batch, dict):
        return {key: _first_rows(item, n, n_kept) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_first_rows(item, n, n_kept) for item in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_first_rows(item, n, n_kept) for item in batch)
    return _nest.map_leaves(operator.itemgetter(slice(n_kept)), batch)
