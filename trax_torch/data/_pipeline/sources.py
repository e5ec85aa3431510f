"""Where pipelines begin, or go on from: datasets, random numbers, a place that is sought."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trax_torch import _distributed, _seeds
from trax_torch.data._pipeline.stages import Stage, is_dataset, named
from trax_torch.data._pipeline.stream import Indexed, State, Stream


def Examples(
    dataset: Sequence[Any],
    n_epochs: int | None = None,
    shuffle: bool = False,
    seed: int | None = None,
) -> Stage:
    """Begins a pipeline with a dataset's examples, again and again.

    A run that is resumed goes to its place without a look at what comes before.

    Args:
      dataset: with `__len__` and `__getitem__`: a list, a map-style dataset of torch or of Hugging
        Face.
      n_epochs: how many passes; None for no end.
      shuffle: whether each pass has an order of its own, over the whole dataset.
      seed: of the orders; see `shuffle`.

    Raises:
      TypeError: if the dataset has no length or no `__getitem__`.

    Example:
      >>> list(Examples([1, 2, 3], n_epochs=2, shuffle=True, seed=0)())
      [1, 2, 3, 1, 3, 2]
    """
    if not is_dataset(dataset):
        raise TypeError(
            f"Examples needs a dataset with __len__ and __getitem__; got "
            f"{type(dataset).__name__}. Give an iterable to Serial itself: Serial(iterable, ...)."
        )
    name = named("Examples", of=dataset, n_epochs=n_epochs, shuffle=shuffle)

    def make(name: str, upstream: Stream | None) -> Stream:
        chosen = None
        if shuffle:
            chosen = int(_seeds.random_state(seed).randint(2**31)) if seed is None else seed
        return Indexed(name, dataset, n_epochs, chosen)

    return Stage(name, make, begins=True)


def UniformlySeek(
    name: str | None = None,
    host_id: int | None = None,
    n_hosts: int | None = None,
    dataset_size: int | None = None,
) -> Stage:
    """Begins at this process's part of a dataset: passes over host_id * dataset_size / n_hosts.

    A dataset is not looked at up to there; what is no dataset is drawn from.

    Args:
      name: what messages call the dataset.
      host_id: which part; None for the launcher's rank, and 0 without a launcher.
      n_hosts: how many parts; None for the launcher's number of ranks, and 1 without one.
      dataset_size: how many examples there are; None for 2**18.

    Raises:
      ValueError: if there is no such part.

    Example:
      >>> next(UniformlySeek('digits', host_id=1, n_hosts=2, dataset_size=10)(range(10)))
      5

    Source: Trax `data/inputs.py::UniformlySeek`.
    """
    rank, size = _distributed.launched()
    host = rank if host_id is None else host_id
    n = n_hosts or size
    if not 0 <= host < n:
        raise ValueError(
            f"UniformlySeek needs a host_id from 0 to n_hosts - 1; got {host} of {n}. Leave both "
            f"out for the launcher's rank."
        )
    n_before = host * ((dataset_size or 2**18) // n)
    make = functools.partial(_Sought, n_before=n_before)
    return Stage(named("UniformlySeek", name=name, n_before=n_before), make)


def CountAndSkip(name: str) -> Stage:
    """Counts examples, and passes over those that it gave before to another pipeline.

    A `Loop` needs none of this: its checkpoints hold the place.

    Args:
      name: what messages call them.

    Example:
      >>> stage = CountAndSkip('digits')
      >>> next(stage(iter(range(10)))), next(stage(iter(range(10))))
      (0, 1)

    Source: Trax `data/inputs.py::CountAndSkip`, whose counters are the process's; here they are the
      stage's.
    """
    return Stage(named("CountAndSkip", name=name), functools.partial(_Counted, given=_Count()))


class AtRandom(Stream):
    """What a function makes of a generator of random numbers, whose state is the place.

    Args:
      name: see `Stream`.
      make: from the generator to an example.
      seed: see `shuffle`.
    """

    def __init__(
        self, name: str, make: Callable[[np.random.RandomState], Any], seed: int | None = None
    ):
        self._make, self._random = make, _seeds.random_state(seed)
        super().__init__(name)

    def _run(self) -> Iterator[Any]:
        while True:
            yield self._make(self._random)

    def _own_state(self) -> State:
        return {"random": self._random.get_state(legacy=False)}

    def _go_to(self, state: State) -> None:
        self._random.set_state(state["random"])


class _Sought(Stream):
    """Examples from a place on."""

    def __init__(self, name: str, upstream: Stream, n_before: int):
        self._n_before = n_before
        super().__init__(name, upstream)

    def _run(self) -> Iterator[Any]:
        n, self._n_before = self._n_before, 0
        assert self._upstream is not None
        self._upstream.skip(n)
        yield from self._examples

    def _own_state(self) -> State:
        return {"n_before": self._n_before}

    def _go_to(self, state: State) -> None:
        self._n_before = state["n_before"]


@dataclass
class _Count:
    n: int = 0


class _Counted(Stream):
    """Examples that no other stream of its stage gave."""

    def __init__(self, name: str, upstream: Stream, given: _Count):
        self._given, self._n_seen = given, 0
        super().__init__(name, upstream)

    def _run(self) -> Iterator[Any]:
        for example in self._examples:
            self._n_seen += 1
            if self._n_seen > self._given.n:
                self._given.n = self._n_seen
                yield example

    def _own_state(self) -> State:
        return {"n_seen": self._n_seen}

    def _go_to(self, state: State) -> None:
        self._n_seen = self._given.n = state["n_seen"]
