"""Monitor counts items and tokens per second, and tells each learning rate once."""

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn
from toys import assert_same_run, line_loop, train_task

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, TrainTask, lr_schedules
from trax_torch.supervised._logging import accumulators
from trax_torch.supervised._logging.reports import of_the_clock
from trax_torch.supervised.callbacks import Monitor
from trax_torch.supervised.training import Loop


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows 2 seconds since the last report, always."""
    monkeypatch.setattr(Loop, "seconds", 2.0)


def token_loop(folder=None, n_tasks=1, **kwargs):
    """Sequences of 5, 6, 7, 5, ... tokens, 4 in a batch."""

    def data(seed):
        rng = np.random.default_rng(seed)
        while True:
            for length in (5, 6, 7):
                x = rng.integers(0, 9, (4, length))
                yield x, x[:, 0], np.ones(4, np.float32)

    model = tl.Serial(tl.Embedding(9, 4), tl.Mean(axis=1), tl.Dense(9))
    loss = tl.WeightedCategoryCrossEntropy
    tasks = [
        TrainTask(
            data(i), loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=4, loss_name=str(i)
        )
        for i in range(n_tasks)
    ]
    evals = EvalTask(data(9), loss())
    return line_loop(folder, model=model, task=tasks, evals=evals, callbacks=[Monitor], **kwargs)


def trained(loop, name):
    return loop.history.get("train", f"training/{name}")


def test_monitor_counts_items_and_tokens(clock):
    """Lengths are 6, then 7, 5 and 6 in the span to step 4, then 7, 5, 6 and 7."""
    loop = token_loop()
    loop.run(8)

    assert trained(loop, "items per second") == [(1, 4 / 2), (4, 12 / 2), (8, 16 / 2)]
    tokens = [(1, 4 * 6 / 2), (4, 4 * 18 / 2), (8, 4 * 25 / 2)]
    assert trained(loop, "tokens per second") == tokens


def test_monitor_counts_no_tokens_where_there_are_none(clock):
    loop = line_loop(callbacks=[Monitor])
    loop.run(5)

    assert trained(loop, "items per second") == [(1, 4 / 2), (5, 16 / 2)]
    assert trained(loop, "tokens per second") == []


def test_monitor_counts_over_all_tasks_together(clock):
    loop = token_loop(n_tasks=2)
    loop.run(4)

    assert trained(loop, "items per second")[-2:] == [(4, 12 / 2)] * 2  # in each task's log


def test_monitor_measures_with_the_clock_of_the_loop(monkeypatch):
    """One that goes on by a quarter of a second when the model is called: 4 steps a second."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(accumulators, "time", clock)
    loop = token_loop()
    loop.model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 0.25))
    loop.run(40)

    steps, items = trained(loop, "steps per second"), trained(loop, "items per second")
    assert len(steps) == 11
    assert [v for _, v in items] == pytest.approx([4 * v for _, v in steps])
    assert steps[-1][1] == pytest.approx(4)
    clocked = [name for name in loop.history.metrics_for_mode("train") if of_the_clock(name)]
    assert {"training/items per second", "training/tokens per second"} <= set(clocked)


@pytest.mark.parametrize("cut", [1, 4, 6])
@pytest.mark.parametrize("is_saved_at_the_end", [False, True])
def test_monitor_counts_on_after_a_restart(tmp_path, clock, cut, is_saved_at_the_end):
    """Cut in the middle of a span or at a report, before or after it was told."""
    at = {"checkpoint_at": lambda step: True, "eval_at": lambda step: step % 4 == 0}
    at["save_at_end"] = False
    whole = token_loop(tmp_path / "whole", **at)
    whole.run(10)
    first = token_loop(tmp_path / "cut", **at)
    first.run(cut)
    if is_saved_at_the_end:
        first.save_checkpoint("model")
    resumed = token_loop(tmp_path / "cut", **at)
    resumed.run(10 - cut)

    assert_same_run(resumed, whole)
    assert resumed.callbacks[0].state_dict() == whole.callbacks[0].state_dict()
    for name in ("items per second", "tokens per second"):
        assert trained(resumed, name) == trained(whole, name)


def test_a_report_that_failed_is_told_again_whole(clock, monkeypatch):
    loop = token_loop(save_at_end=False)
    means, fails = loop._parts.evaluators[0].means, [True]

    def failing(seed):
        if fails.pop():
            raise OSError("no data")
        return means(seed)

    loop.run(3)
    monkeypatch.setattr(loop._parts.evaluators[0], "means", failing)
    with pytest.raises(OSError, match="no data"):
        loop.run(1)
    fails += [False] * 3
    loop.run(4)

    assert trained(loop, "items per second") == [(1, 2), (4, 6), (4, 6), (8, 8)]


