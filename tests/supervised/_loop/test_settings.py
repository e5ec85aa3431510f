"""How steps are computed and saved may change; what they compute does not."""

import functools
import logging
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assert_resumes, assert_same_run, batches, line_loop, state_of, train_task

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import TrainTask, training
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised._loop.settings import LoopConfig
from trax_torch.supervised.callbacks import TrainingStepCallback


def uneven(seed=0, n=8):
    """Batches of a noisy line whose weights are uneven, and 0 for some."""
    for x, y, _ in batches(seed, n):
        rng = np.random.default_rng(int(1e6 * abs(x[0, 0])))
        yield x, y, (rng.random(y.shape) * (rng.random(y.shape) > 0.3)).astype(np.float32)


def losses_of(loop, name="metrics/L2Loss"):
    return [value for _, value in loop.history.get("train", name)]


# Accumulation


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 100))
@pytest.mark.parametrize("n_parts", [2, 4, 8])
@pytest.mark.parametrize("recipe", [optimizers.SGD(0.05), optimizers.Adafactor(0.05)])
def test_a_run_in_parts_is_the_run_of_whole_batches(recipe, n_parts, seed):
    """Losses, norms and weights, to rounding; weights are uneven."""

    def run(n):
        task = TrainTask(uneven(seed), tl.L2Loss(), recipe, n_steps_per_checkpoint=2)
        loop = line_loop(task=task, n_accumulation_steps=n)
        loop.run(10)
        return loop

    whole, parts = run(1), run(n_parts)

    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-4)
    norms = "training/gradients_l2"
    assert losses_of(parts, norms) == pytest.approx(losses_of(whole, norms), rel=1e-4)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_parts_draw_random_numbers_of_their_own_and_resume(tmp_path):
    def loop(folder):
        return line_loop(folder, dropout=0.3, n_accumulation_steps=2)

    assert_resumes(loop, tmp_path, 5, 5)


def test_a_batch_that_cannot_be_cut_is_refused():
    task = TrainTask(
        ((x, y, np.ones((1, 1), np.float32)) for x, y in batches(weights=False)),
        tl.WeightedCategoryCrossEntropy(),
        optimizers.SGD(),
    )
    model = tl.Serial(tl.Dense(3), tl.Fn("Rows", lambda y: y[:, None]))
    with pytest.raises(ValueError, match="first axis of its items, which must agree"):
        line_loop(model=model, task=relabelled(task), n_accumulation_steps=2).run(1)


def relabelled(task):
    """The same batches with targets of (batch, 1) categories."""
    data = (
        (x, np.zeros((len(x), 1), np.int64), w)
        for x, _, w in iter(task.labeled_data.__next__, None)
    )
    return TrainTask(data, task.loss_layer, task.optimizer)


# Precision and compilation


def lm_loop(**kwargs):
    def data(seed):
        rng = np.random.default_rng(seed)
        while True:
            x = np.repeat(rng.integers(1, 12, (8, 4)), 2, axis=1)
            yield x, x, np.ones(x.shape, np.float32)

    model = models.TransformerLM(
        vocab_size=12, d_model=16, d_ff=32, n_layers=1, n_heads=2, max_len=16, dropout=0.0
    )
    task = TrainTask(
        data(0),
        tl.WeightedCategoryCrossEntropy(),
        optimizers.Adam(0.01),
        n_steps_per_checkpoint=20,
        loss_name="loss",
    )
    metrics = [tl.WeightedCategoryCrossEntropy()]
    evals = training.EvalTask(data(1), metrics, metric_names=["loss"])
    return line_loop(model=model, task=task, evals=evals, **kwargs)


class Types(TrainingStepCallback):
    """Notes the type that the first Dense layer computes in."""

    def __init__(self, loop, seen):
        super().__init__(loop)
        dense = next(m for m in loop.model.modules() if isinstance(m, tl.Dense))
        dense.register_forward_hook(lambda module, args, output: seen.add(output.dtype))


