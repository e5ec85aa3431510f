"""Data that shuffles by the epoch is told which one begins, also in a run that was resumed."""

import functools

import pytest
import torch
from streams import Stateful
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from trax_torch.supervised import Loop, TrainTask, share_of

N = 12


class Rows(Dataset):
    """Rows (i, 0), i from 0; after set_epoch(e), i + 100 e."""

    moves = False
    epoch = 0

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.tensor([float(i + 100 * self.epoch * self.moves)]), torch.zeros(1)

    def set_epoch(self, epoch):
        self.epoch = epoch


class Moving(Rows):
    moves = True


def of_sampler(shuffled=True):
    sampler = DistributedSampler(Rows(), num_replicas=2, rank=0, shuffle=shuffled, seed=3)
    return DataLoader(Rows(), batch_size=2, sampler=sampler)


LOADERS = {
    "sampler": of_sampler,
    "batch sampler": lambda: DataLoader(
        Rows(),
        batch_sampler=torch.utils.data.BatchSampler(of_sampler().sampler, 2, drop_last=False),
    ),
    "dataset": lambda: DataLoader(Moving(), batch_size=4),
    "shared out": lambda: share_of(of_sampler(), 0, 2),
    "stateful": Stateful,
}


def drawn(loop, n):
    """The first column of the next n batches that are trained on."""
    found = []
    for _ in range(n):
        loop.run(1)
        found.append(loop.batch[0].flatten().int().tolist())
    return found


def loop_of(make, output_dir=None):
    torch.manual_seed(0)
    sample = torch.zeros(2, 1), torch.zeros(2, 1)
    optimizer = functools.partial(torch.optim.SGD, lr=1e-6)
    task = TrainTask(
        make(), nn.MSELoss(), optimizer, sample_batch=sample, n_steps_per_checkpoint=None
    )
    return Loop(nn.Linear(1, 1), task, output_dir=output_dir, random_seed=1, progress=False)


def test_epochs_of_a_distributed_sampler_are_those_of_pytorchs_own_loop():
    own, want = of_sampler(), []
    for epoch in range(3):
        own.sampler.set_epoch(epoch)
        want += [x.flatten().int().tolist() for x, _ in own]

    assert drawn(loop_of(of_sampler), 9) == want
    assert want[:3] != want[3:6]


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_resumed_run_sees_the_epochs_of_one_that_was_not_stopped(make, tmp_path):
    """At every cut of two and a half epochs, the ends of epochs included."""
    n = 10
    want = drawn(loop_of(make), n)

    for cut in range(1, n):
        folder = str(tmp_path / str(cut))
        first = loop_of(make, folder)
        assert drawn(first, cut) == want[:cut]
        first.save_checkpoint("model")
        assert drawn(loop_of(make, folder), n - cut) == want[cut:]


def test_an_iterable_that_gives_nothing_is_still_an_error():
    class Nothing(Stateful):
        def __iter__(self):
            return iter(())

    loop = loop_of(Nothing)
    with pytest.raises(ValueError, match="is empty"):
        loop.run(1)


def test_nobody_is_told_who_does_not_ask():
    """A sampler without epochs draws as ever."""
    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(Rows(), generator=generator)
    loop = loop_of(lambda: DataLoader(Rows(), batch_size=6, sampler=sampler))

    rows = drawn(loop, 4)

    assert all(sorted(rows[i] + rows[i + 1]) == list(range(N)) for i in (0, 2))
