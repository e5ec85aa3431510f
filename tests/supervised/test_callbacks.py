"""The callbacks that ship: each does what it promises, and a resumed run goes on with it."""

import functools
import gzip
import json
import math
import types

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from toys import (
    assert_resumes,
    assert_same_run,
    batches,
    eval_task,
    history_of,
    line_loop,
    line_model,
    state_of,
    train_task,
)

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, History, TrainingStepCallback, TrainTask, lr_schedules
from trax_torch.supervised._logging import accumulators
from trax_torch.supervised._logging.reports import of_the_clock
from trax_torch.supervised.callbacks import (
    EarlyStopping,
    ExponentialMovingAverage,
    Monitor,
    ProfilerTrace,
)
from trax_torch.supervised.training import Loop

ALWAYS = {"checkpoint_at": lambda step: True, "eval_at": lambda step: True}


class Weights(TrainingStepCallback):
    """Writes down the weights after each step, as numpy's in double precision."""

    def __init__(self, loop):
        super().__init__(loop)
        self.seen = []

    def on_step_end(self, step):
        self.seen.append([np.array(p.tolist()) for p in self._loop.model.parameters()])


# What callbacks may do.


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


# EarlyStopping


def loop_with_metric(values, folder=None, **kwargs):
    """A loop whose metric has values[step] at each step."""
    stopping = functools.partial(EarlyStopping, metric="L2Loss", **kwargs)
    loop = line_loop(folder, callbacks=[stopping], **ALWAYS)
    loop._parts.evaluators[0].means = lambda seed: {"L2Loss": values[loop.step]}
    return loop


def steps_until_stopped(values, **kwargs):
    """The step that EarlyStopping stops at, fed with one value a step; None for none."""
    history, stopped = History(), []
    task = types.SimpleNamespace(metric_names=["loss"])
    loop = types.SimpleNamespace(eval_tasks=[task], history=history, stop=stopped.append)
    stopping = EarlyStopping(loop, "loss", **kwargs)
    for step, value in enumerate(values):
        history.append("eval", "metrics/loss", step, value)
        stopping.on_evals_end(step)
        if stopped:
            return step
    return None


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, -3.0, math.nan, math.inf, -math.inf])),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_early_stopping_stops_when_patience_is_at_its_end(values, patience, min_delta):
    """At the first eval after which the last `patience` ones were no better than those before."""

    def improves(i):  # by the definition, over again at each i
        best = math.inf
        for value in values[:i]:
            if math.isfinite(value) and value < best - min_delta:
                best = value
        return math.isfinite(values[i]) and values[i] < best - min_delta

    failed = [not improves(i) for i in range(len(values))]
    want = next((i for i in range(len(values)) if all(failed[max(0, i - patience + 1) : i + 1])
                 and i + 1 >= patience), None)  # fmt: skip

    assert steps_until_stopped(values, patience=patience, min_delta=min_delta) == want
    mirrored = [-value for value in values]
    kwargs = {"patience": patience, "min_delta": min_delta, "mode": "max"}
    assert steps_until_stopped(mirrored, **kwargs) == want


def test_early_stopping_says_why(capsys):
    loop = loop_with_metric([9, 3, 1, 2, 2, 2, 2, 2, 2], patience=3)
    loop.run(8)

    assert loop.step == 5
    line = "Step      5: Stopped: L2Loss has not improved for 3 evals; its best is 1, at step 2."
    assert line in capsys.readouterr().out.splitlines()
    nan = loop_with_metric([math.nan] * 9, patience=2)
    nan.run(8)
    assert nan.step == 2
    assert "has not improved for 2 evals; its best is none." in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_early_stopping_counts_on_after_a_restart(tmp_path, cut):
    values = [9, 3, 1, 2, 2, 2, 2, 2, 2]
    loop_with_metric(values, tmp_path, patience=3).run(cut)
    resumed = loop_with_metric(values, tmp_path, patience=3)
    resumed.run(8)

    assert resumed.step == 5


def test_a_stopped_run_stops_again_unless_it_improves(tmp_path):
    """Resumed before its last evals, it takes no step; in the same process, those to the next."""
    values = [9, 1, 2, 2, 2, 2, 0, 2, 2, 2]
    loop = loop_with_metric(values, tmp_path, patience=2)
    loop.run(9)
    assert loop.step == 3
    resumed = loop_with_metric(values, tmp_path, patience=2)
    resumed.run(9)
    assert resumed.step == 3

    ends = []
    for _ in range(3):
        loop.run(6)
        ends.append(loop.step)
    assert ends == [4, 5, 8]  # better at 6


