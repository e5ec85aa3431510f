"""Keyed randomness."""

import numpy as np
import pytest
import torch

from trax_torch import _seeds


def test_a_keyed_block_draws_the_same_and_leaves_the_ambient_stream_alone():
    """What is drawn inside depends on the seed alone; what is drawn outside does not notice."""
    keyed = _seeds.Keyed()
    torch.manual_seed(5)
    torch.rand(3)
    undisturbed = torch.rand(2)

    torch.manual_seed(5)
    torch.rand(3)
    with keyed(7):
        first = torch.rand(4)
    after = torch.rand(2)
    with keyed(7):
        second = torch.rand(4)

    assert torch.equal(first, second)
    assert torch.equal(after, undisturbed)


def test_numbers_drawn_again_are_the_same_and_leave_the_ambient_stream_alone():
    """As often as one likes."""
    torch.manual_seed(5)
    torch.rand(3)
    again = _seeds.Again()
    first, after = torch.rand(4), torch.rand(2)

    torch.manual_seed(5)
    torch.rand(7)
    with again():
        second = torch.rand(4)
    with again():
        third = torch.rand(4)

    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(after, torch.rand(2))


def test_every_key_makes_another_seed():
    seeds = {_seeds.derive(seed, key, n) for seed in (0, 1) for key in "ab" for n in range(50)}
    seeds |= {_seeds.at_step(seed, n) for seed in (0, 1) for n in range(100)}

    assert len(seeds) == 400
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == 400  # what a CPU's generator takes
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_stands_for_a_seed_of_its_own():
    generator = torch.Generator().manual_seed(3)

    assert _seeds.as_seed(generator) != _seeds.as_seed(generator)
    assert _seeds.as_seed(11) == 11


def test_keys_are_seeds():
    """Whole numbers as they are; a key of several by each of them; what is neither is refused."""
    key = np.array([0, 42], np.uint32)
    others = [key[::-1], np.array([1, 42]), np.array([0, 42, 0])]

    assert _seeds.as_seed(np.int64(7)) == _seeds.as_seed(np.array([7])) == 7
    assert _seeds.as_seed(key) == _seeds.as_seed(torch.tensor([0, 42]))
    assert len({_seeds.as_seed(k) for k in (key, *others)}) == 4
    for wrong in ("7", 7.5, np.array([]), np.array([0.5, 1.0]), object()):
        with pytest.raises(TypeError, match="a whole number, a key or a torch.Generator; got"):
            _seeds.as_seed(wrong)
