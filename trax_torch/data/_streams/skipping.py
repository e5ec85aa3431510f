"""Going to a batch of a DataLoader's pass without making those before it again.

The indices that went by are drawn again, which is cheap; rows are not, but for one batch of each
worker, whose last one tells whether all is as it was.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from trax_torch import _torch_private
from trax_torch.data._streams.indices import Indices
from trax_torch.data._streams.remembered import remembered
from trax_torch.data._streams.rows import swaps_for
from trax_torch.data._streams.swapped import swapped
from trax_torch.data._streams.worker_states import WorkerStates
from trax_torch.data._streams.workers import begin


def can_skip(data: Any) -> bool:
    """Tells whether a pass may begin at a later batch: a map-style DataLoader's, in order."""
    return (
        isinstance(data, DataLoader)
        and type(data).__iter__ is DataLoader.__iter__  # one of its own may do anything
        and not isinstance(data.dataset, IterableDataset)
        and bool(getattr(data, "in_order", True))
    )


class Skipping:
    """Begins the passes of a map-style DataLoader, and knows what it takes to begin one later on.

    Args:
      loader: whose passes are begun here, and by nobody else meanwhile.
      wrap_init: makes of a worker's own beginning, or None, the one that it begins with.
    """

    def __init__(self, loader: Any, wrap_init: Callable[[Any], Callable[[int], None]]):
        self._loader, self._wrap_init = loader, wrap_init
        self._way = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._indices = Indices(vars(loader)[self._way])
        self._n_workers: int = loader.num_workers
        self._persists = bool(loader.persistent_workers)
        self._worker_states: WorkerStates | None = None
        self._made = [0] * self._n_workers  # by each worker, before the pass under way
        self._first = 0  # the batch that the pass under way began at
        self._samplers = ""  # what they remembered as it began
        self._is_watched = False  # whether it goes by these indices
        self._iterator: Callable[[], Any] = lambda: None
        self._since: dict[str, Any] = {}  # where its workers, if any, began

    def begin(self, where: dict[str, Any]) -> Iterator[Any]:
        """Begins a pass from its first batch on.

        Args:
          where: what to tell of the place where workers that are new have begun.
        """
        self._count()
        self._first = 0
        return self._begin(where, None)

    def _count(self) -> None:
        """Counts what workers that persist have made in the pass that is over."""
        if self._persists:
            rounds, more = divmod(self._first + self._indices.n_drawn, self._n_workers)
            before = self._first // self._n_workers
            for worker in range(self._n_workers):
                self._made[worker] += rounds - before + (worker < more)

    def tell(self, n: int) -> dict[str, Any] | None:
        """Returns what is needed beside the samplers' numbers to begin after n batches of the pass.

        None where that is not known, as of workers that someone else began.
        """
        if not self._is_watched or not n:
            return None
        if self._worker_states is None:
            return {"samplers": self._samplers, "dataset": remembered([self._loader.dataset])}
        rounds = (n - 1) // self._n_workers - self._first // self._n_workers
        states = [self._worker_states.after(w, made + rounds) for w, made in enumerate(self._made)]
        return {"samplers": self._samplers, "workers": states, "since": self._since}

    def is_as_told(self, told: dict[str, Any]) -> bool:
        """Tells whether samplers, and a dataset that this process draws from, are as they were."""
        if told.get("samplers") != self._remembered():
            return False
        here = self.makes_rows_here(told)
        return not here or told["dataset"] == remembered([self._loader.dataset])

    def makes_rows_here(self, told: dict[str, Any]) -> bool:
        """Tells whether this process makes rows, as it did before, and no workers do."""
        return not self._n_workers and "dataset" in told

    def first_of(self, n: int) -> int:
        """Returns the batch to begin at where n were drawn: so each worker makes those it made."""
        return (n - 1) // self._n_workers * self._n_workers if self._n_workers else n - 1

    def are_older(self, told: dict[str, Any], where: dict[str, Any]) -> bool:
        """Tells whether workers had begun elsewhere than the pass, which they persist through."""
        since = told.get("since")
        return self._persists and since is not None and since["epoch"] != where["epoch"]

    def start_workers(self, told: dict[str, Any]) -> None:
        """Starts workers that persist, without work, where the process draws their seed."""
        self.let_go()
        self._indices.pass_over(None)
        self._begin(told["since"], self._states_in(told))

    def begin_at(self, n: int, told: dict[str, Any], where: dict[str, Any]) -> Iterator[Any]:
        """Begins a pass at `first_of(n)`, the indices before which are drawn now.

        Args:
          n: how many batches had been drawn.
          told: what `tell` told then.
          where: the place where the pass began; if its workers did elsewhere, `start_workers` has
            started them.
        """
        if not self.are_older(told, where):
            self.let_go()
        self._made = [0] * self._n_workers
        self._first = self.first_of(n)
        self._indices.pass_over(self._first)
        iterator = self._begin(where, self._states_in(told))
        if not self._n_workers:  # for workers, some were drawn ahead just now
            self._indices.hurry()
        return iterator

    def let_go(self) -> None:
        """Has the next pass begin with new workers, also where they persist."""
        if self._persists:
            _torch_private.let_workers_go(self._loader)
        self._made = [0] * self._n_workers
        self._first = 0
        self._indices = Indices(vars(self._loader)[self._way])

    def _states_in(self, told: dict[str, Any]) -> list[Any] | None:
        states = told.get("workers")
        return states if isinstance(states, list) and len(states) == self._n_workers else None

    def _remembered(self) -> str:
        sampler = vars(self._loader)[self._way]
        return remembered([sampler], beside=self._loader.dataset, numbers=True)

    def _begin(self, where: dict[str, Any], states: list[Any] | None) -> Iterator[Any]:
        """Begins a pass, and workers at `states` unless they live."""
        self._samplers = self._remembered()
        n_passes, live = self._indices.n_passes, self._iterator()
        workers = None
        swaps = {self._way: self._indices, **swaps_for(self._loader)}
        if self._n_workers:
            workers = WorkerStates(self._n_workers, self._loader.prefetch_factor, states)
            init = self._wrap_init(self._loader.worker_init_fn)
            init, collate = workers.watched(init, self._loader.collate_fn)
            swaps |= {"worker_init_fn": init, "collate_fn": collate}
        with swapped(self._loader, swaps):
            iterator = begin(self._loader)
        self._indices.pass_over(0)
        if iterator is not live:
            self._worker_states, self._iterator, self._since = workers, weakref.ref(iterator), where
            self._made = [0] * self._n_workers
        self._is_watched = self._indices.n_passes > n_passes
        return iterator
