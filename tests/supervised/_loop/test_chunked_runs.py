"""A run with the last Dense and the loss in chunks is the run without."""

import functools

import numpy as np
import pytest
import ranks
import torch
from toys import assert_resumes, batches, history_of, line_loop, line_model, state_of, train_task

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, TrainTask

needs_ranks = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
RECIPES = {
    "Adam": optimizers.Adam(0.01),
    "Adafactor": optimizers.Adafactor(0.05),
    "SGD": optimizers.SGD(0.1),
}


def reversible(d=8):
    """Layers that keep no activations, and draw random numbers again on the way back."""
    half = [
        tl.ReversibleHalfResidual(tl.LayerNorm(), tl.Dense(d), tl.Relu(), tl.Dropout(0.3))
        for _ in range(2)
    ]
    ends = tl.Concatenate(), tl.LayerNorm(), tl.Dense(12)
    body = [[layer, tl.ReversibleSwap()] for layer in half]
    return tl.Serial(tl.Embedding(12, d), tl.Dropout(0.1), tl.Dup(), body, *ends)


# What rounding needs: Adam and Adafactor make gradients that are little else as large as others.
TOLERANCES = {"Adam": 1e-4, "Adafactor": 3e-4, "SGD": 1e-5}
MODELS = {
    "TransformerLM": functools.partial(
        models.TransformerLM, 12, d_model=8, d_ff=16, n_layers=1, n_heads=2, max_len=16
    ),
    "GRULM": functools.partial(models.GRULM, 12, d_model=8),
    "reversible": reversible,
}
KEY_BIAS = "4.0.1.1.1.0.1.1.0.bias"  # of TransformerLM


def sentences(seed=0, n=6):
    """Batches of 6 positions a row, of which some count for nothing; half of the rows wholly."""
    i = 0
    while True:
        rng = np.random.default_rng([seed, i])
        x = rng.integers(1, 12, (n, 6))
        w = (rng.random(x.shape) * (rng.random(x.shape) > 0.3)).astype(np.float32)
        w[: n // 2] *= i % 2
        yield x, x, w
        i += 1


def share_of(data, rank, size):
    for batch in data:
        yield tuple(np.array_split(item, size)[rank] for item in batch)


def lm_loop(folder=None, name="TransformerLM", recipe="SGD", rank=0, size=1, loss=None, **kwargs):
    loss = loss or tl.WeightedCategoryCrossEntropy()
    task = TrainTask(
        share_of(sentences(), rank, size),
        loss,
        RECIPES[recipe],
        n_steps_per_checkpoint=5,
        loss_name="loss",
    )
    evals = EvalTask(sentences(1), [loss], metric_names=["loss"])
    dropout = {"dropout": kwargs.pop("dropout", 0.0)} if name == "TransformerLM" else {}
    model = MODELS[name](**dropout)
    return line_loop(folder, model=model, task=task, evals=evals, device="cpu", **kwargs)


def outcome(*args, n_steps=10, **kwargs):
    loop = lm_loop(*args, **kwargs)
    loop.run(n_steps)
    return {k: v.numpy() for k, v in state_of(loop).items()}, history_of(loop)


def assert_equal_runs(found, wanted, tolerance=1e-5):
    (state, history), (wanted_state, wanted_history) = found, wanted
    assert state.keys() == wanted_state.keys()
    for name, value in wanted_state.items():
        # Nothing depends on the biases of keys: their gradients are rounding alone.
        atol = max(tolerance, 1e-3) if name == KEY_BIAS else tolerance
        np.testing.assert_allclose(state[name], value, rtol=tolerance, atol=atol, err_msg=name)
    for mode, metrics in wanted_history.items():
        for name, values in metrics.items():
            assert history[mode][name] == [(s, pytest.approx(v, rel=tolerance)) for s, v in values]


@functools.cache
def unchunked(name, recipe):
    return outcome(name=name, recipe=recipe)


@pytest.mark.parametrize("chunk_size", [1, 7, 36])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_in_chunks_are_ten_steps(name, recipe, chunk_size):
    """Losses, norms, evals, weights and slots, to rounding."""
    found = outcome(name=name, recipe=recipe, loss_chunk_size=chunk_size)

    assert_equal_runs(found, unchunked(name, recipe), TOLERANCES[recipe])


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("name", ["TransformerLM", "reversible"])
def test_ten_steps_in_chunks_and_blocks_are_ten_steps(name, mode):
    found = outcome(name=name, recipe="Adam", loss_chunk_size=7, use_memory_efficient_trainer=mode)

    assert_equal_runs(found, unchunked(name, "Adam"), TOLERANCES["Adam"])


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"cutoff": 2.4}], ids=str)
def test_ten_steps_of_losses_with_options_are_ten_steps(options):
    loss = tl.WeightedCategoryCrossEntropy(**options)
    found, wanted = (outcome(loss=loss, recipe="Adam", loss_chunk_size=n) for n in (7, 0))

    assert_equal_runs(found, wanted, TOLERANCES["Adam"])
    plain = unchunked("TransformerLM", "Adam")[1]["train"]["metrics/loss"]
    assert wanted[1]["train"]["metrics/loss"] != plain


