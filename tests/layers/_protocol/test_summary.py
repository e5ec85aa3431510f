"""A model's table: shapes, weights and bytes are those of the model that computes."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import models, shapes

TOKENS = shapes.ShapeDtype((2, 5), np.int64)


def language_model():
    return models.TransformerLM(12, d_model=8, d_ff=16, n_layers=2, n_heads=2, max_len=16)


MODELS = {
    "TransformerLM": (language_model, TOKENS),
    "Transformer": (
        lambda: models.Transformer(
            12, d_model=8, d_ff=8, n_encoder_layers=1, n_decoder_layers=1, n_heads=2, max_len=16
        ),
        (TOKENS, TOKENS),
    ),
    "GRULM": (lambda: models.GRULM(12, 8, 1), TOKENS),
    "ReformerLM": (
        lambda: models.ReformerLM(12, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=16),
        shapes.ShapeDtype((2, 8), np.int64),
    ),
    "with statistics": (
        lambda: tl.Serial(tl.Dense(4), tl.BatchNorm(axis=0), tl.Relu()),
        shapes.ShapeDtype((2, 3)),
    ),
    "a layer that needs numbers": (
        lambda: tl.Serial(tl.Dense(4), tl.Fn("Sorted", lambda x: x[x[:, 0].argsort().tolist()])),
        shapes.ShapeDtype((2, 3)),
    ),
    "a module": (
        lambda: tl.as_layer(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())),
        shapes.ShapeDtype((2, 3)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_table_tells_what_the_model_gives_and_holds(name):
    """The first row is the whole model's, as `output_signature` and its tensors say."""
    make, signature = MODELS[name]
    model = make()
    model.init(signature, rng=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    table = model.summary(signature)

    outputs = model.output_signature(signature)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    assert table.rows[0].gives.startswith(str(first.shape))
    assert table.n_weights == table.rows[0].n_weights == sum(p.numel() for p in parameters)
    assert table.n_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert table.n_state == sum(b.numel() for b in model.buffers())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_row_is_what_a_hook_sees():
    """The shapes of a real call, layer by layer; weights of a layer are its own."""
    model = language_model()
    model.init(TOKENS, rng=0)
    seen = {}
    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, out, path=path: (
                seen.update({path: out.shape}) if isinstance(out, torch.Tensor) else None
            )
        )
    model.eval()(torch.ones(2, 5, dtype=torch.int64))

    rows = model.summary(TOKENS).rows
    wanted = sorted(str(tuple(shape)) for shape in seen.values())
    found = sorted(row.gives.removesuffix(" int64") for row in rows if row.gives.count("(") == 1)
    assert found == wanted
    (head,) = [row for row in rows if row.name == "Dense_12"]
    assert (head.level, head.gives) == (1, "(2, 5, 12)")
    assert (head.n_weights, head.n_bytes) == (8 * 12 + 12, 4 * (8 * 12 + 12))


def test_a_model_without_weights_stays_without():
    """It is told of as `init` would make it; without a signature nothing is known."""
    model = tl.Serial(tl.Dense(4), tl.Dense(2))

    assert model.summary(shapes.ShapeDtype((8, 3))).n_weights == 3 * 4 + 4 + 4 * 2 + 2
    assert not model.is_initialized
    with pytest.raises(ValueError, match=r"Serial has no weights yet.*Give the signature"):
        model.summary()


def test_without_a_signature_shapes_are_left_out():
    model = tl.as_layer(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))

    assert [row.gives for row in model.summary().rows] == ["", "", ""]


def test_weights_that_are_shared_count_once():
    """In each of their rows they are told of; in the model's, once."""
    dense = tl.Dense(4)
    model = tl.Serial(dense, dense)
    table = model.summary(shapes.ShapeDtype((2, 4)))

    assert [row.n_weights for row in table.rows] == [20, 20, 20]


def test_frozen_weights_are_told_of():
    model = tl.as_layer(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    model.module[0].requires_grad_(False)

    assert str(model.summary()).endswith("\n26 weights, 10 trained; 104 bytes")


def test_depth_cuts_the_table_and_not_the_counts():
    model = language_model()
    deep, flat = model.summary(TOKENS), model.summary(TOKENS, depth=1)

    assert {row.level for row in flat.rows} == {0, 1}
    assert [r for r in deep.rows if r.level < 2] == list(flat.rows)


def test_a_table_in_predict_mode_leaves_memories_out():
    model = language_model()
    model.init(TOKENS, rng=0)
    want = model.summary(TOKENS)
    with model.predict(batch_size=2, max_length=8):
        assert model.summary(TOKENS) == want


def test_a_signature_that_does_not_fit_is_a_layer_error():
    model = language_model()
    model.init(TOKENS, rng=0)
    with pytest.raises(tl.LayerError, match="Embedding"):
        model.summary(shapes.ShapeDtype((2, 5), np.float32))
    assert not any(module._forward_hooks for module in model.modules())


def test_rich_shows_a_table_of_its_own():
    rich = pytest.importorskip("rich.console", reason="rich is not installed")
    model = tl.Serial(tl.Select([0, 0]), tl.Add(), tl.Dense(3))
    console = rich.Console(width=80, record=True, file=io.StringIO())
    console.print(model.summary(shapes.ShapeDtype((2, 4))))

    shown = console.export_text()
    assert "Select[0,0]" in shown  # no markup
    assert "15 weights, all trained; 60 bytes" in shown
