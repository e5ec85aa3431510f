"""Callbacks hear of a run and see its Loop, and a resumed run goes on with all of them."""

import functools

import numpy as np
import pytest
import torch
from callback_runs import assert_same_averages, averaging, profiling
from toys import assert_same_run, line_loop, train_task

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import TrainingStepCallback, TrainTask
from trax_torch.supervised.callbacks import EarlyStopping, Monitor


class Ends(TrainingStepCallback):
    def __init__(self, loop, ends, fails=False):
        super().__init__(loop)
        self.ends, self.fails = ends, fails

    def on_run_end(self, step):
        self.ends.append(step)
        if self.fails:
            raise OSError("disk full")


def test_callbacks_hear_of_the_end_of_a_run_however_it_ends():
    """By itself, by an error, by a callback that fails: each is told once."""
    ends = []
    told = functools.partial(Ends, ends=ends)
    line_loop(callbacks=[told]).run(3)
    x = np.full((1, 3), np.nan, np.float32)
    broken = TrainTask([(x, x[:, :1], x[:, :1])], tl.L2Loss(), optimizers.SGD(0.1))
    with pytest.raises(optimizers.NonFiniteError):
        line_loop(callbacks=[told], task=broken).run(3)
    with pytest.raises(OSError, match="disk full"):
        line_loop(callbacks=[told, functools.partial(told, fails=True), told]).run(2)

    assert ends == [3, 0, 2, 2, 2]


def test_a_loop_shows_what_callbacks_need():
    class Patient(TrainingStepCallback):
        def on_step_end(self, step):
            (optimizer,) = self._loop.optimizers
            optimizer.param_groups[0]["lr"] *= 0.5

    task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    loop = line_loop(task=task, callbacks=[Patient])
    loop.run(5)

    assert [type(callback) for callback in loop.callbacks] == [Patient]
    rates = loop.history.get("train", "training/learning_rate")
    assert rates == [(1, 0.5), (5, 0.5**5)]
    assert loop.seconds >= 0


def test_with_all_callbacks_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def loop(folder):
        stopping = functools.partial(EarlyStopping, metric="L2Loss", patience=2, min_delta=0.5)
        trace = profiling(first_step=4, n_steps=3)
        task = train_task(n_steps_per_checkpoint=2)
        return line_loop(
            folder, dropout=0.3, task=task, callbacks=[averaging(), stopping, Monitor, trace]
        )

    whole = loop(tmp_path / "whole")
    whole.run(40)
    for n_steps in (3, 3, 40):
        resumed = loop(tmp_path / "cut")
        resumed.run(n_steps)

    assert whole.step < 40  # stopped early
    assert_same_run(resumed, whole)
    assert_same_averages(resumed, whole)
    assert resumed.callbacks[2].state_dict() == whole.callbacks[2].state_dict()