def test_the_last_of_several_evals_at_a_step_counts():
    values = [9, 1, 2, 2]
    loop = loop_with_metric(values, patience=2)
    loop.run(2)
    values[2] = 0
    loop.run_evals()
    loop.run_evals()
    loop.run(1)

    assert not loop._stopping.is_due


def test_an_eval_that_failed_stops_nothing(capsys):
    loop = loop_with_metric([9, 1, 2], patience=1)
    loop.run(5)
    assert loop.step == 2
    with pytest.raises(IndexError):
        loop.run(5)  # there is no value for step 3

    assert capsys.readouterr().out.count("Stopped") == 1


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"metric": "accuracy"}, r"got 'accuracy', and they measure \['L2Loss'\]"),
        ({"patience": 0}, "patience is a number of evals, at least 1; got 0"),
        ({"mode": "low"}, "mode is 'min' or 'max'; got 'low'"),
        ({"min_delta": -1.0}, "min_delta is a finite number, at least 0; got -1.0"),
        ({"min_delta": math.nan}, "min_delta is a finite number"),
    ],
)
def test_early_stopping_refuses_what_it_cannot_follow(kwargs, match):
    with pytest.raises(ValueError, match=match):
        EarlyStopping(line_loop(), **{"metric": "L2Loss", "patience": 1, **kwargs})


def test_early_stopping_refuses_a_metric_of_several_tasks():
    loop = line_loop(evals=[eval_task(), eval_task(1)])
    with pytest.raises(ValueError, match=r"they measure \['L2Loss', 'L2Loss'\]. Give EvalTask"):
        EarlyStopping(loop, "L2Loss", patience=1)


# ExponentialMovingAverage


def averaging(decay=0.6):
    return functools.partial(ExponentialMovingAverage, decay=decay)


def average_by_hand(seen, decay):
    average = seen[0]
    for k, weights in enumerate(seen[1:], start=2):
        d = min(decay, k / (9 + k))
        average = [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
    return average


def weights_in(loop):
    return [p.detach().clone() for p in loop.model.parameters()]


def assert_averages(loop, want, tolerance=1e-6):
    """Asserts what weights the averages put in place, and that those before come back."""
    before = weights_in(loop)
    (ema,) = [c for c in loop.callbacks if isinstance(c, ExponentialMovingAverage)]
    with ema.applied() as model:
        assert model is loop.model
        for p, average in zip(model.parameters(), want, strict=True):
            np.testing.assert_allclose(p.tolist(), average, tolerance, tolerance)
    assert all(map(torch.equal, weights_in(loop), before))


@settings(max_examples=8, deadline=None)
@given(n_steps=st.integers(1, 20), decay=st.sampled_from([0.0, 0.3, 0.6, 0.999]))
def test_the_average_is_that_of_the_formula(n_steps, decay):
    loop = line_loop(callbacks=[averaging(decay), Weights])
    loop.run(n_steps)

    assert_averages(loop, average_by_hand(loop.callbacks[1].seen, decay))


def test_evals_measure_the_averages_and_training_knows_nothing_of_them():
    """Each eval is that of a model with averaged weights; the training run is the same."""
    at = {"eval_at": lambda step: step % 3 == 0}
    loop = line_loop(callbacks=[averaging(), Weights], dropout=0.3, **at)
    loop.run(9)
    plain = line_loop(dropout=0.3, **at)
    plain.run(9)

    measured = []
    data = batches(100)
    next(data)  # the sample
    for n in (3, 6, 9):
        x, y, _ = next(data)
        w1, b1, w2, b2 = average_by_hand(loop.callbacks[1].seen[:n], 0.6)
        outputs = np.tanh(x @ w1.T + b1) @ w2.T + b2
        if w1.shape == (3, 8):
            outputs = np.tanh(x @ w1 + b1) @ w2 + b2
        measured.append((n, pytest.approx(((outputs - y) ** 2).mean(), rel=1e-4)))
    assert loop.history.get("eval", "metrics/L2Loss") == measured
    assert plain.history.get("eval", "metrics/L2Loss") != measured
    assert history_of(loop)["train"] == history_of(plain)["train"]
    assert all(torch.equal(v, state_of(plain)[k]) for k, v in state_of(loop).items())


def test_with_decay_0_the_run_is_the_one_without():
    loop, plain = line_loop(callbacks=[averaging(0.0)]), line_loop()
    loop.run(10)
    plain.run(10)

    assert_same_run(loop, plain)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 6), min_size=2, max_size=3), period=st.integers(1, 4))
