"""Trains for some steps under a launcher, and meets what a test has in mind for it."""

import argparse
import functools
import os
import pathlib
import signal
import time

import numpy as np
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, share_of
from trax_torch.supervised.callbacks import TrainingStepCallback


def batches(seed):
    for i in range(1_000_000):
        rng = np.random.default_rng([seed, i])
        x = rng.normal(size=(8, 6)).astype(np.float32)
        yield x, np.tanh(x[:, :1] * x[:, 1:2]), rng.random((8, 1)).astype(np.float32)


class Fate(TrainingStepCallback):
    """Before each step: waits, leaves a mark at some step, and dies at some step, once."""

    def __init__(self, loop, args, rank):
        super().__init__(loop)
        self._args, self._rank = args, rank

    def on_step_begin(self, step):
        time.sleep(self._args.pause)
        if self._args.mark and step == 6 and self._rank == 0:
            pathlib.Path(self._args.mark).write_text(os.environ.get("WORLD_SIZE", "1"))
        if self._args.die_once and step == 7 and self._rank == 1:
            died = pathlib.Path(self._args.die_once)
            if not died.exists():
                died.write_text(str(time.monotonic()))
                os.kill(os.getpid(), signal.SIGKILL)


def train(rank, folder, *options):
    args = parser().parse_args([str(folder), *map(str, options)])
    torch.manual_seed(0)
    layers = [nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 1)]
    loop = Loop(
        nn.Sequential(*layers),
        TrainTask(
            share_of(batches(0)), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5
        ),
        eval_tasks=EvalTask(share_of(batches(1)), tl.L2Loss()),
        output_dir=args.folder,
        random_seed=0,
        callbacks=[functools.partial(Fate, args=args, rank=rank)],
        device="cpu",
        progress=False,
        timeout=args.timeout,
    )
    loop.run(until=args.steps)
    return loop.step


def parser():
    args = argparse.ArgumentParser()
    args.add_argument("folder")
    args.add_argument("--steps", type=int, default=12, help="how far to train in all")
    args.add_argument("--pause", type=float, default=0.0, help="seconds between steps")
    args.add_argument("--mark", help="a file to write at step 6")
    args.add_argument("--die-once", help="rank 1 dies at step 7 unless this file is there")
    args.add_argument("--timeout", type=float, default=300.0)
    return args


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    own_rank = int(os.environ["RANK"])
    try:
        train(own_rank, *sys.argv[1:])
    except Exception as error:
        path = pathlib.Path(f"{sys.argv[1]}.rank{own_rank}.error")
        path.write_text(f"{time.monotonic()} {type(error).__name__}: {error}")
        raise
