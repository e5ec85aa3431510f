"""A run goes on where Trax stopped."""

import figures
import numpy as np
import pytest
import torch
import trax_files
from toys import batches, line_loop, state_of

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch.supervised import EvalTask, Loop, TrainTask, decoding

TRAX = figures.FOLDER / "single" / "trax_checkpoint"


def copy_loop(**kwargs):
    """The Loop of the case 'checkpoint'."""
    info = figures.case("checkpoint")
    x = figures.part("checkpoint", "x").astype(np.int64)
    batch = (x, x, np.ones(x.shape, np.float32))
    return Loop(
        models.TransformerLM(**info["kwargs"]),
        TrainTask([batch], tl.WeightedCategoryCrossEntropy(), optimizers.Adam(1e-4)),
        eval_tasks=EvalTask([batch], tl.WeightedCategoryAccuracy()),
        progress=False,
        **kwargs,
    )


def test_a_loop_reads_the_checkpoint_that_trax_wrote(capsys):
    """Step, history, logits and greedy tokens are Trax's."""
    loop = copy_loop()
    loop.load_checkpoint(str(TRAX))

    assert loop.step == figures.part("checkpoint", "step") == 800
    assert "Resumed from Trax's" in capsys.readouterr().out
    accuracy = loop.history.get("eval", "metrics/WeightedCategoryAccuracy")
    steps, values = zip(*accuracy, strict=True)
    assert list(steps) == figures.part("checkpoint", "eval_accuracy_steps")[: len(steps)].tolist()
    figures.assert_close(values, figures.part("checkpoint", "eval_accuracy")[: len(steps)])
    x = figures.part("checkpoint", "x")
    loop.model.eval()
    figures.assert_close(loop.model(x), figures.part("checkpoint", "eval_logits"))


def test_training_goes_on_from_the_slots_of_trax():
    """Adam's averages carry on: the loss stays low, where fresh slots would make it jump."""
    loop = copy_loop(eval_at=lambda step: True)
    loop.load_checkpoint(str(TRAX), "model.pkl.gz")
    slots = loop._parts.trainers[0].optimizer.state[loop._parts.trainers[0].params[1]]
    assert slots["step"].item() == 801
    assert bool(slots["exp_avg_sq"].any())

    loop.run(5)

    losses = [v for _, v in loop.history.get("train", "metrics/WeightedCategoryCrossEntropy")][-5:]
    assert losses[-1] < losses[0]
    assert loop.step == 805


def test_the_older_format_is_read_too(tmp_path):
    path = figures.FOLDER.parents[1] / ".." / "shared" / "trax_checkpoints"
    if not (path / "transformerlm_copy_2020.pkl.gz").exists():
        pytest.skip("the older file is not ours to ship; it lies in ../shared where it is present")
    model = models.TransformerLM(13, 64, 128, 2, 2, max_len=256)
    x = np.zeros((2, 12), np.int64)
    task = TrainTask(
        [(x, x, np.ones(x.shape, np.float32))],
        tl.WeightedCategoryCrossEntropy(),
        optimizers.Adam(1e-4),
    )
    loop = Loop(model, task, progress=False)

    loop.load_checkpoint(str(path), "transformerlm_copy_2020")

    assert loop.step == 5100
    prefix = np.array([[0, 3, 7, 5, 3, 2, 4, 0]])
    tokens = decoding.autoregressive_sample(model, prefix, temperature=0.0, max_length=6)
    assert tokens.tolist() == [[3, 7, 5, 3, 2, 4]]


RECIPES = [
    optimizers.SGD(0.05),
    optimizers.Momentum(0.01),
    optimizers.RMSProp(0.01),
    optimizers.Adam(0.01),
    optimizers.Adafactor(0.02),
    optimizers.Adafactor(0.02, do_momentum=True, beta1=0.9),
    optimizers.SM3(0.02),
    optimizers.SM3(0.02, momentum=0.0),
    optimizers.SM3(0.02, second_moment_averaging=0.9),
]


def loop_with(recipe):
    model = tl.Serial(tl.Dense(8), tl.LayerNorm(), tl.Tanh(), tl.Dense(1))
    task = TrainTask(batches(), tl.L2Loss(), recipe)
    return line_loop(None, model=model, task=task)