def test_bf16_computes_in_bfloat16_and_keeps_weights_and_losses_precise():
    """It learns as float32 does, to the precision of bfloat16; evals run in it too."""
    seen = set()
    plain = lm_loop()
    plain.run(40)
    half = lm_loop(precision="bf16", callbacks=[lambda loop: Types(loop, seen)])
    half.run(40)

    assert seen == {torch.bfloat16}
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    ours, theirs = losses_of(half, "metrics/loss"), losses_of(plain, "metrics/loss")
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.03)
    assert theirs[-1] < 0.8 * theirs[0]
    evals = [run.history.get("eval", "metrics/loss")[-1][1] for run in (half, plain)]
    assert evals[0] == pytest.approx(evals[1], rel=0.03)


@pytest.mark.parametrize("cell", [tl.GRU, tl.LSTM, tl.SRU])
def test_bf16_trains_recurrent_models_as_float32_does(cell):
    def losses(precision):
        model = tl.Serial(
            tl.Dense(8),
            tl.Fn("AsLength", lambda x: x[:, None].expand(-1, 3, -1)),
            cell(8),
            tl.Mean(axis=1),
            tl.Dense(1),
        )
        loop = line_loop(model=model, precision=precision)
        loop.run(20)
        return losses_of(loop)

    half, plain = losses("bf16"), losses(None)
    assert half != plain
    assert half == pytest.approx(plain, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_loop",
    [
        line_loop,
        pytest.param(lm_loop, marks=pytest.mark.exhaustive),  # minutes with an empty cache
    ],
    ids=["a line", "a transformer"],
)
def test_a_compiled_model_trains_and_is_measured_alike(make_loop, tmp_path):
    """The same losses to rounding; the same files; and evals run the compiled model."""
    torch.compiler.reset()
    plain = make_loop(output_dir=tmp_path / "plain")
    plain.run(20)
    compiled = make_loop(output_dir=tmp_path / "compiled", compile=True)
    compiled.run(20)

    for mode in ("train", "eval"):
        (metric,) = (m for m in plain.history.metrics_for_mode(mode) if m.startswith("metrics/"))
        ours, theirs = ([v for _, v in run.history.get(mode, metric)] for run in (compiled, plain))
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    resumed = make_loop(output_dir=tmp_path / "compiled")  # a compiled run goes on uncompiled
    assert resumed.step == 20
    resumed.run(1)


# Steps that are not finite


def with_nan_at(steps, n=8):
    """Batches whose inputs are not numbers at some steps; batch 0 is the sample."""
    for i, (x, y, w) in enumerate(batches(0, n)):
        yield (np.full_like(x, np.nan) if i in steps else x), y, w


def nan_loop(folder=None, steps=(3,), **kwargs):
    model = tl.Serial(tl.Dense(8), tl.BatchNorm(axis=0), tl.Tanh(), tl.Dense(1))
    task = TrainTask(
        with_nan_at(steps), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=100
    )
    return line_loop(folder, model=model, task=task, **kwargs)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    """Neither weights nor slots nor running statistics; and the run can be saved as it was."""
    loop = nan_loop(tmp_path)
    loop.run(2)
    before = state_of(loop)

    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop.run(1)

    after = state_of(loop)
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert any("mean" in key for key in before)
    loop.save_checkpoint("after")
    assert storage.read(str(tmp_path), "after")[1]["step"] == 2


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    loop = nan_loop(steps=(3, 5), on_nonfinite="skip")
    loop.run(2)
    before = state_of(loop)
    loop.run(1)
    assert [k for k, v in state_of(loop).items() if not torch.equal(before[k], v)] == []
    assert loop.step == 3

    loop.run(97)

    assert loop.history.get("train", "training/skipped steps") == [(100, 2.0)]
    assert math.isfinite(losses_of(loop)[-1])


def test_no_more_steps_are_skipped_than_allowed(tmp_path):
    """The count survives a restart."""
    settings = {"steps": (2, 4, 6), "on_nonfinite": 2, "checkpoint_at": lambda step: True}
    nan_loop(tmp_path, **settings).run(5)

    with pytest.raises(optimizers.NonFiniteError, match="Step 6: .* 3 steps were not."):
        nan_loop(tmp_path, **settings).run(5)