@pytest.mark.parametrize("n_parts", [2, 3])
def test_parts_of_batches_go_in_chunks(n_parts):
    found = outcome(loss_chunk_size=7, n_accumulation_steps=n_parts)

    assert_equal_runs(found, unchunked("TransformerLM", "SGD"))


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
def test_chunks_compute_in_bfloat16_where_the_rest_does():
    half = outcome(precision="bf16", n_steps=20)
    chunks = outcome(precision="bf16", n_steps=20, loss_chunk_size=7)

    assert_equal_runs(chunks, half, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("make", [line_model, functools.partial(tl.Dense, 1)])
def test_the_body_is_compiled_and_chunks_are_not(make):
    """Also where there is no body, but the last Dense alone; evals are compiled as ever."""
    torch.compiler.reset()
    runs = [line_loop(model=make(), loss_chunk_size=n, compile=n > 0) for n in (0, 3)]
    for loop in runs:
        loop.run(5)

    for mode in ("train", "eval"):
        plain, compiled = (history_of(loop)[mode]["metrics/L2Loss"] for loop in runs)
        assert compiled == [(s, pytest.approx(v, rel=1e-4)) for s, v in plain]
    body = runs[1]._parts.trainers[0]._forward.model
    assert isinstance(body, tl.Accelerate) == (make is line_model)


def test_several_tasks_go_in_chunks():
    """Each with a loss of its own over the same last layer."""

    def run(chunk_size):
        tasks = [
            train_task(optimizer=optimizers.SGD(0.05)),
            TrainTask(batches(1), tl.SmoothL1Loss(), optimizers.SGD(0.05)),
        ]
        loop = line_loop(task=tasks, loss_chunk_size=chunk_size)
        loop.run(10)
        return {k: v.numpy() for k, v in state_of(loop).items()}, history_of(loop)

    assert_equal_runs(run(3), run(0))


def scaled_run(rank=0, size=1, **kwargs):
    """A loss that uses a weight of the model's own, which no layer of it does."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(12, 8), torch.nn.Linear(8, 12))
    model.heat = torch.nn.Parameter(torch.tensor(2.0))

    def mean(output, targets, weights):
        values = torch.nn.functional.cross_entropy(
            (output * model.heat).movedim(-1, 1), targets, reduction="none"
        )
        penalty = model[0].weight.pow(2).sum() * 0.1
        return (values * weights).sum() / weights.sum() + penalty

    loss = tl.Fn("Scaled", mean)
    task = TrainTask(share_of(sentences(), rank, size), loss, optimizers.Adam(0.01))
    loop = line_loop(
        model=model, task=task, evals=EvalTask(sentences(1), loss), device="cpu", **kwargs
    )
    loop.run(5)
    return {k: v.numpy() for k, v in state_of(loop).items()}, history_of(loop)


@needs_ranks
def test_what_the_loss_reaches_by_itself_is_trained_in_chunks(tmp_path):
    wanted = scaled_run()
    work = functools.partial(scaled_run, size=2, loss_chunk_size=7)

    assert wanted[0]["heat"] != 2.0
    assert_equal_runs(scaled_run(loss_chunk_size=7), wanted, TOLERANCES["Adam"])
    for found in ranks.values(tmp_path, 2, work):
        assert_equal_runs(found, wanted, TOLERANCES["Adam"])


@needs_ranks
@pytest.mark.parametrize(
    ("kwargs", "is_one_process"),
    [
        ({}, True),
        ({"n_accumulation_steps": 2}, True),
        ({"adasum": True}, False),
        ({"name": "GRULM", "recipe": "Adam"}, True),
        ({"name": "reversible", "recipe": "Adafactor"}, False),  # ranks drop out as they draw
    ],
    ids=str,
)
def test_ranks_in_chunks_equal_ranks_without(kwargs, is_one_process, tmp_path):
    """Weights are uneven between ranks."""

    def ranks_of(chunk_size):
        folder = tmp_path / str(chunk_size)
        work = functools.partial(on_rank, loss_chunk_size=chunk_size, **kwargs)
        return ranks.values(folder, 2, work)

    found = ranks_of(5)

    model, recipe = kwargs.get("name", "TransformerLM"), kwargs.get("recipe", "SGD")
    wanted = [unchunked(model, recipe)] * 2 if is_one_process else ranks_of(0)
    for one, other in zip(found, wanted, strict=True):
        assert_equal_runs(one, other, TOLERANCES[recipe])


def on_rank(rank, **kwargs):
    return outcome(rank=rank, size=2, **kwargs)


@needs_ranks
def test_ranks_look_for_unused_weights_in_chunks_too(tmp_path):
    work = functools.partial(on_rank, loss_chunk_size=5, find_unused_parameters=True)
    for found in ranks.values(tmp_path, 2, work):
        assert_equal_runs(found, unchunked("TransformerLM", "SGD"))


# Checkpoints


def test_a_run_in_chunks_resumes_exactly(tmp_path):
    """Dropout included, which is the body's."""
    make = functools.partial(lm_loop, recipe="Adam", dropout=0.3, loss_chunk_size=7)

    assert_resumes(make, tmp_path, 5, 5)


def test_a_run_goes_on_with_chunks_and_without(tmp_path):
    """Checkpoints are the same files."""
    for chunk_size, until in ((0, 3), (7, 6), (0, 10)):
        loop = lm_loop(tmp_path, recipe="Adam", loss_chunk_size=chunk_size)
        loop.run(until - loop.step)
        loop.save_checkpoint("model")

    assert loop.step == 10
    state = {k: v.numpy() for k, v in state_of(loop).items()}
    assert_equal_runs((state, {}), (unchunked("TransformerLM", "Adam")[0], {}), 1e-4)


def test_dropout_draws_what_it_draws_without_chunks():
    found, wanted = (outcome(dropout=0.3, loss_chunk_size=n) for n in (7, 0))

    assert_equal_runs(found, wanted)


# Faults


def test_a_step_in_chunks_that_is_not_finite_changes_nothing():
    def with_nan():
        for i, (x, y, w) in enumerate(batches(0, 8)):
            yield (np.full_like(x, np.nan) if i == 3 else x), y, w

    task = TrainTask(with_nan(), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=100)
    loop = line_loop(task=task, loss_chunk_size=3)
    loop.run(2)
    before = state_of(loop)

    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop.run(1)

    assert all(torch.equal(before[k], v) for k, v in state_of(loop).items())


class Masked(torch.nn.Module):
    """A mean over targets that are not ignored, of which nobody outside can know."""

    def forward(self, outputs, targets):
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
        return torch.nn.functional.cross_entropy(outputs, targets, ignore_index=-100)


def loop_of(loss, *items, model=None):
    task = TrainTask(iter([items] * 3), loss, optimizers.SGD(0.1), loss_name="mine")
    evals = EvalTask([items], tl.Fn("Zero", lambda y: y.sum() * 0), metric_names=["zero"])
    return line_loop(model=model or tl.Dense(2), task=task, evals=evals, loss_chunk_size=2)


PADDED = np.array([[0, 1], [1, 1], [0, -100], [0, -100]])
SPREAD = tl.Fn("Spread", lambda y, t: (y.max(dim=0).values - y.min(dim=0).values).sum() + t.sum())


@pytest.mark.parametrize(
    ("loss", "items", "match"),
    [
        (SPREAD, [np.eye(4, 3, dtype=np.float32), np.ones(4, np.float32)], "and mine is .* for"),
        (
            Masked(),
            [np.eye(4, 3, dtype=np.float32), np.array([-100, 1, 0, 0])],
            "and mine is .* for rows 0 and 1 of the sample batch and nan for them in chunks",
        ),
        (
            Masked(),
            [np.eye(8, 3, dtype=np.float32).reshape(4, 2, 3), PADDED],
            "and mine is .* for rows 1 and 2 of the sample batch and .* for them in chunks",
        ),
        (
            tl.Fn("Broadcast", lambda y, t: ((y - t) ** 2).mean()),
            [np.eye(4, 3, dtype=np.float32), np.ones((1, 2), np.float32)],
            "mine cannot be computed for two rows of the sample batch in chunks .* first axis",
        ),
        (
            tl.MaskedSequenceAccuracy(),
            [np.ones((4, 5, 3), np.float32), np.ones((4, 5)), np.ones((4, 5), np.float32)],
            "MaskedSequenceAccuracy is none",
        ),
    ],
    ids=["spread", "masked", "masked later", "broadcast", "sequences"],
)
def test_a_loss_that_is_no_mean_over_items_is_refused(loss, items, match):
    """By its name, before any step, with what to do."""
    with pytest.raises(ValueError, match=f"{match}.*Leave loss_chunk_size at 0"):
        loop_of(loss, *items)


@pytest.mark.parametrize(
    "targets", [[-100, -100, -100, -100], [1, 0, 1, 0]], ids=["nothing counts", "all counts"]
)
def test_a_mask_that_hides_as_much_of_all_rows_is_not_seen(targets):
    """The sample batch shows nothing, though another may; as the docstring says."""
    loop_of(Masked(), np.eye(4, 3, dtype=np.float32), np.array(targets))


def test_a_loss_of_little_precision_is_no_other_loss():
    """Losses in bfloat16 have two or three digits."""
    mean = tl.Fn("Mean", lambda y, t: (y - t).pow(2).mean().bfloat16())
    items = np.random.default_rng(0).random((16, 3, 2), np.float32)

    loop_of(mean, items, items[..., :1])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"loss_chunk_size": -1}, "or 0 for no chunks; got -1"),
        ({"loss_chunk_size": 0.5}, "or 0 for no chunks; got 0.5"),
        (
            {"loss_chunk_size": 8, "strategy": "fsdp"},
            "loss_chunk_size=8 does not go with strategy='fsdp': ",
        ),
    ],
)
def test_sizes_of_no_use_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        line_loop(**kwargs)
