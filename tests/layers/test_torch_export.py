"""`torch.export` and ONNX take the package's models, with batches and lengths left open."""

import io

import packages
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models

OPEN = torch.export.Dim.DYNAMIC
SMALL = {"d_model": 16, "d_ff": 16, "n_heads": 2, "max_len": 32}


def ids(*shape):
    return torch.randint(2, 16, shape, generator=torch.Generator().manual_seed(sum(shape)))


def pictures():
    return tl.Serial(
        tl.Conv(4, (3, 3), padding="SAME"),
        tl.BatchNorm(),
        tl.Relu(),
        tl.MaxPool((2, 2), (2, 2)),
        tl.Flatten(),
        tl.Dense(3),
    )


# A model, what it takes for a batch and a length, and which axes are left open.
CASES = {
    "TransformerLM": (
        lambda: models.TransformerLM(vocab_size=16, n_layers=1, **SMALL),
        ids,
        {0: OPEN, 1: OPEN},
    ),
    "TransformerEncoder": (
        lambda: models.TransformerEncoder(vocab_size=16, n_classes=3, n_layers=1, **SMALL),
        ids,
        {0: OPEN, 1: OPEN},
    ),
    "Transformer": (
        lambda: models.Transformer(16, n_encoder_layers=1, n_decoder_layers=1, **SMALL),
        lambda *shape: (ids(*shape), ids(*shape)),
        ({0: OPEN, 1: OPEN}, {0: OPEN, 1: OPEN}),
    ),
    "ReformerLM": (
        lambda: models.ReformerLM(vocab_size=16, n_layers=1, **SMALL),
        ids,
        {0: OPEN, 1: OPEN},
    ),
    "GRULM": (
        lambda: models.GRULM(vocab_size=16, d_model=16, n_layers=1),
        lambda batch, _: ids(batch, 8),
        {0: OPEN},
    ),
    "pictures": (pictures, lambda batch, _: torch.randn(batch, 8, 8, 1), {0: OPEN}),
}


def made(name):
    """A model that has weights, what it was made for, another input, and the open axes."""
    make, inputs, axes = CASES[name]
    model = make()
    model.init(inputs(2, 8), rng=0)
    return model.eval(), inputs(2, 8), inputs(3, 12), (axes,)


def first(outputs):
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_computes_the_same_for_other_batches_and_lengths(name):
    model, inputs, others, axes = made(name)

    program = torch.export.export(model, (inputs,), dynamic_shapes=axes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()

    torch.testing.assert_close(first(loaded(others)), first(model(others)))


def test_a_recurrent_model_whose_length_is_left_open_is_refused_by_torch():
    """It takes a step for each position, so the program has a length; torch's error says which."""
    make, _, _ = CASES["GRULM"]
    model = make()
    model.init(ids(2, 8), rng=0)

    with pytest.raises(Exception, match=r"constant \(8\)"):
        torch.export.export(model.eval(), (ids(2, 8),), dynamic_shapes=({1: OPEN},))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own exporter
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["TransformerLM", pytest.param("Transformer", marks=pytest.mark.exhaustive), "pictures"],
)
def test_onnx_computes_the_same_for_other_batches_and_lengths(name, tmp_path):
    packages.needed("onnxscript")
    runtime = packages.needed("onnxruntime")
    model, inputs, others, axes = made(name)

    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (inputs,), path, dynamic_shapes=axes, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    leaves = others if isinstance(others, tuple) else (others,)
    given = {i.name: x.numpy() for i, x in zip(session.get_inputs(), leaves, strict=True)}

    found = torch.from_numpy(session.run(None, given)[0])
    torch.testing.assert_close(found, first(model(others)), atol=1e-4, rtol=1e-4)
