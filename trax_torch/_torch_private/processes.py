"""Processes: workers of loaders, and what ranks say of one another."""

import copy
import weakref
from typing import Any

from trax_torch._torch_private.said import say

_known: weakref.WeakSet[Any] = weakref.WeakSet()  # iterators that `end_workers_at_once` has seen


def loader_without_workers(loader: Any, dataset: Any = None) -> Any:
    """Returns a DataLoader like another, whose workers, if they persist, are its own.

    They live in `_iterator`; where a release keeps them elsewhere, both share them. A dataset in
    the other's place goes in by the twin's own dict, since a loader refuses one later.
    """
    twin = copy.copy(loader)
    let_workers_go(twin)
    if dataset is not None:
        vars(twin)["dataset"] = dataset
    return twin


def accelerates_alone(loader: Any) -> Any:
    """Returns one of Accelerate's loaders like another, around a loader of torchdata's of its own.

    Accelerate asks that one for its state as it prepares it, which begins the first pass there and
    then; the twin's begins when it is asked for.
    """
    twin = copy.copy(loader)
    twin.base_dataloader = loader_without_workers(loader.base_dataloader)
    return twin


def let_workers_go(loader: Any) -> None:
    """Has the next pass of a DataLoader begin with new workers, as its first one did.

    They live in `_iterator`; where a release keeps them elsewhere, they stay.
    """
    loader._iterator = None
    if hasattr(loader, "_initial_iter_for_state_dict"):  # torchdata's, which has them without one
        loader._initial_iter_for_state_dict = False


def is_of_gloo(error: RuntimeError) -> bool:
    """Tells whether an error is of gloo's lines between ranks, which have no type of their own."""
    return "gloo/transport" in str(error)


def asks_to_find_unused(error: RuntimeError) -> bool:
    """Tells whether DistributedDataParallel misses gradients of weights that were not used."""
    return "find_unused_parameters" in str(error)


def meeting_store() -> Any:
    """Returns the store where the ranks of the process group met; None if that is not known."""
    try:
        from torch.distributed import distributed_c10d

        return distributed_c10d._get_default_store()
    except (ImportError, AttributeError):
        say("_get_default_store", "ranks that wait for one that failed do not hear why")
        return None


def lacks_a_backend(error: RuntimeError) -> bool:
    """Tells whether a process group has no way to send what is on some device."""
    return "No backend type associated" in str(error)


def end_workers_at_once(iterator: Any) -> None:
    """Has the workers of a DataLoader's pass hear of its end where garbage is collected, too.

    A collection takes queues apart before it ends what puts the end into them, so that each worker
    is waited for, 5 s. They are kept until then, and no longer; where a release has others, it is
    waited.
    """
    if iterator in _known:  # workers that persist are those of many passes
        return
    _known.add(iterator)
    names = ("_index_queues", "_workers", "_worker_result_queue", "_workers_done_event")
    parts = [getattr(iterator, name, None) for name in names]
    weakref.finalize(iterator, lambda *_: None, *parts).atexit = False