def grouped(model, lr, head_lr):
    head, body = list(model[-1].parameters()), list(model[:-1].parameters())
    return torch.optim.SGD([{"params": body, "lr": lr}, {"params": head, "lr": head_lr}])


def grouped_loop(folder=None, schedule=None, n_tasks=1, factor=10, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    tasks = [
        train_task(i, grouped(model, lr, factor * lr), lr_schedule=schedule, loss_name=str(i))
        for i, lr in enumerate([0.01, 0.02][:n_tasks])
    ]
    return line_loop(folder, model=model, task=tasks, callbacks=[Monitor], **kwargs)


def test_monitor_logs_the_rate_of_each_group(tmp_path):
    """The rate that the step was taken with, not the one that the scheduler sets after it."""
    halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    whole = grouped_loop(tmp_path / "whole", halving)
    whole.run(10)
    grouped_loop(tmp_path / "cut", halving).run(5)
    resumed = grouped_loop(tmp_path / "cut", halving)
    resumed.run(5)

    assert_same_run(resumed, whole)
    logged = trained(whole, "learning_rate_group0")
    assert logged == trained(whole, "learning_rate")
    assert logged == [(s, pytest.approx(0.01 * 0.5 ** (s - 1))) for s in (1, 5, 10)]
    logged = trained(whole, "learning_rate_group1")
    assert logged == [(s, pytest.approx(0.1 * 0.5 ** (s - 1))) for s in (1, 5, 10)]


def test_monitor_follows_rates_through_a_checkpoint_that_is_loaded_later(tmp_path):
    """The optimizer gets other groups then, which are those to look at."""
    halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    grouped_loop(tmp_path, halving).run(5)
    loop = grouped_loop(None, halving)
    loop.load_checkpoint(str(tmp_path))
    loop.run(5)

    assert trained(loop, "learning_rate_group0") == trained(loop, "learning_rate")


def test_monitor_names_the_task_of_a_rate_and_logs_no_rate_twice():
    loop = grouped_loop(n_tasks=2)
    loop.run(5)
    rates = [
        trained(loop, f"learning_rate_task{j}_group{i}")[-1][1] for j in (0, 1) for i in (0, 1)
    ]
    assert rates == [0.01, 0.1, 0.02, 0.2]

    of_the_step = grouped_loop(schedule=lr_schedules.constant(0.1), factor=1)
    of_one_group = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    for loop in (of_the_step, line_loop(task=of_one_group, callbacks=[Monitor])):
        loop.run(5)
        names = loop.history.metrics_for_mode("train")
        assert [n for n in names if "learning_rate" in n] == ["training/learning_rate"]


def test_monitor_speaks_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = token_loop(tmp_path)
    loop.run(4)

    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    for name in ("training/items per second", "training/tokens per second"):
        told = [(e.step, e.value) for e in events.Scalars(name)]
        want = loop.history.get("train", name)
        assert told == [(step, pytest.approx(value)) for step, value in want]


def test_monitor_never_waits_for_the_device():
    """Tensors without values do: shapes are all it looks at. Many devices count as many."""
    x = torch.empty((3, 7), dtype=torch.int32, device="meta")
    loop = types.SimpleNamespace(
        model=nn.Linear(1, 1), tasks=[], optimizers=[], batch=(x, x), seconds=0.5, n_devices=2
    )
    monitor = Monitor(loop)
    for step in (1, 2):
        monitor.on_step_begin(step)
        monitor.on_step_end(step)

    assert monitor.training_values() == {
        "items per second": 2 * 3 * 2 / 0.5,
        "tokens per second": 2 * 21 * 2 / 0.5,
    }


def test_monitor_takes_batches_of_any_kind():
    """Nests, several inputs; numbers, flags and targets are no tokens."""

    class Two(nn.Module):
        def forward(self, source, target):
            return source

    ints, floats = torch.zeros((3, 7), dtype=torch.int64), torch.zeros((3, 7))
    cases = [
        ((ints, ints, ints), 6, 42),
        ((floats, ints), 6, 21),
        (({"a": floats > 0, "b": [ints]}, None, ints), 6, 21),
        ((torch.tensor(1), ints[0], ints), 14, 0),
    ]
    for batch, n_items, n_tokens in cases:
        loop = types.SimpleNamespace(model=Two(), tasks=[], optimizers=[], batch=batch)
        monitor = Monitor(loop)
        monitor.on_step_end(1)
        monitor.on_step_end(2)
        assert monitor.state_dict()["counts"] == {"items": n_items, "tokens": 2 * n_tokens}
