"""Indices that went by are those that would have come, and the next ones are the next."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trax_torch.data._streams.indices import Indices

N = 11


def seeded():
    return torch.Generator().manual_seed(3)


class Lazy(Sampler):
    """Draws each index when it is asked for."""

    def __iter__(self):
        generator = seeded()
        return (int(torch.randint(N, (), generator=generator)) for _ in range(N))


class ByLength:
    """A batch sampler of one's own, with batches of several sizes."""

    def __iter__(self):
        return iter([[3], [1, 4], [5, 9, 2], [6], [0, 7, 8, 10]])

    def __len__(self):
        return 5


SAMPLERS = {
    "in order": lambda: SequentialSampler(range(N)),
    "shuffled": lambda: RandomSampler(range(N), generator=seeded()),
    "by torch's numbers": lambda: RandomSampler(range(N)),
    "more than there are": lambda: RandomSampler(range(N), num_samples=2 * N + 3),
    "just twice": lambda: RandomSampler(range(N), num_samples=2 * N, generator=seeded()),
    "fewer": lambda: RandomSampler(range(N), num_samples=4),
    "with replacement": lambda: RandomSampler(range(N), replacement=True),
    "weighted": lambda: WeightedRandomSampler(range(1, N + 1), 9, generator=seeded()),
    "some": lambda: SubsetRandomSampler([2, 3, 5, 7], generator=seeded()),
    "a rank's": lambda: DistributedSampler(range(N), 2, 1),
    "one by one": Lazy,
    "a list": lambda: list(range(N)),
}
WAYS = {
    "one": lambda sampler: sampler,
    "batches": lambda sampler: BatchSampler(sampler, 3, drop_last=False),
    "whole batches": lambda sampler: BatchSampler(sampler, 3, drop_last=True),
}


def all_of(make):
    torch.manual_seed(5)
    sampler = make()
    drawn = list(sampler)
    return drawn, list(sampler), torch.rand(1)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_hurried_pass_is_the_rest_of_a_whole_one(make, way):
    """From each batch on; the pass after it, and what others draw, are as ever."""
    whole, second, after = all_of(lambda: way(make()))

    for n in range(len(whole) + 2):
        torch.manual_seed(5)
        indices = Indices(way(make()))
        indices.pass_over(n)
        drawn = iter(indices)
        if n % 2:
            indices.hurry()
        rest = list(drawn)
        indices.pass_over(0)
        assert rest == whole[n:]
        assert indices.n_drawn == len(rest)
        assert list(indices) == second
        assert torch.equal(torch.rand(1), after)


def test_batch_samplers_of_ones_own_are_drawn_from_as_they_are():
    indices = Indices(ByLength())
    indices.pass_over(2)

    assert list(indices) == [[5, 9, 2], [6], [0, 7, 8, 10]]
    assert len(indices) == 5


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(1, 40),
    n_samples=st.one_of(st.none(), st.integers(1, 100)),
    n=st.integers(1, 120),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
def test_a_shuffling_sampler_is_hurried_like_any(n_rows, n_samples, n, seed):
    """Though nobody asks it: the numbers that it draws are drawn for it."""

    def make():
        torch.manual_seed(1)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return RandomSampler(range(n_rows), num_samples=n_samples, generator=generator)

    want = list(make())[n:]
    sampler = make()
    indices = Indices(sampler)
    indices.pass_over(n)
    found = list(indices)
    where = torch.default_generator.get_state(), sampler.generator and sampler.generator.get_state()
    again = make()
    list(again)

    assert found == want
    assert torch.equal(where[0], torch.default_generator.get_state())
    assert where[1] is None or torch.equal(where[1], again.generator.get_state())


def test_what_goes_by_is_drawn_in_a_hurry_or_when_it_is_asked_for():
    drawn = []

    class Telling(Sampler):
        def __iter__(self):
            for i in range(N):
                drawn.append(i)
                yield i

    indices = Indices(Telling())
    indices.pass_over(4)
    later = iter(indices)
    assert drawn == []
    indices.hurry()

    assert drawn == [0, 1, 2, 3, 4]
    assert next(later) == 4


def test_an_empty_pass_draws_nothing():
    indices = Indices(RandomSampler(range(N)))
    before = torch.default_generator.get_state()
    indices.pass_over(None)

    assert list(indices) == []
    assert torch.equal(torch.default_generator.get_state(), before)
    assert indices.n_passes == 1