def test_a_resumed_average_equals_an_uninterrupted_one(cuts, period, tmp_path_factory):
    """Weights, averages and what evals measured with them, to the last bit."""
    at = {"checkpoint_at": lambda step: True, "eval_at": lambda step: step % period == 0}
    whole = line_loop(dropout=0.3, callbacks=[averaging()], **at)
    whole.run(sum(cuts))
    folder = tmp_path_factory.mktemp("cut")
    for n_steps in cuts:
        part = line_loop(folder, dropout=0.3, callbacks=[averaging()], **at)
        part.run(n_steps)

    assert_same_run(part, whole)
    assert_same_averages(part, whole)


def assert_same_averages(one, other):
    mine, theirs = (loop.callbacks[0].state_dict() for loop in (one, other))
    assert mine["n_steps"] == theirs["n_steps"] > 0
    assert mine["averages"].keys() == theirs["averages"].keys() != set()
    assert all(torch.equal(a, theirs["averages"][k]) for k, a in mine["averages"].items())


def test_averages_that_are_not_resumed_show(tmp_path, monkeypatch):
    """The comparison can fail."""
    whole = line_loop(callbacks=[averaging()], **ALWAYS)
    whole.run(8)
    line_loop(tmp_path, callbacks=[averaging()], **ALWAYS).run(4)
    monkeypatch.setattr(ExponentialMovingAverage, "load_state_dict", lambda *_: None)
    resumed = line_loop(tmp_path, callbacks=[averaging()], **ALWAYS)
    resumed.run(4)

    with pytest.raises(AssertionError):
        assert_same_run(resumed, whole)


def test_weights_are_back_though_an_eval_failed():
    class Broken(nn.Module):
        def forward(self, output, targets):
            if broken:
                raise RuntimeError("broken metric")
            return (output - targets).abs().mean()

    broken = False
    loop = line_loop(callbacks=[averaging(), Weights], evals=eval_task(metrics=[Broken()]))
    loop.run(4)
    broken = True
    with pytest.raises(tl.LayerError, match="broken metric"):
        loop.run(1)

    last = loop.callbacks[1].seen[-1]
    assert all(map(np.array_equal, [np.array(w.tolist()) for w in weights_in(loop)], last))
    broken = False
    loop.run(2)
    assert_averages(loop, average_by_hand(loop.callbacks[1].seen, 0.6))


class Skipping:
    """Data with one batch that is not finite."""

    def __init__(self, bad):
        self.i, self.bad = -1, bad  # the sample comes first

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        x, y, w = next(batches(self.i))
        return (x * np.float32(math.nan) if self.i == self.bad else x), y, w


def test_a_skipped_step_counts_as_one_that_stood_still():
    task = TrainTask(Skipping(4), tl.L2Loss(), optimizers.Adam(0.1), n_steps_per_checkpoint=None)
    loop = line_loop(task=task, callbacks=[averaging(), Weights], on_nonfinite="skip")
    loop.run(7)

    seen = loop.callbacks[1].seen
    assert len(seen) == 7
    assert all(map(np.array_equal, seen[3], seen[2]))
    assert_averages(loop, average_by_hand(seen, 0.6))


def test_a_step_that_raised_is_averaged_in_once():
    task = TrainTask(Skipping(4), tl.L2Loss(), optimizers.Adam(0.1), n_steps_per_checkpoint=None)
    loop = line_loop(task=task, callbacks=[averaging(), Weights])
    with pytest.raises(optimizers.NonFiniteError):
        loop.run(7)
    loop.run(4)  # takes the step with another batch

    assert loop.step == len(loop.callbacks[1].seen) == 7
    assert_averages(loop, average_by_hand(loop.callbacks[1].seen, 0.6))


