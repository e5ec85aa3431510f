"""Recurrent models: Trax's shapes, and predict mode against eval mode."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


MODELS = {
    "RNNLM": lambda mode="train": models.RNNLM(11, d_model=8, mode=mode),
    "RNNLM of three GRUs": lambda mode="train": models.RNNLM(
        11, 8, n_layers=3, rnn_cell=tl.GRUCell, rnn_cell_d_state_multiplier=1, mode=mode
    ),
    "RNNLM of one cell": lambda mode="train": models.RNNLM(11, 8, n_layers=1, mode=mode),
    "GRULM": lambda mode="train": models.GRULM(11, d_model=8, n_layers=2, mode=mode),
}


def start_symbol_first(tokens):
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)


def in_calls(model, tokens, lengths):
    ends = np.cumsum(lengths)
    parts = [tokens[:, end - n : end] for n, end in zip(lengths, ends, strict=True)]
    return torch.cat([model(part) for part in parts], dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_language_models_have_the_shapes_of_trax(name):
    model = MODELS[name]()
    x = np.ones((3, 28), np.int32)
    model.init(shapes.signature(x))

    assert model(x).shape == (3, 28, 11)


@pytest.mark.parametrize("lengths", [[1] * 7, [4, 1, 2], [7]])
@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_predicts_what_it_evaluates(name, how, lengths):
    """In predict mode the start symbol comes from the caller."""
    model = MODELS[name]()
    tokens = torch.randint(1, 11, (2, 7))
    model.init(tokens)
    wanted = model.eval()(tokens)

    if how == "built to predict":
        predicting = MODELS[name]("predict")
        predicting.init(tokens)
        predicting.weights = model.weights
        found = in_calls(predicting, start_symbol_first(tokens), lengths)
    else:
        with model.predict(batch_size=2, max_length=7):
            found = in_calls(model, start_symbol_first(tokens), lengths)

    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_rnnlm_stacks_cells_as_trax_prints_them():
    printed = str(models.RNNLM(11, d_model=8))

    assert printed.count("LSTMCell_in2_out2") == 2
    assert "Scan_in2_out2[\n    Serial_in2_out2[" in printed


def test_rnnlm_refuses_no_layers():
    with pytest.raises(ValueError, match="at least 1 layer; got n_layers=0"):
        models.RNNLM(11, n_layers=0)


def seq2seq(mode="train", **kwargs):
    return models.LSTMSeq2SeqAttn(11, 13, d_model=8, n_attention_heads=2, mode=mode, **kwargs)


def test_lstm_seq2seq_has_the_shapes_of_trax():
    model = models.LSTMSeq2SeqAttn(input_vocab_size=20, target_vocab_size=20, d_model=16)
    x = np.ones((3, 28), np.int32)
    model.init([shapes.signature(x), shapes.signature(x)])

    outputs, targets = model([x, x])

    assert outputs.shape == (3, 28, 20)
    np.testing.assert_array_equal(targets, x)
    np.testing.assert_allclose(np.exp(outputs).sum(-1), 1, atol=1e-5)


def test_lstm_seq2seq_is_made_of_the_weights_of_trax():
    """Embeddings, three LSTMs, four Dense layers in attention, two LSTMs, a Dense layer."""
    model = seq2seq()
    model.init((shapes.ShapeDtype((1, 5), np.int32), shapes.ShapeDtype((1, 4), np.int32)))

    flat, _ = tl.flatten_weights_and_state(model.weights, ())

    lstm, dense = [(16, 32), (32,)], [(8, 8), (8,)]
    encoder, decoder = [(11, 8), *lstm, *lstm], [(13, 8), *lstm]
    wanted = [*encoder, *decoder, *dense * 4, *lstm, *lstm, (8, 13), (13,)]
    assert [tuple(w.shape) for w in flat] == wanted


def test_lstm_seq2seq_does_not_see_padding_or_later_targets():
    """What stands in the place of later tokens does not matter; the encoder reads padding last."""
    model = seq2seq().eval()
    source, target = torch.randint(1, 11, (2, 6)), torch.randint(1, 13, (2, 5))
    source[0, 4:] = 0
    model.init((source, target))
    longer = torch.cat([source, torch.zeros_like(source[:, :3])], 1)
    later = target.clone()
    later[:, 3:] = 1

    wanted, _ = model((source, target))

    torch.testing.assert_close(model((longer, target))[0], wanted)
    torch.testing.assert_close(model((source, later))[0][:, :4], wanted[:, :4])


@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_lstm_seq2seq_predicts_what_it_evaluates(how):
    """The source is read once, whatever tokens come in its place later; a reset reads another."""
    model = seq2seq()
    sources, targets = torch.randint(1, 11, (2, 2, 6)), torch.randint(1, 13, (2, 2, 5))
    model.init((sources[0], targets[0]))
    model.eval()
    wanted = [model((s, t))[0] for s, t in zip(sources, targets, strict=True)]
    predicting = model
    if how == "built to predict":
        predicting = seq2seq("predict")
        predicting.init((sources[0], targets[0]))
        predicting.weights = model.weights

    def decode(source, target):
        predicting.reset_cache()
        start, later = start_symbol_first(target), (source != 0).long()
        outputs = [predicting((source, start[:, :2]))[0]]
        outputs += [predicting((later, start[:, i : i + 1]))[0] for i in range(2, 5)]
        return torch.cat(outputs, dim=1)

    if how == "built to predict":
        found = [decode(s, t) for s, t in zip(sources, targets, strict=True)]
    else:
        with model.predict():
            found = [decode(s, t) for s, t in zip(sources, targets, strict=True)]

    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