def trax_slots(loop):
    """This run's slots as Trax would store them: by weight, in Trax's order and layout."""
    name = type(loop._parts.trainers[0].optimizer).__name__
    state = loop._parts.trainers[0].optimizer.state
    flat = []
    for path in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"):
        p = loop.model.get_parameter(path)
        slots, turned = state.get(p, {}), p.dim() == 2

        def trax(t, turned=turned, p=p):
            return (t.t() if turned and t.shape == p.shape else t).detach().clone().numpy()

        if name == "BoundAdafactor" and turned:
            flat += [trax(slots["v_col"]), trax(slots["v_row"])]
        elif name == "BoundAdafactor":
            flat += [trax(slots["v"])]
        elif name == "BoundSM3":
            flat += [trax(slots["m"])] if "m" in slots else []
            for kind in ("v1", "v2"):
                axes = [f"{kind}_{i}" for i in range(p.dim())][:: -1 if turned else 1]
                flat += [trax(slots[key]) for key in axes if key in slots]
        else:
            keys = ["momentum_buffer", "avg_sq_grad", "exp_avg", "exp_avg_sq"]
            flat += [trax(slots[key]) for key in keys if key in slots]
        if name == "BoundAdafactor" and "m" in slots:
            flat += [trax(slots["m"])]
    return flat


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_the_slots_of_every_optimizer_go_on(tmp_path, recipe):
    """A run handed over as Trax's files equals the run that was not interrupted."""
    whole = loop_with(recipe)
    whole.run(5)
    weights = figures.flat_weights(whole.model)
    trax_files.write_today(tmp_path, step=5)
    trax_files.write_arrays(tmp_path / "model.weights.npy.gz", weights)
    trax_files.write_arrays(tmp_path / "model.opt_slots0.npy.gz", trax_slots(whole))
    heir = loop_with(recipe)
    heir.load_checkpoint(str(tmp_path))
    for _ in range(5):
        heir.tasks[0].next_batch()
    whole._state.history = heir.history

    whole.run(4)
    heir.run(4)

    mine, theirs = state_of(heir), state_of(whole)
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert torch.allclose(tensor.float(), theirs[key].float(), rtol=1e-5, atol=1e-7), key


def test_a_checkpoint_of_trax_that_does_not_fit_is_refused_whole(tmp_path):
    loop = copy_loop()
    before = state_of(loop)
    other = line_loop(None)
    with pytest.raises(MismatchError):
        other.load_checkpoint(str(TRAX))
    stranger = Loop(
        models.TransformerLM(**figures.case("checkpoint")["kwargs"]),
        TrainTask(loop.tasks[0].labeled_data, tl.WeightedCategoryCrossEntropy(), torch.optim.AdamW),
    )
    with pytest.raises(CheckpointError, match="Slots that Trax saved cannot go on in AdamW"):
        stranger.load_checkpoint(str(TRAX))
    with pytest.raises(IndexError, match="has the slots of 1 tasks; there are 2"):
        two = Loop(loop.model, [loop.tasks[0], loop.tasks[0]])
        two.load_checkpoint(str(TRAX))

    assert all(torch.equal(before[k], v) for k, v in state_of(loop).items())


def test_a_layer_reads_the_files_of_trax():
    """Layer.init_from_file takes what Trax's checkpoints hold; the state too, if asked."""
    info = figures.case("checkpoint")
    for weights_only in (True, False):
        model = models.TransformerLM(**info["kwargs"])
        model.init_from_file(str(TRAX / "model.pkl.gz"), weights_only=weights_only)
        model.eval()

        logits = model(figures.part("checkpoint", "x"))
        figures.assert_close(logits, figures.part("checkpoint", "eval_logits"))


@pytest.mark.parametrize("name", ["adam", "bn"])
def test_other_runs_of_trax_go_on(name):
    """A language model with Adam, and a convolution with BatchNorm and Momentum's slots."""
    checkpoint = figures.FOLDER / "trax_checkpoints" / name
    if name == "adam":
        model = models.TransformerLM(
            13, d_model=16, d_ff=16, n_layers=1, n_heads=2, max_len=32, dropout=0.1
        )
        x = np.ones((4, 12), np.int64)
        batch, optimizer = (x, x, np.ones(x.shape, np.float32)), optimizers.Adam(0.001)
    else:
        model = tl.Serial(
            tl.Conv(4, (3, 3)),
            tl.BatchNorm(),
            tl.Relu(),
            tl.Flatten(),
            tl.Dropout(0.1),
            tl.Dense(3),
        )
        x = np.ones((4, 5, 5, 3), np.float32)
        batch, optimizer = (x, np.zeros(4, np.int64), np.ones(4)), optimizers.Momentum(0.001)
    task = TrainTask([batch], tl.WeightedCategoryCrossEntropy(), optimizer)
    loop = Loop(model, task, progress=False)

    loop.load_checkpoint(str(checkpoint))
    restored = loop.step
    loop.run(2)

    assert (restored, loop.step) == (2, 4)
    assert loop.history.get("eval", "metrics/WeightedCategoryCrossEntropy")