class Odd(nn.Module):
    """A model with a tied weight, a frozen one, and statistics."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.to(dtype)

    def forward(self, x):
        x = x.to(self.one.weight.dtype)
        return self.norm(self.other(self.one(self.frozen(x)))).sum(-1, keepdim=True).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_may_be_tied_frozen_shared_or_of_another_type(dtype, tmp_path):
    """Averages are of float32 or better; frozen weights and buffers stay, bit for bit."""

    def loop(folder):
        task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.05))
        model, eval_model = Odd(dtype), Odd(dtype)
        return line_loop(
            folder, model=model, task=task, callbacks=[averaging(), Weights], eval_model=eval_model
        )

    resumed, whole = assert_resumes(loop, tmp_path, 5, 5)
    assert_same_averages(resumed, whole)
    ema = whole.callbacks[0]
    state = ema.state_dict()["averages"]
    assert {a.dtype for a in state.values()} == {torch.promote_types(dtype, torch.float32)}
    assert sorted(state) == ["norm.bias", "norm.weight", "one.bias", "one.weight", "other.bias"]
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert_averages(whole, average_by_hand(whole.callbacks[1].seen, 0.6), tolerance)
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    with ema.applied():
        inside = whole.model.state_dict()
        for name in ("frozen.weight", "norm.running_mean"):
            assert torch.equal(inside[name], before[name])
        assert not torch.equal(inside["one.weight"], before["one.weight"])
        assert whole.model.one.weight is whole.model.other.weight
        shared = whole.eval_model.state_dict()
        assert all(torch.equal(shared[k], inside[k]) for k in inside)


def test_averages_are_applied_for_a_while(tmp_path):
    """Once, however often they are asked for; to export; not before there are any."""
    loop = line_loop(callbacks=[averaging()])
    (ema,) = loop.callbacks
    before = weights_in(loop)
    with ema.applied():
        assert all(map(torch.equal, weights_in(loop), before))
    loop.run(5)
    training = weights_in(loop)
    with ema.applied() as model:
        averages = weights_in(loop)
        with ema.applied():
            loop.run_evals()
        assert all(map(torch.equal, weights_in(loop), averages))
        model.save_to_file(str(tmp_path / "averaged.safetensors"))
    assert all(map(torch.equal, weights_in(loop), training))
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert all(map(torch.equal, weights_in(loop), training))

    exported = line_model()
    exported.init_from_file(str(tmp_path / "averaged.safetensors"))
    assert all(map(torch.equal, exported.parameters(), averages))


def test_averages_are_not_trained_or_loaded_over(tmp_path):
    loop = line_loop(tmp_path, callbacks=[averaging()])
    loop.run(5)
    (ema,) = loop.callbacks
    with (
        pytest.raises(ValueError, match="Step 6 needs the weights in training.*Leave `with"),
        ema.applied(),
    ):
        loop.run(1)
    with (
        pytest.raises(ValueError, match="Loading a checkpoint needs the weights in training"),
        ema.applied(),
    ):
        ema.load_state_dict(ema.state_dict())

    loop.run(1)
    assert loop.step == 6


def test_the_best_checkpoint_holds_weights_in_training_and_their_average(tmp_path):
    loop = line_loop(tmp_path, callbacks=[averaging()], checkpoint_low_metric="L2Loss", **ALWAYS)
    loop.run(6)
    losses = loop.history.get("eval", "metrics/L2Loss")
    best_step, best_loss = min(losses, key=lambda pair: pair[1])
    plain = line_loop(**ALWAYS)
    plain.run(best_step)

    best = line_loop(None, callbacks=[averaging()])
    best.load_checkpoint(str(tmp_path), "lowest_L2Loss")
    assert best.step == best_step
    assert all(map(torch.equal, weights_in(best), weights_in(plain)))
    data = batches(100)
    for _ in range(best_step + 1):
        x, y, _ = next(data)
    with best.callbacks[0].applied() as model:
        assert float(((model.eval()(x) - y) ** 2).mean()) == pytest.approx(best_loss, rel=1e-5)


def test_averages_begin_where_a_checkpoint_has_none(tmp_path):
    line_loop(tmp_path).run(5)
    loop = line_loop(tmp_path, callbacks=[averaging(), Weights])
    loop.run(4)

    assert_averages(loop, average_by_hand(loop.callbacks[1].seen, 0.6))


def test_weights_may_be_frozen_and_thawed_between_runs(tmp_path):
    """What is trained later begins with its value; what was averaged goes on, frozen or not."""

    def loop(frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        model[frozen].requires_grad_(False)
        task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.05))
        return line_loop(tmp_path, model=model, task=task, callbacks=[averaging(), Weights])

    first = loop(frozen=0)
    first.run(5)
    second = loop(frozen=1)
    averages = second.callbacks[0].state_dict()["averages"]
    assert torch.equal(averages["0.weight"], second.model[0].weight)
    assert torch.equal(
        averages["1.weight"], first.callbacks[0].state_dict()["averages"]["1.weight"]
    )
    second.run(5)
    seen = first.callbacks[1].seen + second.callbacks[1].seen
    assert_averages(second, average_by_hand(seen, 0.6))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1, math.nan])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is a number from 0 to below 1; got {decay}"):
        line_loop(callbacks=[averaging(decay)])


def test_a_compiled_model_is_measured_with_averages(monkeypatch):
    """The compiled twin sees what stands in the weights' place."""
    monkeypatch.setattr(tl, "Accelerate", functools.partial(tl.Accelerate, backend="eager"))
    torch.compiler.reset()
    losses = []
    for compiled in (False, True):
        loop = line_loop(callbacks=[averaging()], compile=compiled)
        loop.run(10)
        losses.append([v for _, v in loop.history.get("eval", "metrics/L2Loss")])

    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Monitor


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
    loop = token_loop()
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


