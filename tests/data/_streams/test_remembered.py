"""Generators and counts that samplers and datasets keep by themselves are seen to move."""

import random
import types

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset

from trax_torch.data._streams.remembered import remembered


def keeping(x):
    return types.SimpleNamespace(name="a", transforms=[types.SimpleNamespace(rng=x)])


GENERATORS = {
    "Generator": lambda: np.random.default_rng(0),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(0)),
    "RandomState": lambda: np.random.RandomState(0),
    "Random": lambda: random.Random(0),
}


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_that_moved_is_seen(make):
    """However deep in it."""
    one, other = keeping(make()), keeping(make())
    assert remembered([one]) == remembered([other])

    rng = one.transforms[0].rng
    rng.random() if hasattr(rng, "random") else rng.rand()

    assert remembered([one]) != remembered([other])


def test_counts_are_seen_where_they_are_asked_for():
    one, other = keeping(1), keeping(2)

    assert remembered([one], numbers=True) != remembered([other], numbers=True)
    assert remembered([one]) == remembered([other])


def test_torchs_generators_and_rows_do_not_count():
    """A stream puts the former back; the latter may be many."""
    data = TensorDataset(torch.randn(3, 1))
    sampler = BatchSampler(RandomSampler(data, generator=torch.Generator()), 2, drop_last=False)
    before = remembered([sampler], beside=data, numbers=True)
    list(sampler)
    data.tensors, data.n_seen = (torch.randn(3, 1),), 7

    assert remembered([sampler], beside=data, numbers=True) == before
    assert remembered([keeping(list(range(99)))], numbers=True) == remembered(
        [keeping(list(range(100)))], numbers=True
    )


def test_what_holds_itself_is_looked_into_once():
    thing = keeping(1)
    thing.me = {"all": [thing]}

    assert remembered([thing], numbers=True) == remembered([thing], numbers=True)