def test_a_device_may_decide_whether_a_step_is_taken(monkeypatch):
    """As on CUDA, where no step waits for the verdict: it is asked for at the report."""
    loop = nan_loop(steps=(3, 4))
    loop.run(2)
    before = state_of(loop)
    trainer = loop._parts.trainers[0]
    trainer.optimizer = torch.optim.Adam(trainer.params, fused=True)
    monkeypatch.setattr(trainer, "_on_cpu", False)
    monkeypatch.setattr(trainer, "_decides_on_device", True)

    loop.run(2)
    after = {k: v for k, v in state_of(loop).items() if not k.startswith("slot")}
    assert [k for k, v in after.items() if not torch.equal(before[k], v)] == []
    loop.run(1)
    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop._stepper.check_finite()
    assert trainer.n_skipped == 2
    assert math.isfinite(loop._parts.accumulators[0].means()["loss"])


# Saves behind the run


def slowed(monkeypatch, gate):
    """Lets saves wait for an event."""
    write = storage._write

    def wait_and_write(path, data):
        assert gate.wait(60)
        write(path, data)

    monkeypatch.setattr(storage, "_write", wait_and_write)


def test_a_save_in_the_background_holds_what_was_there(tmp_path, monkeypatch):
    """Training goes on meanwhile, and the file is of the step at which it was asked for."""
    gate = threading.Event()
    slowed(monkeypatch, gate)
    loop = line_loop(tmp_path, checkpoint_at=lambda step: False)
    loop.run(3)
    at_3 = state_of(loop)

    loop.save_checkpoint("model", blocking=False)
    model_alone = {k: v.clone() for k, v in loop.model.state_dict().items()}
    with torch.no_grad():
        for p in loop.model.parameters():
            p.add_(1.0)
    gate.set()
    resumed_from = str(tmp_path)
    loop._saver.wait()

    assert model_alone.keys() == loop.model.state_dict().keys()
    again = line_loop(None)
    again.load_checkpoint(resumed_from)
    assert again.step == 3
    assert all(torch.equal(at_3[k], v) for k, v in state_of(again).items())


def test_a_run_with_background_saves_is_the_same_run(tmp_path):
    """To the last bit, and every file of it; also the copies that are written from, used again."""
    at = {"checkpoint_at": lambda step: True, "checkpoint_low_metric": "L2Loss"}
    runs = []
    for folder, behind in (("front", False), ("behind", True)):
        task = train_task(n_steps_per_permanent_checkpoint=4)
        loop = line_loop(tmp_path / folder, task=task, background_saves=behind, **at)
        loop.run(9)
        runs.append(loop)

    assert_same_run(*runs)
    names = ["model", "model_1", "model_4", "model_8", "lowest_L2Loss"]
    front, behind = str(tmp_path / "front"), str(tmp_path / "behind")
    assert [n for n in names if training.differences(front, behind, n)] == []


def test_a_background_save_that_fails_is_spoken_of(tmp_path, monkeypatch):
    """By the next save, or at the end of the run; what was saved before is intact."""
    loop = line_loop(tmp_path, checkpoint_at=lambda step: step == 2, background_saves=True)
    loop.save_checkpoint("model")

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write", broken)
        with pytest.raises(CheckpointError, match="No space left on device"):
            loop.run(3)
        assert loop.step == 3
        loop.save_checkpoint("model", blocking=False)
        with pytest.raises(CheckpointError, match="No space left on device"):
            loop.save_checkpoint("model")
    assert storage.read(str(tmp_path), "model")[1]["step"] == 0

    loop.run(1)
    loop.save_checkpoint("model")
    assert storage.read(str(tmp_path), "model")[1]["step"] == 4


