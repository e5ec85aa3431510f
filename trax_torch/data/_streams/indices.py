"""What a DataLoader draws its indices from, of which a pass may begin at a later batch.

Indices are drawn here, never rows.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler


class Indices:
    """A sampler, or a batch sampler, that counts, and that may be hurried on.

    Args:
      sampler: what it gives the indices of.

    Attributes:
      n_passes: how many passes were begun.
    """

    def __init__(self, sampler: Any):
        self._sampler = sampler
        self._n_over: int | None = 0
        self._pass = _Pass(iter(()))
        self.n_passes = 0

    def pass_over(self, n: int | None) -> None:
        """Has passes begin after n batches, whose indices alone are drawn, until told otherwise.

        Args:
          n: how many; for None a pass is empty, and nothing is drawn.
        """
        self._n_over = n

    def hurry(self) -> None:
        """Draws what is passed over now, and not when indices are asked for."""
        self._pass.look()

    @property
    def n_drawn(self) -> int:
        """How many batches' indices the pass has given."""
        return self._pass.n_drawn

    def __iter__(self) -> Iterator[Any]:
        n = self._n_over
        self.n_passes += 1
        # Some samplers draw when they are asked for an iterator, others when that is asked first:
        # each draws when it would have.
        drawn = iter(()) if n is None else _hurried(self._sampler, n)
        self._pass = _Pass(drawn)
        return self._pass

    def __len__(self) -> int:
        return len(self._sampler)


class _Pass:
    def __init__(self, drawn: Iterator[Any]):
        self._drawn = drawn
        self.n_drawn = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        index = next(self._drawn)
        self.n_drawn += 1
        return index

    def look(self) -> None:
        self._drawn = itertools.chain(list(itertools.islice(self._drawn, 1)), self._drawn)


def _hurried(sampler: Any, n: int) -> Iterator[Any]:
    """Returns what a sampler gives after n, which go by as fast as they can."""
    if n and type(sampler) is BatchSampler:
        # torch's own puts together what another one gives: what goes by need not be.
        rest = _Once(sampler.sampler, n * sampler.batch_size)
        return iter(BatchSampler(rest, sampler.batch_size, sampler.drop_last))
    return _after(sampler, n) if n else iter(sampler)


class _Once:
    """What a sampler gives after n, for one that asks once."""

    def __init__(self, sampler: Any, n: int):
        self._sampler, self._n = sampler, n

    def __iter__(self) -> Iterator[Any]:
        return _after(self._sampler, self._n)


def _after(sampler: Any, n: int) -> Iterator[Any]:
    if type(sampler) is RandomSampler and not sampler.replacement:
        return _shuffled(sampler, n)
    return _drop(iter(sampler), n)


def _drop(drawn: Iterator[Any], n: int) -> Iterator[Any]:
    collections.deque(itertools.islice(drawn, n), maxlen=0)
    yield from drawn


def _shuffled(sampler: RandomSampler, n: int) -> Iterator[int]:
    """Yields what torch's own gives after n; no list is made of these, which takes most of it."""
    generator, n_rows = sampler.generator, len(sampler.data_source)
    if generator is None:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        generator = torch.Generator().manual_seed(seed)
    whole, rest = divmod(sampler.num_samples, n_rows)
    for n_given in (*[n_rows] * whole, rest):  # the last one is drawn even if it gives nothing
        order = torch.randperm(n_rows, generator=generator)[:n_given]
        n_over = min(n, n_given)
        n -= n_over
        yield from order[n_over:].tolist()
