"""ExponentialMovingAverage keeps the average of the formula, and lends it to evals alone."""

import functools
import math

import numpy as np
import pytest
import torch
from callback_runs import ALWAYS, Skipping, assert_same_averages, averaging
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
from trax_torch.supervised import TrainingStepCallback, TrainTask
from trax_torch.supervised.callbacks import ExponentialMovingAverage


class Weights(TrainingStepCallback):
    """Writes down the weights after each step, as numpy's in double precision."""

    def __init__(self, loop):
        super().__init__(loop)
        self.seen = []

    def on_step_end(self, step):
        self.seen.append([np.array(p.tolist()) for p in self._loop.model.parameters()])


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


def thawing(hook, step):
    """Returns a callback that has the first layer trained from the step after `step` on."""

    class Thaws(TrainingStepCallback):
        pass

    def thaw(self, at):
        if at == step + (hook == "on_step_begin"):
            self._loop.model[0].requires_grad_(True)

    setattr(Thaws, hook, thaw)
    return Thaws


def half_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return model, optimizer


@pytest.mark.parametrize("hook", ["on_step_begin", "on_step_end"])
def test_weights_thawed_in_a_run_are_trained_as_in_a_loop_of_ones_own(hook):
    model, optimizer = half_frozen()
    loop = line_loop(
        model=model, task=train_task(optimizer=optimizer), callbacks=[thawing(hook, 4)]
    )
    loop.run(9)

    bare, optimizer = half_frozen()
    data = batches(0)
    next(data)  # the sample
    for step in range(1, 10):
        if step == 5:
            bare.requires_grad_(True)
        x, y, w = map(torch.from_numpy, next(data))
        optimizer.zero_grad()
        ((w * (bare(x) - y) ** 2).sum() / w.sum()).backward()
        optimizer.step()
    assert not torch.equal(bare[0].weight, half_frozen()[0][0].weight)
    for p, q in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("hook", ["between runs", "on_step_end", "on_step_begin"])
def test_weights_thawed_later_are_averaged_whatever_the_order_of_callbacks(hook, tmp_path):
    """As if they had stood still before; also in a run that is resumed after that."""
    found = []
    for order in (1, -1):
        model, optimizer = half_frozen()
        others = [] if hook == "between runs" else [thawing(hook, 4)]
        callbacks = [averaging(), Weights, *others][::order]
        loop = line_loop(
            tmp_path / str(order),
            model=model,
            task=train_task(optimizer=optimizer, n_steps_per_checkpoint=6),
            callbacks=callbacks,
            save_at_end=False,
        )
        loop.run(4)
        if hook == "between runs":
            model[0].requires_grad_(True)
        loop.run(5)
        ema, weights = (loop.callbacks[::order])[:2]
        found.append(ema.state_dict()["averages"])
    assert found[0].keys() == found[1].keys() == set(dict(model.named_parameters()))
    assert all(torch.equal(average, found[1][name]) for name, average in found[0].items())
    if hook != "on_step_begin":  # where the average begins after the step that it is thawed in
        assert_averages(loop, average_by_hand(weights.seen, 0.6))

    model, optimizer = half_frozen()
    model.requires_grad_(True)
    task = train_task(optimizer=optimizer, n_steps_per_checkpoint=100)
    resumed = line_loop(tmp_path / "1", model=model, task=task, callbacks=[averaging()])
    assert resumed.step == 6
    resumed.run(3)
    averages = resumed.callbacks[0].state_dict()["averages"]
    assert all(torch.equal(average, averages[name]) for name, average in found[0].items())


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
