"""A loader that several tasks share gives each what it would give it alone; going back is exact."""

import functools
import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trax_torch.data import _streams
from trax_torch.supervised import EvalTask, Loop, TrainTask

N = 24


def rows():
    x = torch.arange(float(N))[:, None]
    return TensorDataset(x, torch.zeros(N, 1))


def first_rows(loop, n):
    found = []
    for _ in range(n):
        loop.run(1)
        found.append(int(loop.batch[0][0]))
    return found


def task_of(loader):
    return TrainTask(
        loader,
        nn.MSELoss(),
        functools.partial(torch.optim.SGD, lr=1e-6),
        sample_batch=(torch.zeros(4, 1), torch.zeros(4, 1)),
        n_steps_per_checkpoint=None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_eval_batches", [2, None])
def test_evals_leave_training_by_workers_that_persist_where_it_is(n_eval_batches):
    loader = DataLoader(rows(), 4, num_workers=1, persistent_workers=True)
    evals = EvalTask(loader, nn.MSELoss(), n_eval_batches=n_eval_batches)
    loop = Loop(nn.Linear(1, 1), task_of(loader), eval_tasks=evals, eval_at=lambda s: s % 2 == 0)

    assert first_rows(loop, 8) == [0, 4, 8, 12, 16, 20, 0, 4]


@pytest.mark.slow
def test_two_tasks_on_workers_that_persist_go_each_their_way():
    loader = DataLoader(rows(), 4, num_workers=1, persistent_workers=True)
    loop = Loop(nn.Linear(1, 1), [task_of(loader), task_of(loader)])

    assert first_rows(loop, 6) == [0, 0, 4, 4, 8, 8]


@pytest.mark.slow
def test_a_loader_is_free_again_when_its_task_has_gone():
    loader = DataLoader(rows(), 4, num_workers=1, persistent_workers=True)
    first = _streams.BatchStream(loader, "data")
    first.next()
    workers = loader._iterator
    del first
    gc.collect()

    second = _streams.BatchStream(loader, "data")

    assert int(second.next()[0][0]) == 0
    assert loader._iterator is workers


def test_a_shuffled_loader_gives_the_same_batches_after_going_back(tmp_path):
    """In one process: the loader's generator has gone on meanwhile."""
    loader = DataLoader(rows(), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    loop = Loop(nn.Linear(1, 1), task_of(loader), output_dir=str(tmp_path), random_seed=1)
    first_rows(loop, 3)
    loop.save_checkpoint("here")
    want = first_rows(loop, 9)

    for _ in range(2):
        loop.load_checkpoint(filename="here")
        assert first_rows(loop, 9) == want
