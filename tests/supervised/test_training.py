"""The loop: what happens in a run, in which order, and what decides it."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toys import eval_task, line_loop, line_model, train_task

from trax_torch import layers as tl
from trax_torch.supervised import TrainingStepCallback, training


def test_a_run_brings_the_loss_down():
    loop = line_loop()
    loop.run(200)

    values = [v for _, v in loop.history.get("eval", "metrics/L2Loss")]
    assert values[-1] < 0.1 * values[0]
    assert loop.step == 200


def test_a_run_of_no_steps_does_nothing():
    loop = line_loop()
    loop.run(0)
    assert loop.step == 0
    with pytest.raises(ValueError, match="0 steps or more; got -1"):
        loop.run(-1)


# The order of events


class Recorder(TrainingStepCallback):
    """Writes down what it is told."""

    def __init__(self, loop, calls, every=1):
        super().__init__(loop)
        self.calls, self.every = calls, every

    def call_at(self, step):
        return step % self.every == 0

    def on_step_begin(self, step):
        self.calls.append(("begin", step, self._loop.step))

    def on_step_end(self, step):
        self.calls.append(("end", step, self._loop.step))


def test_the_events_of_a_step_come_in_order(tmp_path, monkeypatch):
    """Step, checkpoint, permanent checkpoint, report and evals, best checkpoints."""
    calls = []
    loop = line_loop(
        tmp_path,
        task=train_task(n_steps_per_checkpoint=2, n_steps_per_permanent_checkpoint=4),
        checkpoint_low_metric="L2Loss",
        callbacks=[functools.partial(Recorder, calls=calls)],
    )
    monkeypatch.setattr(loop._saver._saver._folder, "save", lambda name, *_: calls.append(name))
    monkeypatch.setattr(loop, "run_evals", lambda _: calls.append("evals"))
    monkeypatch.setattr(loop.history, "get", lambda *_: [(loop.step, 1.0)])

    loop.run(4)

    saved = ["model", "evals", "lowest_L2Loss"]
    assert calls == [
        *[("begin", 1, 0), ("end", 1, 1), "model", "model_1", *saved[1:]],
        *[("begin", 2, 1), ("end", 2, 2), *saved],
        *[("begin", 3, 2), ("end", 3, 3)],
        *[("begin", 4, 3), ("end", 4, 4), "model", "model_4", *saved[1:]],
    ]


def test_callbacks_are_called_when_they_say(capsys):
    calls = []
    line_loop(callbacks=[functools.partial(Recorder, calls=calls, every=3)]).run(7)

    assert [(what, step) for what, step, _ in calls] == [
        ("begin", 3),
        ("end", 3),
        ("begin", 6),
        ("end", 6),
    ]


def test_evals_are_announced_to_callbacks():
    calls = []

    class Note(TrainingStepCallback):
        def on_evals_begin(self, step):
            calls.append(("begin", step))

        def on_evals_end(self, step):
            calls.append(("end", step))

        def training_values(self):
            return {"mine": 0.5}

    loop = line_loop(callbacks=[Note])
    loop.run(5)
    with pytest.raises(ZeroDivisionError):
        bad = line_loop(callbacks=[Note])
        bad._parts.evaluators[0].means = lambda seed: 1 / 0
        bad.run(1)

    assert calls == [("begin", 1), ("end", 1), ("begin", 5), ("end", 5), ("begin", 1), ("end", 1)]
    assert loop.history.get("train", "training/mine") == [(1, 0.5), (5, 0.5)]


def test_a_callback_can_stop_a_run():
    class Enough(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 3:
                self._loop.stop()

    loop = line_loop(callbacks=[Enough])
    loop.run(10)
    assert loop.step == 3
    loop.run(2)
    assert loop.step == 5


def test_a_checkpoint_comes_before_the_evals_that_might_fail(tmp_path):
    """An eval that fails cannot lose the step."""

    class Broken(nn.Module):
        def forward(self, output, targets):
            raise RuntimeError("broken metric")

    loop = line_loop(tmp_path, evals=eval_task(metrics=[Broken()]))
    with pytest.raises(tl.LayerError, match="broken metric"):
        loop.run(1)

    assert line_loop(tmp_path).step == 1


def test_evals_come_with_checkpoints_unless_told_otherwise(tmp_path):
    loop = line_loop(tmp_path, checkpoint_at=lambda step: step % 3 == 0)
    loop.run(6)

    assert [step for step, _ in loop.history.get("eval", "metrics/L2Loss")] == [3, 6]


def test_predicates_are_asked_once_a_step():
    asked = []
    loop = line_loop(eval_at=lambda step: asked.append(step) or step % 2 == 0)
    loop.run(4)

    assert [asked.count(step) for step in (2, 3, 4)] == [1, 1, 1]


# Tasks and their turns


def test_several_tasks_take_turns_on_one_model(tmp_path):
    """Own optimizers and slots, own folders for logs, named by export_prefix or number."""
    tasks = [
        train_task(0, export_prefix="even", loss_name="loss_a"),
        train_task(1, loss_name="loss_b"),
    ]
    loop = line_loop(tmp_path, task=tasks, evals=[eval_task(), eval_task(101)])
    loop.run(10)

    assert [len(t.optimizer.state) for t in loop._parts.trainers] == [4, 4]
    assert loop._parts.trainers[0].optimizer is not loop._parts.trainers[1].optimizer
    folders = {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("events*")}
    assert folders == {"even/train", "1/train", "0/eval", "1/eval"}
    assert loop.history.metrics_for_mode("train").count("metrics/loss_a") == 1
    steps = [t.optimizer.state_dict()["state"][0]["step"].item() for t in loop._parts.trainers]
    assert steps == [6.0, 6.0]  # Adam's own count starts at 1


def test_which_task_says_whose_turn_it_is():
    tasks = [train_task(0, loss_name="a"), train_task(1, loss_name="b")]
    loop = line_loop(task=tasks, which_task=lambda step: int(step > 3), eval_at=lambda step: True)
    loop.run(5)

    assert [step for step, _ in loop.history.get("train", "metrics/a")] == [1, 2, 3]
    assert [step for step, _ in loop.history.get("train", "metrics/b")] == [4, 5]


# Seeds and weights


def test_the_seed_decides_everything():
    """Initial weights and dropout: same seed, same run; another seed, another run."""
    runs = []
    for seed in (1, 1, 2):
        loop = line_loop(dropout=0.3, random_seed=seed)
        loop.run(4)
        runs.append([p.clone() for p in loop.model.parameters()])

    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_new_rng_gives_another_generator_each_time():
    def draws():
        loop = line_loop(random_seed=3)
        return [torch.rand(1, generator=loop.new_rng()).item() for _ in range(3)]

    assert draws() == draws()
    assert len(set(draws())) == 3


def test_an_initialized_model_is_never_initialized_again():
    model = line_model()
    model.init(np.zeros((1, 3), np.float32), rng=5)
    before = [p.clone() for p in model.parameters()]

    loop = line_loop(model=model)

    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_weights_are_updated_from_trees_and_from_mappings():
    loop = line_loop()
    ones = tuple(tuple(torch.ones_like(t) for t in w) for w in loop.model.weights)
    loop.update_weights_and_state(weights=ones)
    assert all(bool((p == 1).all()) for p in loop.model.parameters())

    zeros = {name: np.zeros(p.shape) for name, p in loop.model.named_parameters()}
    loop.update_weights_and_state(weights=zeros)
    assert all(bool((p == 0).all()) for p in loop.model.parameters())
    with pytest.raises(IndexError, match="0.weight is missing"):
        loop.update_weights_and_state(weights={})


def test_init_host_and_devices_tells_of_one_process():
    assert training.init_host_and_devices(1, 7) == (True, 1, 1, 7)
    seed = training.init_host_and_devices()[3]
    assert 0 <= seed < 2**32
    with pytest.raises(ValueError, match="n_devices=8, but the launcher started 1 processes"):
        training.init_host_and_devices(8)
