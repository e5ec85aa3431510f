"""Averages of weights of which each rank holds a part are saved and read as the weights are."""

import functools

import numpy as np
import pieces
import pytest
import ranks
import torch

from trax_torch import _distributed
from trax_torch.supervised import callbacks
from trax_torch.supervised._checkpoint import shards

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

STEPS = 4


def averages_of(loop):
    averages = loop.callbacks[0].state_dict()["averages"].items()
    return {name: _distributed.whole(x).numpy().copy() for name, x in averages}


def run(rank, size, folder, until=STEPS, strategy="fsdp"):
    """Goes on from a folder, if it is there, to a step.

    Returns:
      Averages at first and at the end, and weights; how many numbers of averages this rank has read
      one by one, and of how many of them it holds its part.
    """
    n_read, read = [], shards.Saved.read

    def counted(self, box=None):
        tensor = read(self, box)
        n_read.extend([tensor.numel()] * (tensor.dim() > 0))
        return tensor

    make = functools.partial(pieces.make_loop, rank, size, folder, strategy=strategy)
    shards.Saved.read = counted  # in a process of its own
    averaging = functools.partial(callbacks.ExponentialMovingAverage, decay=0.5)
    loop = make(callbacks=[averaging])
    held = loop.callbacks[0].state_dict()["averages"].values()
    n_held = sum(_distributed.local(x).numel() for x in held)
    first = averages_of(loop)
    loop.run(until=until)
    return first, averages_of(loop), pieces.weights_of(loop.model), sum(n_read), n_held


def values(path, size, **kwargs):
    return ranks.values(path, size, functools.partial(run, size=size, **kwargs))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Averages and weights of a run of one process, that none has cut, of twice as many steps."""
    ((_, *found, _, _),) = values(tmp_path_factory.mktemp("alone"), 1, folder=None, until=2 * STEPS)
    return found


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (1, 2), (3, 1)])
def test_each_rank_reads_its_part_of_averages_whoever_saved_them(tmp_path, alone, before, after):
    """They are as they were, bit for bit; the run goes on as one that nobody has cut."""
    folder = tmp_path / "run"
    saved = values(tmp_path / "before", before, folder=folder)[0][1]

    found = values(tmp_path / "after", after, folder=folder, until=2 * STEPS)
    n_all = sum(x.size for x in saved.values())
    assert sum(n_held for *_, n_held in found) == n_all
    for first, *rest, n_read, n_held in found:
        assert first.keys() == saved.keys()
        assert all(np.array_equal(first[name], saved[name]) for name in saved)
        # Two slots and the average; weights twice, since all is compared before any is set.
        assert after == 1 or n_read == (3 + 2) * n_held
        for mine, wanted in zip(rest, alone, strict=True):
            for name, value in wanted.items():
                np.testing.assert_allclose(mine[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_with_averages_in_parts_goes_on_bit_for_bit(tmp_path, size):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for until in (STEPS, 2 * STEPS):
        parts = values(tmp_path / f"{until}", size, folder=cut, until=until)
    uncut = values(tmp_path / "uncut", size, folder=whole, until=2 * STEPS)

    for (_, *mine, _, _), (_, *theirs, _, _) in zip(parts, uncut, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in other)


def run_apart(rank, folder, until):
    return run(rank, 2, pieces.own_folder(folder, rank), until)


def test_averages_are_read_where_each_machine_has_a_folder_of_its_own(tmp_path, alone):
    """No rank needs a part that another one's folder has."""
    for until in (STEPS, 2 * STEPS):
        work = functools.partial(run_apart, folder=tmp_path / "run", until=until)
        found = ranks.values(tmp_path / f"{until}", 2, work)

    for first, *rest, _, _ in found:
        assert first.keys() == rest[0].keys()
        for mine, wanted in zip(rest, alone, strict=True):
            for name, value in wanted.items():
                np.testing.assert_allclose(mine[name], value, rtol=1e-6, atol=1e-9)
