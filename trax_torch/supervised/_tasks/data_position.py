"""Labeled data as a stream of batches that knows its position.

The position is what a checkpoint keeps, so that a resumed run sees the batches it would have seen.
"""

import functools
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from trax_torch import _distributed, _nest, _signals

_log = logging.getLogger("trax_torch")


class BatchStream:
    """Batches from an iterator, or from an iterable gone through again and again.

    Args:
      labeled_data: an iterator of batches; or an iterable such as a `DataLoader`.
      name: how messages call it.

    Raises:
      TypeError: if it is neither.
    """

    def __init__(self, labeled_data: Any, name: str):
        if not hasattr(labeled_data, "__iter__") and not hasattr(labeled_data, "__next__"):
            raise TypeError(
                f"{name} needs labeled_data to be an iterator of batches or an iterable such as a "
                f"DataLoader; got {type(labeled_data).__name__}. Call a generator function first."
            )
        self._data = labeled_data
        self._name = name
        self._repeats = not hasattr(labeled_data, "__next__")
        self._held: list[Iterator[Any]] = [] if self._repeats else [labeled_data]
        # What holds a stream is held by it in turn, callbacks by their loop, say; of such things a
        # DataLoader's queues may go before its iterator, which then waits five seconds for each of
        # its workers. Held from here, too, it goes when the stream has gone, and they after it.
        weakref.finalize(self, self._held.clear).atexit = False
        self.n_taken = 0

    def next(self) -> tuple[Any, ...]:
        """Returns the next batch as a tuple.

        Raises:
          ValueError: if the data has no (more) batches, or a batch is no tuple or list.
        """
        batch = self._draw()
        if isinstance(batch, list):
            batch = tuple(batch)
        if not isinstance(batch, tuple):
            raise ValueError(
                f"{self._name} needs batches that are tuples of arrays or tensors, (inputs, "
                f"targets) or (inputs, targets, weights); got {type(batch).__name__}."
            )
        self.n_taken += 1
        return batch

    def position(self) -> dict[str, Any]:
        """Returns the position as plain data (and tensors, if the data's own state has them)."""
        position: dict[str, Any] = {"n_taken": self.n_taken}
        if self._keeps_state():
            position["state"] = self._data.state_dict()
        return position

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a position that `position` gave, in this process or an earlier one.

        Data with `load_state_dict` is asked to go there itself; any other is drawn from until as
        many batches have gone by.

        Raises:
          ValueError: if more batches were drawn already.
        """
        if "state" in position and self._keeps_state():
            self._data.load_state_dict(position["state"])
            if self._repeats:
                self._iterator = None
            self.n_taken = position["n_taken"]
            return
        if self._repeats and position["n_taken"] < self.n_taken:
            self._iterator, self.n_taken = None, 0
        missing = position["n_taken"] - self.n_taken
        if missing < 0:  # an iterator cannot go back
            raise ValueError(
                f"{self._name} is to go on after batch {position['n_taken']}, but {self.n_taken} "
                f"were drawn already. Build the task with fresh data before resuming."
            )
        if missing:
            _log.info("%s: going forward by %d batches to where it was saved", self._name, missing)
        for _ in range(missing):
            self.next()

    @property
    def fits_any_size(self) -> bool:
        """Whether one position serves any number of ranks; see `share_of`."""
        return bool(getattr(self._data, "fits_any_size", False))

    def _begin(self) -> Iterator[Any]:
        """Begins to go through the data; its workers, if any, outlive a signal to stop."""
        loader = self._data
        if not isinstance(loader, torch.utils.data.DataLoader) or not loader.num_workers:
            return iter(loader)
        own = loader.worker_init_fn
        loader.worker_init_fn = functools.partial(_signals.outlive_first, _signals.n_running(), own)
        try:
            return iter(loader)  # which starts the workers
        finally:
            loader.worker_init_fn = own

    @property
    def _iterator(self) -> Iterator[Any] | None:
        return self._held[0] if self._held else None

    @_iterator.setter
    def _iterator(self, iterator: Iterator[Any] | None) -> None:
        self._held[:] = [] if iterator is None else [iterator]

    def _keeps_state(self) -> bool:
        return hasattr(self._data, "state_dict") and hasattr(self._data, "load_state_dict")

    def _draw(self) -> Any:
        if self._iterator is not None:
            try:
                return next(self._iterator)
            except StopIteration:
                if not self._repeats:
                    raise ValueError(
                        f"{self._name} ended after {self.n_taken} batches. Give an iterator that "
                        f"goes on for as long as you train, or an iterable such as a DataLoader."
                    ) from None
        self._iterator = self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(f"{self._name} is empty: going through it gives no batch.") from None


class Share:
    """A rank's rows of batches that all ranks draw alike; `share_of` makes it."""

    fits_any_size = True

    def __init__(self, labeled_data: Any, rank: int, size: int):
        if not 0 <= rank < size:
            raise ValueError(f"There is no share {rank} of {size}.")
        self._stream = BatchStream(labeled_data, "The data to share out")
        self._rank, self._size = rank, size

    def __iter__(self) -> "Share":
        return self

    def __next__(self) -> tuple[Any, ...]:
        batch = self._stream.next()
        n_rows = {len(leaf) for leaf in _nest.leaves(batch)}
        if len(n_rows) != 1 or min(n_rows) < self._size:
            raise ValueError(
                f"A batch is shared out by the first axis of its items, which must agree and have "
                f"a row for each of {self._size} ranks; got {sorted(n_rows)} rows."
            )
        n = n_rows.pop()
        first, last = (n * r // self._size for r in (self._rank, self._rank + 1))
        rows: tuple[Any, ...] = _nest.map_leaves(lambda leaf: leaf[first:last], batch)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the data, which is the same on all ranks."""
        return self._stream.position()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place that `state_dict` told."""
        self._stream.seek(state)


def share_of(labeled_data: Any, rank: int | None = None, size: int | None = None) -> Share:
    """Returns an iterator of this rank's rows of batches that all ranks draw alike.

    Of a batch of B rows, rank r of n gets rows r * B / n to (r + 1) * B / n, rounded down. All
    ranks draw all batches, so the data must be the same on each: seeded alike, or read from the
    same files. A checkpoint keeps one place for all ranks, and a run may go on with another number
    of them. (A `DataLoader` with a `DistributedSampler` loads each rank's rows alone.)

    Args:
      labeled_data: an iterator, or an iterable gone through again and again, of batches: tuples of
        arrays or tensors, whose first axis is cut.
      rank: which share; by default the launcher's, and 0 without a launcher.
      size: how many shares; by default the launcher's number of ranks, and 1 without one.

    Raises:
      ValueError: if there is no such share, or a batch has fewer rows than there are shares.

    Example:
      >>> data = [(torch.arange(4), torch.arange(4) > 1)]
      >>> next(share_of(data, rank=1, size=2))
      (tensor([2, 3]), tensor([True, True]))
    """
    own, all_ranks = _distributed.launched()
    return Share(labeled_data, own if rank is None else rank, all_ranks if size is None else size)
