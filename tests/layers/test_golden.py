"""Layers, losses and models give Trax's outputs and gradients for Trax's weights."""

import figures
import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes


def build(name):
    info = figures.case(name)
    maker = getattr(tl, info["layer"], None) or getattr(models, info["layer"], None)
    assert maker is not None
    return maker(**{k: tuple(v) if isinstance(v, list) else v for k, v in info["kwargs"].items()})


@pytest.mark.parametrize("name", figures.names("metric"))
def test_a_metric_gives_the_value_of_trax(name):
    """Losses and metrics equal Trax's on the same batch."""
    metric = build(name)
    inputs = figures.parts(name, "in")

    value = metric(figures.bare(inputs))

    figures.assert_close(value, figures.part(name, "out0"))


@pytest.mark.filterwarnings("ignore:Embedding_.* and are clipped")
@pytest.mark.parametrize("name", figures.names("layer"))
def test_a_layer_gives_the_outputs_and_gradients_of_trax(name):
    """Outputs, and gradients by every weight, equal Trax's for the same weights."""
    layer = build(name)
    inputs = figures.parts(name, "in")
    layer.init(shapes.signature(figures.bare(inputs)), rng=0)
    figures.set_flat_weights(layer, figures.parts(name, "w"))

    outputs = layer(figures.bare([torch.from_numpy(x) for x in inputs]))

    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = figures.parts(name, "out")
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted, strict=True):
        figures.assert_close(got.detach(), want)
    for c in figures.parts(name, "c"):
        (outputs[0] * torch.from_numpy(c)).sum().backward()
        figures.assert_close_together(
            figures.flat_gradients(layer), figures.parts(name, "grad"), tolerance=2e-4
        )


def calls_of(lengths):
    """Cuts 9 positions into calls of the given lengths."""
    ends = np.cumsum(lengths)
    assert ends[-1] == 9
    return [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize(
    ("part", "lengths"), [("predict_singles", [1] * 9), ("predict_prefill", [4, 1, 1, 3])]
)
@pytest.mark.parametrize("name", ["model_TransformerLM"])
@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_a_model_predicts_as_trax_does(name, part, lengths, how):
    """Predict mode gives Trax's logits, one position at a time and in chunks."""
    info = figures.case(name)
    mode = "predict" if how == "built to predict" else "train"
    model = getattr(models, info["layer"])(**{**info["kwargs"], "mode": mode})
    tokens = figures.part(name, "in0")
    model.init(shapes.signature(tokens[:, :1]), rng=0)
    figures.set_flat_weights(model, figures.parts(name, "w"))

    if mode == "predict":
        outputs = [model(tokens[:, part]) for part in calls_of(lengths)]
    else:
        with model.predict(batch_size=2, max_length=9):
            outputs = [model(tokens[:, part]) for part in calls_of(lengths)]

    figures.assert_close(np.concatenate(outputs, axis=1), figures.part(name, part))


def test_every_figure_of_trax_is_compared_with():
    """104 cases, and each kind of them has its test."""
    tested = {
        "schedule": "tests/supervised/test_lr_schedules.py",
        "optimizer": "tests/optimizers/test_golden.py",
        "metric": "tests/layers/test_golden.py",
        "layer": "tests/layers/test_golden.py",
        "batchnorm": "tests/layers/test_normalization.py",
        "decode": "tests/supervised/_generation/test_beams.py",
        "train": "tests/supervised/test_golden.py",
        "checkpoint": "tests/supervised/_checkpoint/test_from_trax.py",
    }
    counts = {kind: len(figures.names(kind)) for kind in tested}

    assert sum(counts.values()) == 104
    assert all(counts.values())
    for kind, path in tested.items():
        assert kind in (figures.FOLDER.parents[1] / path).read_text()