# ProfilerTrace


def profiling(**kwargs):
    return functools.partial(ProfilerTrace, **kwargs)


def names_in(path):
    """The names of the events in a trace, which is whole JSON."""
    with gzip.open(path) as file:
        return [event.get("name", "") for event in json.load(file)["traceEvents"]]


def marks_in(path):
    names = {name for name in names_in(path) if name.startswith("ProfilerStep#")}
    return sorted(names)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_trace_shows_the_chosen_steps(tmp_path):
    class Recorded(TrainingStepCallback):
        def on_step_end(self, step):
            if torch.autograd._profiler_enabled():
                recorded.append(step)

    recorded = []
    loop = line_loop(tmp_path, callbacks=[Recorded, profiling(first_step=3, n_steps=2)])
    loop.run(6)

    assert recorded == [3, 4]
    assert files_of(tmp_path / "profile") == ["steps_3_to_4.pt.trace.json.gz"]
    path = tmp_path / "profile" / "steps_3_to_4.pt.trace.json.gz"
    assert marks_in(path) == ["ProfilerStep#3", "ProfilerStep#4"]
    names = names_in(path)
    assert "aten::linear" in names or "aten::addmm" in names
    assert any("Backward" in name for name in names)
    assert not torch.autograd._profiler_enabled()


def test_a_run_that_ends_within_writes_what_it_has(tmp_path):
    """The next one writes the rest; a run beyond the steps writes nothing."""
    folder = tmp_path / "traces" / "mine"
    trace = profiling(first_step=2, n_steps=3, folder=str(folder))
    loop = line_loop(callbacks=[trace])
    loop.run(3)
    assert files_of(folder) == ["steps_2_to_3.pt.trace.json.gz"]
    assert not torch.autograd._profiler_enabled()
    loop.run(1)
    assert len(files_of(folder)) == 2
    loop.run(2)

    assert files_of(folder) == ["steps_2_to_3.pt.trace.json.gz", "steps_4_to_4.pt.trace.json.gz"]
    assert marks_in(folder / "steps_4_to_4.pt.trace.json.gz") == ["ProfilerStep#4"]


def test_a_step_that_failed_is_in_the_trace(tmp_path):
    task = TrainTask(Skipping(3), tl.L2Loss(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)
    trace = profiling(first_step=2, n_steps=5)
    loop = line_loop(tmp_path, task=task, callbacks=[trace])
    with pytest.raises(optimizers.NonFiniteError):
        loop.run(7)

    (name,) = files_of(tmp_path / "profile")
    assert marks_in(tmp_path / "profile" / name) == ["ProfilerStep#2", "ProfilerStep#3"]
    assert not torch.autograd._profiler_enabled()


def test_a_trace_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def broken(self, path):
        with open(path, "w") as file:
            file.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", broken)
    loop = line_loop(tmp_path, callbacks=[profiling(first_step=1, n_steps=1)])
    with pytest.raises(OSError, match="disk full"):
        loop.run(2)

    assert files_of(tmp_path / "profile") == []
    assert not torch.autograd._profiler_enabled()


def test_the_chief_alone_is_recorded(tmp_path):
    loop = types.SimpleNamespace(is_chief=False, output_dir=str(tmp_path))
    assert not any(map(ProfilerTrace(loop, first_step=1, n_steps=3).call_at, range(9)))
    loop.is_chief = True
    calls = map(ProfilerTrace(loop, first_step=1, n_steps=3).call_at, range(9))
    assert [step for step, is_called in enumerate(calls) if is_called] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"first_step": 0}, "got first_step=0, n_steps=1"),
        ({"n_steps": 0}, "got first_step=1, n_steps=0"),
        ({}, "the Loop has no output_dir. Give either"),
    ],
)
def test_a_trace_of_nothing_or_to_nowhere_is_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        line_loop(callbacks=[profiling(**{"first_step": 1, "n_steps": 1, **kwargs})])


# All together.


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
