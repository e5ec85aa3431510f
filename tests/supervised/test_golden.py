"""Training runs and decoding give Trax's numbers."""

import figures
import numpy as np
import pytest

from trax_torch import layers as tl
from trax_torch import models, optimizers, shapes
from trax_torch.supervised import EvalTask, Loop, TrainTask, decoding, lr_schedules

ACTIVATIONS = {"Relu": tl.Relu, "Tanh": tl.Tanh}


def build_model(info):
    if info["model"] == "TransformerLM":
        return models.TransformerLM(**info["model_kwargs"])
    activation = next(make for name, make in ACTIVATIONS.items() if name in info["model"])
    return tl.Serial(tl.Dense(16), activation(), tl.Dense(2))


@pytest.mark.parametrize("name", figures.names("train"))
def test_a_training_run_has_the_losses_of_trax(name):
    """Losses, norms, evals and final weights of a dozen steps equal Trax's to 1e-3."""
    info = figures.case(name)
    recipe = getattr(optimizers, info["optimizer"])
    metrics = [getattr(tl, metric) for metric in info["metrics"]]
    batches = [tuple(figures.parts(name, f"batch{i}_")) for i in range(info["n_steps"] + 1)]
    model = build_model(info)
    model.init(shapes.signature(batches[0][0]))
    figures.set_flat_weights(model, figures.parts(name, "w"))
    schedule = getattr(lr_schedules, info["schedule"])(**info["schedule_kwargs"])
    loop = Loop(
        model,
        TrainTask(
            iter(batches),
            getattr(tl, info["loss"])(),
            recipe(**info["optimizer_kwargs"]),
            schedule,
        ),
        eval_tasks=EvalTask([batches[0]], [metric() for metric in metrics]),
        eval_at=lambda step: True,
    )

    loop.run(info["n_steps"])

    def recorded(mode, metric):
        return [value for _, value in loop.history.get(mode, metric)]

    losses = recorded("train", f"metrics/{info['loss']}")
    figures.assert_close(losses, figures.part(name, "losses"), 1e-3)
    for key in ("gradients_l2", "weights_l2"):
        figures.assert_close(recorded("train", f"training/{key}"), figures.part(name, key), 1e-3)
    for metric in info["metrics"]:
        want = figures.part(name, f"eval_{metric}")
        figures.assert_close(recorded("eval", f"metrics/{metric}"), want, 1e-3)
    got, want = figures.flat_weights(model), figures.parts(name, "final")
    for i in free_weights(info):  # moved by rounding errors alone, which SM3 magnifies
        got.pop(i), want.pop(i)
    for mine, theirs in zip(got, want, strict=True):
        figures.assert_close(mine, theirs, 1e-3)


def free_weights(info):
    """Positions of weights that no output depends on: a transformer's key biases, last first."""
    return [23, 7] if info["model"] == "TransformerLM" else []


@pytest.fixture(params=["train", "predict"])
def language_model(request):
    info = figures.case("decode_TransformerLM")
    model = models.TransformerLM(**info["kwargs"], mode=request.param)
    model.init(shapes.ShapeDtype((2, 1), np.int32))
    figures.set_flat_weights(model, figures.parts(info["weights_of"], "w"))
    return model


def greedy(model, n, **kwargs):
    return decoding.autoregressive_sample(
        model, batch_size=2, temperature=0.0, eos_id=-1, max_length=n, **kwargs
    )


def test_greedy_decoding_gives_the_tokens_of_trax(language_model):
    """From the start symbol alone, from a prefix, and from another start symbol."""
    case = "decode_TransformerLM"
    prefix = figures.part(case, "prefix")

    assert np.array_equal(greedy(language_model, 20), figures.part(case, "greedy"))
    assert np.array_equal(
        greedy(language_model, 12, inputs=prefix, start_id=3),
        figures.part(case, "greedy_prefix_start3"),
    )
    starts = np.full((2, 1), 3)
    assert np.array_equal(
        greedy(language_model, 12, inputs=prefix, start_id=starts),
        figures.part(case, "greedy_prefix_start3"),
    )


def test_decoding_in_eval_mode_gives_the_tokens_of_trax():
    case = "decode_TransformerLM"
    info = figures.case(case)
    model = models.TransformerLM(**info["kwargs"], mode="eval")
    model.init(shapes.ShapeDtype((2, 1), np.int32))
    figures.set_flat_weights(model, figures.parts(info["weights_of"], "w"))

    tokens = greedy(model, 8, inputs=figures.part(case, "prefix"), eval_mode=True)

    assert np.array_equal(tokens, figures.part(case, "greedy_eval"))


def test_the_sawtooth_of_trax_is_a_cosine_that_starts_again():
    """Trax's private cosine tail is PyTorch's CosineAnnealingWarmRestarts, one step later."""
    import torch

    info = figures.case("schedule_sawtooth")["kwargs"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=info["body_value"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=info["steps_per_cycle"], eta_min=info["min_value"]
    )
    rates = []
    for _ in range(400):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    steps, values = (
        figures.part("schedule_sawtooth", "steps"),
        figures.part("schedule_sawtooth", "values"),
    )
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        assert rates[step] == pytest.approx(value, rel=1e-6)
