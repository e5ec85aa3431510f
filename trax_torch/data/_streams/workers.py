"""Workers of DataLoaders: how they are started, so that they begin and end as they should."""

from collections.abc import Iterator
from typing import Any

from trax_torch import _signals, _torch_private


def begin(loader: Any) -> Iterator[Any]:
    """Begins a pass of a DataLoader, which may start workers."""
    if not loader.num_workers:
        return iter(loader)
    with _signals.held():
        iterator: Iterator[Any] = iter(loader)
    _torch_private.end_workers_at_once(iterator)
    return iterator
