"""Small training runs, and the signal that strikes them at a place that is known beforehand."""

import functools
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import torch
from torch import nn

from trax_torch import _signals, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, Loop, TrainingStepCallback, TrainTask
from trax_torch.supervised._checkpoint import storage

MODELS = {
    "dropout": lambda: tl.Serial(tl.Dense(6), tl.Tanh(), tl.Dropout(0.3), tl.Dense(1)),
    "BatchNorm": lambda: tl.Serial(tl.Dense(6), tl.BatchNorm((0, 1)), tl.Relu(), tl.Dense(1)),
    "LSTM": lambda: tl.Serial(tl.LSTM(4), tl.Dense(1)),
}
OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.05),
    "Adam": lambda: optimizers.Adam(0.01),
    "Adafactor": lambda: optimizers.Adafactor(0.05),
}
N_STEPS, CHECKPOINTS, EVALS = 9, (1, 4, 6, 9), (1, 6, 9)
N_ITEMS, BATCH = 24, 4


@dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    optimizer: str = "Adam"
    model: str = "dropout"
    n_workers: int = 0
    n_tasks: int = 1
    n_parts: int = 1
    background: bool = False


@dataclass(frozen=True)
class Blow:
    """What strikes a run, and where.

    Attributes:
      step: at which step, counted from 1; 0 for never.
      place: 'step', the middle of its forward pass; 'save'; 'evals'; or 'data', when the item of
        this number is first made during a run, by a worker if there are any.
      signum: the signal.
      to_group: whether the whole group of processes gets it, as from a terminal.
      n_times: how many come.
      apart: how many seconds lie between them.
      echo: for how many seconds a second one is taken for the first; None for those of the package.
    """

    step: int = 0
    place: str = "step"
    signum: int = signal.SIGKILL
    to_group: bool = False
    n_times: int = 1
    apart: float = 0.02  # whoever is to be interrupted here, is
    echo: float | None = None

    def strike(self, pid):
        for _ in range(self.n_times):
            (os.killpg if self.to_group else os.kill)(pid, self.signum)
            time.sleep(self.apart)


class Watch(TrainingStepCallback):
    """Knows where a run is; and draws a number at each step, which is to go on as well."""

    where = None  # (step, place), of the one run of this process

    def __init__(self, loop, blow):
        super().__init__(loop)
        Watch.blow = blow

    def on_step_begin(self, step):
        torch.rand(1, generator=self._loop.new_rng())
        Watch.where = (step, "step")

    def on_step_end(self, step):
        Watch.where = (step, "save")

    def on_evals_begin(self, step):
        Watch.where = (step, "evals")

    @staticmethod
    def passes(place):
        """Is called at each place, and lets the blow fall at its own."""
        if Watch.where == (Watch.blow.step, Watch.blow.place) and place == Watch.blow.place:
            Watch.where = None
            Watch.blow.strike(os.getpid())


class Squares(nn.Module):
    """The weighted mean of squares, in the middle of which a blow may fall."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, output, targets, weights):
        Watch.passes(self.place)
        return (weights * (output - targets) ** 2).sum() / weights.sum()


class Items(torch.utils.data.Dataset):
    """Items known by their numbers, with uneven weights; making one may let the blow fall."""

    def __init__(self, seed, blow):
        self.seed, self.blow, self.trainer = seed, blow, os.getpid()
        self.n_running = _signals.n_running()

    def __len__(self):
        return N_ITEMS

    def __getitem__(self, i):
        if self.blow.place == "data" and i == self.blow.step and self.n_running.value:
            self.blow.strike(self.trainer)
        g = torch.Generator().manual_seed(1000 * self.seed + i)
        x = torch.randn(2, 3, generator=g)
        return x, x.sum(1, keepdim=True) + 0.1, torch.rand(2, 1, generator=g) + 0.1


def make_loop(folder, setup, blow=None):
    """Returns a loop of two kinds of checkpoints, evals, and all that it is to remember."""
    blow = blow or Blow()

    def data(seed, n_workers, blow=Blow()):
        return torch.utils.data.DataLoader(
            Items(seed, blow),
            BATCH,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            num_workers=n_workers,
        )

    def task(i):
        return TrainTask(
            data(i, setup.n_workers, blow if i == 0 else Blow()),
            Squares("step"),
            OPTIMIZERS[setup.optimizer](),
        )

    return Loop(
        MODELS[setup.model](),
        [task(i) for i in range(setup.n_tasks)],
        eval_tasks=EvalTask(data(10, 0), Squares("evals"), n_eval_batches=2),
        output_dir=str(folder),
        checkpoint_at=lambda step: step in CHECKPOINTS,
        permanent_checkpoint_at=lambda step: step == 6,
        eval_at=lambda step: step in EVALS,
        checkpoint_low_metric="Squares",
        random_seed=3,
        callbacks=[functools.partial(Watch, blow=blow)],
        n_accumulation_steps=setup.n_parts,
        background_saves=setup.background,
        progress=False,
    )


def train(folder, setup, blow=None):
    """Trains to step `N_STEPS`, from wherever the folder's checkpoint says, as a script does."""
    blow = blow or Blow()
    if blow.to_group:
        os.setsid()
    if blow.echo is not None:
        _signals._ECHO = blow.echo
    write = storage._write

    def write_and_pass(*args):
        Watch.passes("save")
        write(*args)

    storage._write = write_and_pass
    loop = make_loop(folder, setup, blow)
    loop.run(until=N_STEPS)
    loop.save_checkpoint("final")


def train_ignoring_signals(*args):
    """Trains as under `nohup`."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    train(*args)


def train_and_strike_a_worker_that_begins(folder, setup, blow):
    """Trains; the first worker to begin meanwhile strikes the group, knowing of no signals yet."""
    set_num_threads = torch.set_num_threads  # which a loader's worker calls as it begins

    def strike(n):
        with is_due.get_lock():
            if n_running.value and is_due.value:
                is_due.value = False
                blow.strike(trainer)
        set_num_threads(n)

    os.setsid()
    trainer, n_running = os.getpid(), _signals.n_running()
    is_due = multiprocessing.Value("b", True)
    torch.set_num_threads = strike
    make_loop(folder, setup).run(until=N_STEPS)