def test_an_error_in_a_run_does_not_hide_a_failing_save(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    loop = nan_loop(tmp_path, checkpoint_at=lambda step: step == 2, background_saves=True)
    monkeypatch.setattr(storage, "_write", broken)
    with pytest.raises(optimizers.NonFiniteError) as caught:
        loop.run(5)

    assert any("No space left on device" in note for note in caught.value.__notes__)


# What is kept


def test_only_the_last_permanent_checkpoints_are_kept(tmp_path):
    """And best ones and other names stay; so does what is newer than the run, until its turn."""
    at = {"permanent_checkpoint_at": lambda step: True, "keep_last": 2}
    loop = line_loop(tmp_path, checkpoint_low_metric="L2Loss", **at)
    loop.save_checkpoint("model_of_mine")
    loop.run(6)

    def kept():
        return sorted(p.name for p in tmp_path.glob("*.json"))

    others = ["lowest_L2Loss.json", "model.json"]
    assert kept() == [*others, "model_5.json", "model_6.json", "model_of_mine.json"]
    assert len(list(tmp_path.glob("model_*.safetensors"))) == 3 * 3

    back = line_loop(tmp_path / "other", **at)
    back.load_checkpoint(str(tmp_path), "model_5")
    back.save_checkpoint("model_9")
    back.run(1)
    assert {p.name for p in (tmp_path / "other").glob("model_*.json")} == {
        "model_6.json",
        "model_9.json",
    }
    back.run(1)
    assert {p.name for p in (tmp_path / "other").glob("model_*.json")} == {
        "model_6.json",
        "model_7.json",
    }


# Where data goes on


def test_data_may_begin_anew(tmp_path):
    """resume_data='restart' goes on with the weights and the first batches."""
    line_loop(tmp_path).run(5)
    seen = []

    class Look(TrainingStepCallback):
        def on_step_end(self, step):
            seen.append(self._loop.batch[0])

    def first_seen(**kwargs):
        seen.clear()
        line_loop(tmp_path, callbacks=[Look], **kwargs).run(1)
        return seen[0]

    first = [torch.as_tensor(x) for (x, _, _), _ in zip(batches(), range(8), strict=False)]
    assert torch.equal(first_seen(resume_data="restart"), first[1])  # 0 is the sample
    assert torch.equal(first_seen(), first[6])


def test_going_forward_is_logged(tmp_path, caplog):
    line_loop(tmp_path).run(5)
    with caplog.at_level(logging.INFO, "trax_torch"):
        line_loop(tmp_path)

    assert "TrainTask's labeled_data: going forward by 5 batches" in caplog.text


# Verification


def test_a_setup_that_resumes_passes():
    training.verify_resume(lambda folder: line_loop(folder, dropout=0.3), n_steps=7)


def test_a_setup_that_does_not_resume_is_told_where():
    """Data that nobody seeds."""
    counter = iter(range(1000))

    def make_loop(folder):
        return line_loop(folder, task=train_task(seed=next(counter)))

    with pytest.raises(ValueError, match=r"resumed at step 5 differs .* history train metrics/L2"):
        training.verify_resume(make_loop, n_steps=5)


def test_checkpoints_that_are_not_there_are_not_compared(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint model in"):
        training.differences(str(tmp_path), str(tmp_path))


# Errors


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"precision": "fp8"}, "precision is 'bf16' or None; got 'fp8'"),
        ({"n_accumulation_steps": 0}, "at least 1; got 0. Give a whole number, such as 2, or"),
        ({"n_accumulation_steps": True}, "at least 1; got True"),
        ({"on_nonfinite": "ignore"}, "or how many steps may be skipped; got 'ignore'"),
        ({"on_nonfinite": -1}, "or how many steps may be skipped; got -1"),
        ({"on_nonfinite": True}, "or how many steps may be skipped; got True"),
        ({"loss_chunk_size": True}, "or 0 for no chunks; got True. Give a whole number, such as"),
        ({"loss_chunk_size": "8"}, "or 0 for no chunks; got '8'"),
        ({"use_memory_efficient_trainer": 1.5}, "is False, True or 2; got 1.5. Give True, or 2 to"),
        ({"use_memory_efficient_trainer": 1.0}, "is False, True or 2; got 1.0"),
        ({"use_memory_efficient_trainer": "2"}, "is False, True or 2; got '2'"),
        ({"use_memory_efficient_trainer": None}, "is False, True or 2; got None"),
        ({"use_memory_efficient_trainer": -1}, "is False, True or 2; got -1"),
        ({"use_memory_efficient_trainer": 3}, "is False, True or 2; got 3"),
        ({"keep_last": 0}, "keep_last is at least 1, or None to keep all; got 0"),
        ({"resume_data": "maybe"}, "resume_data is 'exact' or 'restart'; got 'maybe'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, match):
    with pytest.raises(ValueError, match=match):
        line_loop(**setting)


def test_whole_numbers_may_be_numpys():
    """And are the same settings on all ranks, whoever made them."""
    ours = LoopConfig(loss_chunk_size=3, n_accumulation_steps=2, on_nonfinite=5)
    numpys = LoopConfig(
        loss_chunk_size=np.int64(3), n_accumulation_steps=np.int32(2), on_nonfinite=np.int64(5)
    )

    assert str(ours) == str(numpys)
    assert numpys.n_skips == 5


def test_trains_block_by_block_for_true_and_1_alike():
    """As in Trax; False stands for 0."""
    modes = [
        LoopConfig(use_memory_efficient_trainer=m).use_memory_efficient_trainer
        for m in (False, 0, True, 1, 2)
    ]

    assert [repr(mode) for mode in modes] == ["0", "0", "1", "1", "2"]


def test_an_update_that_is_broken_off_is_not_saved(tmp_path, monkeypatch):
    """Weights that belong to no step: refused until a checkpoint is loaded."""
    loop = line_loop(tmp_path, task=train_task(optimizer=torch.optim.AdamW))
    loop.run(5)
    before = state_of(loop)
    step = torch.optim.AdamW.step

    def broken(self, *args):
        step(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        optimizer = loop._parts.trainers[0].optimizer
        patch.setattr(optimizer, "step", functools.partial(broken, optimizer))
        with pytest.raises(KeyboardInterrupt):
            loop.run(1)
    with pytest.raises(CheckpointError, match="The update of step 6 was broken off"):
        loop.save_checkpoint("model")

    again = line_loop(None, task=train_task(optimizer=torch.optim.AdamW))
    again.load_checkpoint(str(tmp_path))
    assert all(torch.equal(before[k], v) for k, v in state_of(again).items())
    assert again.step == 5


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


def test_callbacks_remember(tmp_path):
    """One with a state finds it again, whatever other callbacks there are now."""

    class Count(TrainingStepCallback):
        def __init__(self, loop):
            super().__init__(loop)
            self.n = torch.zeros((), dtype=torch.int64)

        def on_step_end(self, step):
            self.n += 1

        def state_dict(self):
            return {"n": self.n, "twice": (2 * int(self.n), None)}

        def load_state_dict(self, state):
            assert state["twice"] == (2 * int(state["n"]), None)
            self.n = state["n"].clone()

    line_loop(tmp_path, callbacks=[Count]).run(5)
    resumed = line_loop(tmp_path, callbacks=[TrainingStepCallback, Count, Count])
    resumed.run(1)

    assert [int(c.n) for c in resumed.callbacks[1:]] == [6, 1]
    fresh = line_loop(None, callbacks=[Count])
    fresh.load_checkpoint(str(tmp_path))
    assert int(fresh._callbacks[0].n) == 5


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
        bad._evaluators[0].means = lambda seed: 1 / 0
        bad.run(1)

    assert calls == [("begin", 1), ("end", 1), ("begin", 5), ("end", 5), ("begin", 1), ("end", 1)]
    assert loop.history.get("train", "training/mine") == [(1, 0.5), (5, 0.5)]


# What else was seen to go wrong


class Masked(torch.nn.Module):
    """A mean over targets that are not ignored, of which nobody outside can know."""

    def forward(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, ignore_index=-100)


def test_a_loss_that_parts_would_change_is_spoken_of():
    batch = torch.randn(4, 3), torch.tensor([-100, -100, -100, 1])
    task = TrainTask(iter([batch] * 3), Masked(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)
    kwargs = {"model": tl.Dense(2), "task": task, "evals": training.EvalTask([batch], Masked())}
    with pytest.warns(UserWarning, match="Masked is .* for its halves together"):
        line_loop(n_accumulation_steps=2, **kwargs)


def test_a_loss_of_nothing_is_not_spoken_of():
    """Where no target counts, neither the whole nor the halves are a number."""
    batch = torch.randn(4, 3), torch.full((4,), -100)
    task = TrainTask(iter([batch] * 3), Masked(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)

    evals = training.EvalTask([batch], Masked())
    line_loop(n_accumulation_steps=2, model=tl.Dense(2), task=task, evals=evals)


def test_weights_thawed_later_are_trained_or_refused():
    """Their gradients are not added up over steps."""

    def loop(optimizer):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        model[0].requires_grad_(False)
        task = train_task(optimizer=optimizer(model))
        made = line_loop(model=model, task=task)
        made.run(1)
        model[0].requires_grad_(True)
        return made

    mine = loop(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    norms = []
    for _ in range(3):
        mine.run(1)
        norms.append(mine._trainers[0].params[0].grad.norm().item())
    assert len(mine._trainers[0].params) == 4
    assert max(norms) < 2.5 * min(norms)
    with pytest.raises(ValueError, match="2 weights are trained now that were frozen"):
        loop(lambda model: optimizers.Adam(0.01)).run(1)


def test_a_rate_that_a_callback_changes_is_resumed(tmp_path):
    class Lower(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 3:
                self._loop.optimizers[0].param_groups[0]["lr"] = 0.001

    def loop(callbacks):
        task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        return line_loop(tmp_path, task=task, callbacks=callbacks)

    loop([Lower]).run(5)

    assert loop([]).optimizers[0].param_groups[0]["lr"] == 0.001


def test_a_run_may_go_back_to_before_there_were_slots(tmp_path):
    data = [batch for _, batch in zip(range(9), batches(), strict=False)]
    task = TrainTask(data, tl.L2Loss(), torch.optim.AdamW, n_steps_per_checkpoint=100)
    evals = training.EvalTask(data, tl.L2Loss())
    loop = line_loop(tmp_path, task=task, evals=evals)
    loop.save_checkpoint("begin")
    loop.run(3)
    loop.load_checkpoint(filename="begin")
    loop.run(3)

    whole = line_loop(
        None,
        task=TrainTask(data, tl.L2Loss(), torch.optim.AdamW, n_steps_per_checkpoint=100),
        evals=training.EvalTask(data, tl.L2Loss()),
    )
    whole.run(3)
    assert all(torch.equal(a, b) for a, b in zip(*map(_weights, (loop, whole)), strict=True))


def _weights(loop):
    return list(loop.model.parameters())


def test_weights_frozen_since_lose_their_slots_alone(tmp_path):
    def loop(is_frozen):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        model[0].requires_grad_(not is_frozen)
        return line_loop(tmp_path, model=model)

    first = loop(False)
    first.run(5)
    resumed = loop(True)

    assert resumed.step == 5
    assert all(torch.equal(a, b) for a, b in zip(*map(_weights, (first, resumed)), strict=True))
    resumed.run(1)


class Extra(torch.nn.Module):
    """Keeps a count that is no tensor."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)
        self.mask = torch.nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
        self.k = 0

    def get_extra_state(self):
        return {"k": self.k}

    def set_extra_state(self, state):
        self.k = state["k"]

    def forward(self, x):
        self.k += self.training
        return self.linear(x)


def test_a_modules_extra_state_and_masks_are_saved(tmp_path):
    """Also weights that are infinite and not trained."""
    line_loop(tmp_path, model=Extra()).run(5)
    resumed = line_loop(tmp_path, model=Extra())

    assert resumed.model.k >= 5
    assert torch.isinf(resumed.model.mask).any()


def test_an_eval_model_sees_buffers_that_were_renewed():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 1)
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.n = self.n + 1
            return self.linear(x)

    loop = line_loop(model=Counting(), eval_model=Counting())
    loop.run(5)

    assert loop.eval_model.n == loop.model.n > 0


def test_predicates_are_asked_once_a_step():
    asked = []
    loop = line_loop(eval_at=lambda step: asked.append(step) or step % 2 == 0)
    loop.run(4)

    assert [asked.count(step) for step in (2, 3, 4)] == [1, 1, 1]
