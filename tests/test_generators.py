"""The process-wide generators: told apart, packed, put back."""

import random

import numpy as np
import pytest
import torch

from trax_torch import _generators

DRAWS = {
    "torch": lambda: torch.rand(1).item(),
    "numpy": lambda: np.random.randn(),
    "random": lambda: random.gauss(0, 1),
}


def drawn():
    return [draw() for draw in DRAWS.values() for _ in range(3)]


@pytest.mark.parametrize("n_before", range(3))
@pytest.mark.parametrize("is_packed", [False, True])
def test_what_was_drawn_after_a_snapshot_is_drawn_again(n_before, is_packed):
    """Also the second of two normal numbers that are made at once."""
    for draw in DRAWS.values():
        for _ in range(n_before):
            draw()
    snapshot = _generators.take()
    if is_packed:
        packed = snapshot.pack()
        snapshot = _generators.unpack(packed)
        assert torch.equal(snapshot.pack(), packed)
    want = drawn()

    for _ in range(2):
        snapshot.put()
        assert drawn() == want


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_that_moved_is_named(name):
    before = _generators.take()
    DRAWS[name]()
    after = _generators.take(before)

    assert before.moved(after) == [name]
    assert after.moved(_generators.take(after)) == []


def test_a_quicker_snapshot_is_like_one_from_nothing():
    """Whatever was drawn since the one that it is made from."""
    before = _generators.take()
    for draw in (np.random.rand, np.random.randn, np.random.randn, np.random.randn, int) * 2:
        draw()
        before = _generators.take(before)
        assert torch.equal(before.pack(), _generators.take().pack())


def test_a_numpy_generator_of_another_kind_is_left_alone():
    old = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        packed = _generators.take().pack()
        want = np.random.rand()
        np.random.set_bit_generator(np.random.PCG64(3))
        _generators.unpack(packed).put()
        assert np.random.rand() == want
    finally:
        np.random.set_bit_generator(old)


def test_what_is_no_packed_snapshot_is_refused():
    with pytest.raises(ValueError, match=r"have \d+ bytes; got 3 items of torch.uint8. Go on with"):
        _generators.unpack(torch.zeros(3, dtype=torch.uint8))
