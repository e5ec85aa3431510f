"""A layer filled from a file of Trax's computes what Trax's did, or stays as it was."""

import dataclasses

import figures
import numpy as np
import pytest
import torch
import trax_files
from trax_checkpoints import LM, OLDER, needs_older

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.interop import trax_checkpoint as tc
from trax_torch.shapes import ShapeDtype


def snapshot(layer):
    trees = tl.flatten_weights_and_state(layer.weights, layer.state)
    return [t.detach().clone() for tree in trees for t in tree]


def build_lm(**changes):
    return models.TransformerLM(**{**figures.case("checkpoint")["kwargs"], **changes})


@pytest.mark.parametrize("initialized", [True, False])
def test_a_filled_model_gives_the_logits_of_trax(initialized):
    """In eval mode, a model filled from Trax's file computes what Trax's model computed."""
    model = build_lm()
    if initialized:
        model.init(ShapeDtype((1, 4), torch.int64), rng=0)

    tc.load_into(model, tc.read(LM))

    model.eval()
    logits = model(figures.part("checkpoint", "x"))
    figures.assert_close(logits, figures.part("checkpoint", "eval_logits"))


def greedy(model, prefix, n_tokens):
    """Returns what the likeliest tokens after the start symbol 0 and a prefix are."""
    tokens, found = torch.nn.functional.pad(torch.tensor(prefix), (1, 0)), []
    with torch.no_grad(), model.predict(len(prefix), 64):
        for _ in range(n_tokens):
            tokens = model(tokens)[:, -1:].argmax(-1)
            found.append(tokens)
    return torch.cat(found, 1).tolist()


def test_a_filled_model_decodes_as_trax_does():
    """Greedy continuations of the prefixes 0 w 0 are those that Trax found: w."""
    model = build_lm()
    tc.load_into(model, tc.read(LM))
    prefix = figures.part("checkpoint", "x")[:, :9]

    assert greedy(model, prefix, 7) == figures.part("checkpoint", "greedy").tolist()


def test_a_model_built_to_predict_is_filled_with_weights_alone():
    """In predict mode there is other state than in the file; weights_only fills the rest."""
    model = build_lm(mode="predict")

    with pytest.raises(tc.MismatchError, match="weights_only=True leaves its state alone"):
        tc.load_into(model, tc.read(LM))
    tc.load_into(model, tc.read(LM), weights_only=True)

    weights = tl.flatten_weights_and_state(model.weights, ())[0]
    assert all(map(torch.equal, weights, tc.read(LM).flat_weights))


@needs_older
def test_a_model_filled_from_the_older_format_decodes_as_documented():
    """Trax's model of 2020 copies 3 7 5 3 2 4; its positional table has one axis more than ours."""
    model = models.TransformerLM(
        13, d_model=64, d_ff=128, n_layers=2, n_heads=2, max_len=256, mode="train"
    )
    tc.load_into(model, tc.read(OLDER))

    assert greedy(model, [[0, 3, 7, 5, 3, 2, 4, 0]], 6) == [[3, 7, 5, 3, 2, 4]]


def test_state_is_filled_unless_weights_alone_are_wanted(tmp_path):
    """Dropout's rate, its state in Trax, comes from the file; weights_only leaves it."""
    path = trax_files.write_today(tmp_path, flat_state=[np.array(0.25, np.float32)])
    checkpoint = tc.read(path)

    def rate_after(**arguments):
        model = tl.Serial(tl.Dense(3), tl.Dropout(rate=0.5))
        tc.load_into(model, checkpoint, **arguments)
        (rate,) = tl.flatten_weights_and_state((), model.state)[1]
        return float(rate)

    assert rate_after() == 0.25
    assert rate_after(weights_only=True) == 0.5


def test_filling_draws_no_random_numbers(tmp_path):
    """Initializing for the file's signature leaves the default generator where it was."""
    checkpoint = tc.read(trax_files.write_today(tmp_path))
    before = torch.get_rng_state()

    tc.load_into(tl.Dense(3), checkpoint)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("initialized", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 1}, r"weights: 38 arrays in the file where 22 are needed"),
        ({"n_layers": 3}, r"weights: 38 arrays in the file where 54 are needed"),
        ({"vocab_size": 11}, r"weights\[0\] has shape \(12, 32\) in the file where \(11, 32\)"),
        ({"max_len": 64}, r"weights\[1\] has shape \(32, 32\) in the file where \(64, 32\)"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(changes, message, initialized):
    """What does not fit is named by position with both shapes, and the layer is as it was."""
    model = build_lm(**changes)
    if initialized:
        model.init(ShapeDtype((1, 4), torch.int64), rng=0)
    before = snapshot(model)

    with pytest.raises(IndexError, match=message) as caught:
        tc.load_into(model, tc.read(LM))

    assert isinstance(caught.value, tc.MismatchError)
    assert isinstance(caught.value, tc.CheckpointError)
    assert str(LM) in str(caught.value)
    after = snapshot(model)
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("n_states", [0, 6, 8])
def test_state_of_another_model_changes_nothing(n_states):
    """Weights stay as they are if the state does not fit; weights_only takes them."""
    checkpoint = tc.read(LM)
    checkpoint = dataclasses.replace(checkpoint, flat_state=(torch.zeros(()),) * n_states)
    model = build_lm()
    model.init(ShapeDtype((1, 4), torch.int64), rng=0)
    before = snapshot(model)

    with pytest.raises(tc.MismatchError, match=f"state: {n_states} arrays .* 7 are needed"):
        tc.load_into(model, checkpoint)

    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))
    tc.load_into(model, checkpoint, weights_only=True)
    assert torch.equal(snapshot(model)[0], checkpoint.flat_weights[0])


def test_inputs_of_another_model_are_a_mismatch(tmp_path):
    """A signature that the model cannot take is named."""
    checkpoint = tc.read(trax_files.write_today(tmp_path))
    model = tl.Serial(tl.Embedding(3, 2), tl.Dense(3))  # takes no floats

    with pytest.raises(tc.MismatchError):
        tc.load_into(model, checkpoint)


def test_a_layer_without_weights_needs_a_signature(tmp_path):
    """A file without an input signature fills only initialized layers."""
    path = trax_files.write_pickle(
        tmp_path / "file", {"flat_weights": [np.ones((2, 3), np.float32)]}
    )
    checkpoint = tc.read(path)
    layer = tl.Dense(3, use_bias=False)

    with pytest.raises(ValueError, match="has no weights yet and takes 1 inputs"):
        tc.load_into(layer, checkpoint)

    layer.init(ShapeDtype((1, 2)))
    tc.load_into(layer, checkpoint)
    assert torch.equal(layer.weights, torch.ones(2, 3))
