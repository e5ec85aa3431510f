"""Where the generators of a DataLoader's workers are, batch by batch: told to the main process.

Items that draw random numbers in a worker draw from that worker's generators, which depend on all
items that it has made. A worker writes where they are into shared memory, after each batch; one
that takes another's place begins there.
"""

import functools
import multiprocessing.sharedctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trax_torch import _generators

_SIZE = 1 + _generators.N_BYTES  # whether the generators have moved at all, and where they are


class WorkerStates:
    """Generators of the workers of one pass, or of all passes if they persist.

    Args:
      n_workers: how many.
      n_ahead: how many batches a worker may make before the first of them is asked for.
      begin_at: where each begins, as `after` told it of those whose place they take; or None.
    """

    def __init__(self, n_workers: int, n_ahead: int, begin_at: list[Any] | None = None):
        self._n_slots = n_ahead + 4  # those ahead, the last two of the past, and the one in writing
        size = n_workers * self._n_slots * _SIZE
        self._shared: Any = multiprocessing.sharedctypes.RawArray("B", size)
        self._beginnings: list[torch.Tensor | None] = begin_at or [None] * n_workers

    def after(self, worker: int, n: int) -> torch.Tensor | None:
        """Returns where a worker's generators were after its first n batches.

        None if they had not moved since torch seeded them; n is one of the last that it made.
        """
        if n == 0:
            return self.beginning(worker)
        has_moved, *_ = slot = self._slots()[worker, n % self._n_slots]
        return torch.from_numpy(slot[1:].copy()) if has_moved else None

    def watched(
        self, init: Callable[[int], None], collate: Callable[[Any], Any]
    ) -> tuple[Callable[[int], None], Callable[[Any], Any]]:
        """Returns what a worker begins with, and puts batches together by, so that it tells."""
        in_worker = _InWorker(self)
        return functools.partial(in_worker.begin, init), functools.partial(in_worker.make, collate)

    def _slots(self) -> Any:
        flat = np.frombuffer(self._shared, np.uint8)
        return flat.reshape(len(self._beginnings), self._n_slots, _SIZE)

    def write(self, worker: int, n: int, state: torch.Tensor | None) -> None:
        """Writes where a worker's generators are after n batches; None if they have not moved."""
        slot = self._slots()[worker, n % self._n_slots]
        slot[0] = state is not None
        if state is not None:
            slot[1:] = state.numpy()

    def beginning(self, worker: int) -> torch.Tensor | None:
        """Returns where a worker's generators begin, if not where torch seeds them."""
        return self._beginnings[worker]


class _InWorker:
    """What a worker knows of itself."""

    def __init__(self, states: WorkerStates):
        self._states = states
        self._worker, self._n = 0, 0
        self._first: _generators.Snapshot | None = None
        self._last: _generators.Snapshot | None = None

    def begin(self, init: Callable[[int], None], worker: int) -> None:
        """Seeds nothing: puts the generators where those were whose place they take."""
        init(worker)
        self._worker, self._first = worker, _generators.take()
        state = self._states.beginning(worker)
        if state is not None:
            _generators.unpack(state).put()

    def make(self, collate: Callable[[Any], Any], items: Any) -> Any:
        """Returns a batch of items, and tells where the generators are then."""
        batch = collate(items)
        self._n += 1
        assert self._first is not None  # `begin` came before
        self._last = _generators.take(self._last)
        has_moved = bool(self._first.moved(self._last))
        self._states.write(self._worker, self._n, self._last.pack() if has_moved else None)
        return batch
