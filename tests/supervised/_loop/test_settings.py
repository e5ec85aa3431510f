"""How steps are computed may change; what they compute does not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import assert_resumes, batches, line_loop, losses_of

from trax_torch import _torch_private, models, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import TrainingStepCallback, TrainTask, training
from trax_torch.supervised._loop.settings import LoopConfig


def uneven(seed=0, n=8):
    """Batches of a noisy line whose weights are uneven, and 0 for some."""
    for x, y, _ in batches(seed, n):
        rng = np.random.default_rng(int(1e6 * abs(x[0, 0])))
        yield x, y, (rng.random(y.shape) * (rng.random(y.shape) > 0.3)).astype(np.float32)


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


class Masked(torch.nn.Module):
    """A mean over targets that are not ignored, which it does not say."""

    def forward(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, ignore_index=-100)


def test_a_loss_that_counts_by_rules_of_its_own_is_found_out(capsys):
    batch = torch.randn(4, 3), torch.tensor([-100, -100, -100, 1])
    task = TrainTask(iter([batch] * 3), Masked(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)
    kwargs = {"model": tl.Dense(2), "task": task, "evals": training.EvalTask([batch], Masked())}
    line_loop(n_accumulation_steps=2, **kwargs)

    assert "Masked is a mean over items of item 1 that are not -100" in capsys.readouterr().out


def test_a_loss_of_nothing_is_not_spoken_of():
    """Where no target counts, neither the whole nor the halves are a number."""
    batch = torch.randn(4, 3), torch.full((4,), -100)
    task = TrainTask(iter([batch] * 3), Masked(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)

    evals = training.EvalTask([batch], Masked())
    line_loop(n_accumulation_steps=2, model=tl.Dense(2), task=task, evals=evals)


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


def test_where_a_cpu_multiplies_no_bfloat16_float32_is_computed_and_that_is_said(
    monkeypatch, capsys
):
    """It takes ten times as long there."""
    monkeypatch.setattr(_torch_private, "cpu_multiplies_bfloat16", lambda: False)
    plain, half = lm_loop(), lm_loop(precision="bf16", verbose=True)
    for loop in (plain, half):
        loop.run(3)

    assert losses_of(half, "metrics/loss") == losses_of(plain, "metrics/loss")
    assert "This CPU multiplies no bfloat16" in capsys.readouterr().out
    assert "precision   float32, as this processor" in str(half.summary())


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
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


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
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


# What may be asked for


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"precision": "fp8"}, "precision is one of .*; got 'fp8'"),
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


# Activation checkpointing.


class Wide(nn.Module):
    """A block that keeps many activations, draws random numbers and has statistics."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return x + self.norm(self.inner(x))


def kept(activation_checkpointing, sizes):
    """Losses and weights of a run, and how many numbers were saved for the backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Wide(), Wide(), nn.Linear(4, 1))
    task = TrainTask(batches(n=8, weights=False), nn.MSELoss(), optimizers.Adam(0.01))
    loop = line_loop(model=model, task=task, activation_checkpointing=activation_checkpointing)

    def save(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        loop.run(3)
    return losses_of(loop, "metrics/MSELoss"), {k: v for k, v in model.state_dict().items()}


@pytest.mark.parametrize("how", [True, "offload"])
def test_blocks_are_computed_again_with_the_same_numbers(how, monkeypatch):
    """Bit for bit, dropout and statistics of BatchNorm included; fewer activations are kept."""
    moved = []
    on_cpu = torch.autograd.graph.save_on_cpu
    monkeypatch.setattr(
        torch.autograd.graph, "save_on_cpu", lambda **kw: moved.append(kw) or on_cpu(**kw)
    )
    many, few = [], []
    losses, weights = kept(False, many)
    again, same = kept(how, few)

    assert again == losses
    assert all(torch.equal(same[k], v) for k, v in weights.items())
    assert sum(few) < 0.7 * sum(many)
    assert bool(moved) == (how == "offload")


def test_activation_checkpointing_that_has_no_blocks_or_a_rival_is_refused():
    with pytest.raises(ValueError, match="computes blocks again that are repeated in the model"):
        line_loop(model=nn.Linear(3, 1), activation_checkpointing=True)
    with pytest.raises(ValueError, match="decides itself what it keeps. Leave one of them out"):
        LoopConfig(activation_checkpointing=True, compile=True)
    with pytest.raises(ValueError, match="activation_checkpointing is True, 'offload' or False"):
        LoopConfig(activation_checkpointing="cpu")
    with pytest.raises(ValueError, match="blocks are computed again as it is. Leave it out"):
        LoopConfig(activation_checkpointing=True, use_memory_efficient_trainer=True)
