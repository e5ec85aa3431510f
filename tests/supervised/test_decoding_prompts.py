"""Prompts and sources of any length say what they say alone, where a model has room for them."""

import numpy as np
import pytest
import torch
from decoders import PROMPTS, VOCAB, livelier, recurrent, sample

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.nan_check import NanCheck


def translator(kind):
    """A model that takes a source beside the tokens."""
    if kind == "Transformer":
        model = models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=32)
    else:
        model = models.LSTMSeq2SeqAttn(VOCAB, VOCAB, 8, 1, 1)
    one = torch.ones(1, 2, dtype=torch.int64)
    return livelier(model, (one, one))


# Padded to one length: the encoder does not look at 0.
SOURCES = torch.tensor([[1, 2, 3, 4, 5], [4, 6, 0, 0, 0], [5, 5, 2, 0, 0], [4, 6, 2, 0, 0]])


@pytest.mark.parametrize("kind", ["Transformer", "LSTMSeq2SeqAttn"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_source_that_is_padded_says_what_it_says_alone(kind, temperature):
    """A row depends on the symbols of its own source, and on nothing beside or after them."""
    model = translator(kind)
    settings = {"temperature": temperature, "max_length": 12, "return_log_probs": True}
    seeds = [6, 7, 8, 7]

    together, log_probs = sample(model, inputs=SOURCES, seed=seeds, batch_size=4, **settings)

    for i, source in enumerate(SOURCES):
        source = source[source > 0][None]
        alone, its = sample(model, inputs=source, seed=[seeds[i]], batch_size=1, **settings)
        assert together[i].tolist() == alone[0].tolist()
        assert torch.allclose(log_probs[i], its[0], atol=1e-5)
    assert float((log_probs[1] - log_probs[3]).abs().max()) > 1e-3  # and on all of them


@pytest.mark.parametrize("kind", ["Transformer", "LSTMSeq2SeqAttn"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_translator_in_eval_mode_makes_the_same_tokens_as_in_predict_mode(kind, temperature):
    model = translator(kind)
    settings = {"inputs": SOURCES, "batch_size": 4, "temperature": temperature, "seed": 3}

    fast, slow = sample(model, **settings), sample(model, eval_mode=True, **settings)

    assert torch.equal(fast, slow)
    assert len(fast.unique(dim=0)) > 1


def test_the_stream_is_out_of_room_where_the_model_is(model):
    stream = decoding.autoregressive_sample_stream(model, temperature=0.0)
    with pytest.raises(tl.LayerError, match="room for 64 positions"):
        for _ in range(70):
            next(stream)


def test_a_model_of_several_inputs_gets_the_source():
    """n_in > 1: inputs are the source, and what is decoded begins with the start symbol."""

    class Copier(tl.Layer):
        """Answers the source's first token, whatever the position."""

        def __init__(self):
            super().__init__(n_in=2, n_out=2)
            self.position = tl.ShiftRight()  # anything with a predict mode

        def forward(self, x):
            source, tokens = x
            first = torch.nn.functional.one_hot(source[:, :1], VOCAB).float()
            return first.expand(-1, tokens.shape[1], -1), tokens

    source = torch.tensor([[3, 4], [5, 6]])
    result = decoding.autoregressive_sample(
        Copier(), source, batch_size=2, temperature=0.0, eos_id=-1, max_length=2
    )
    assert result.tolist() == [[3, 3], [5, 5]]
    with pytest.raises(ValueError, match="takes 2 inputs, the first of which is the source"):
        decoding.autoregressive_sample(Copier())


RAGGED = torch.tensor([[1, 2, 3, 4, 5], [6, 5, -1, 99, 0], [3, 0, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["attention", "GRU", "LSTM", "SRU", "step by step"])
@pytest.mark.parametrize("eval_mode", [False, True])
def test_ragged_prompts_equal_each_prompt_alone(model, kind, eval_mode):
    """Whatever stands in the padding; for sampling too, with seeds per row."""
    if kind == "step by step":
        cell = tl.Serial(tl.Branch([], tl.MakeZeroState()), tl.Scan(GentleGRU(8), axis=1))
        model = recurrent(tl.Serial(cell, tl.Select([0], n_in=2)))
    elif kind != "attention":
        model = recurrent(getattr(tl, kind)(8))
    settings = {"temperature": 0.7, "eval_mode": eval_mode}
    lengths = [5, 2, 0]

    together = sample(model, inputs=RAGGED, prompt_lengths=lengths, seed=[7, 8, 9], **settings)

    for i, n in enumerate(lengths):
        alone = sample(model, inputs=RAGGED[i : i + 1, :n], seed=[7 + i], batch_size=1, **settings)
        assert together[i].tolist() == alone[0].tolist()


def small_room(seed):
    """A model for 10 positions."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=10)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=seed)
    for p in model.parameters():
        p.data *= 2.5
    return model


@pytest.mark.parametrize("looks", [lambda n, device: True, lambda n, device: n == 1])
def test_a_long_row_that_has_ended_leaves_a_short_one_its_room(looks, monkeypatch):
    """The long prompt has room for two tokens; as on a GPU too, which is not asked every time."""
    monkeypatch.setattr(NanCheck, "is_time", staticmethod(looks))
    model, n_longer = small_room(0), 0
    prompts = torch.randint(1, VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
    for seed in range(12):
        settings = {"temperature": 1.5, "batch_size": 1, "seed": [seed]}
        end = int(sample(model, inputs=prompts[:1], max_length=2, **settings)[0, -1])
        settings.update(eos_id=end, max_length=8)
        long = sample(model, inputs=prompts[:1], **settings)
        short = sample(model, inputs=prompts[1:, :2], **settings)
        settings.update(batch_size=2, seed=[seed, seed])

        together = sample(model, inputs=prompts, prompt_lengths=[8, 2], **settings)

        assert together[0, : long.shape[1]].tolist() == long[0].tolist()
        assert together[1, : short.shape[1]].tolist() == short[0].tolist()
        n_longer += short.shape[1] > 2
    assert n_longer > 3


def test_rows_that_have_not_ended_need_room_for_all_their_tokens():
    """The long one first; and the short one, where its own room ends."""
    model, prompts = small_room(0), torch.ones(2, 8, dtype=torch.int64)
    model.sublayers[-1].bias.data[3] += 50
    settings = {"inputs": prompts, "batch_size": 2, "prompt_lengths": [8, 2]}

    with pytest.raises(tl.LayerError, match="room for 10 positions; 10 are filled and 1 more came"):
        sample(model, max_length=3, **settings)
    assert sample(model, max_length=2, **settings).shape == (2, 2)
    starts = {"prompt_lengths": None, "start_id": 3, "inputs": None}
    with pytest.raises(tl.LayerError, match="ask for at most 10 tokens"):
        sample(model, max_length=11, **{**settings, **starts})


class GentleGRU(tl.GRUCell):
    """A cell that cannot take all steps at once."""

    def forward(self, x):
        return super().forward(x)


def test_equal_lengths_are_those_of_a_shorter_batch(model):
    cut = sample(model, inputs=PROMPTS, prompt_lengths=np.array([2, 2, 2]))

    assert torch.equal(cut, sample(model, inputs=PROMPTS[:, :2]))


def test_a_prompt_may_be_as_long_as_the_cache_and_no_longer():
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=5)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    prompt = torch.ones(1, 4, dtype=torch.int64)  # and the start symbol

    assert sample(model, inputs=prompt, batch_size=1, max_length=1).shape == (1, 1)
    with pytest.raises(tl.LayerError, match="room for 5 positions; 5 are filled and 1 more came"):
        sample(model, inputs=prompt, batch_size=1, max_length=2)
    with pytest.raises(tl.LayerError, match="room for 5 positions; 5 are filled and 1 more came"):
        decoding.beam_search(model, prompt, n_beams=3, max_length=2)
    with pytest.raises(tl.LayerError, match="room for 5 positions; 0 are filled and 6 more came"):
        sample(model, inputs=torch.ones(1, 5, dtype=torch.int64), batch_size=1, max_length=1)


def test_what_a_model_has_room_for_is_told(model):
    for search in (sample, decoding.beam_search):
        with pytest.raises(tl.LayerError, match=r"built for 64 \(max_len\), .* at most 61 tokens"):
            search(model, inputs=PROMPTS, batch_size=3, max_length=62, eos_id=-1)
        with pytest.raises(tl.LayerError, match="the prompt takes 71, .*: give a shorter one"):
            search(model, inputs=torch.ones(1, 70, dtype=torch.int64), batch_size=1)
    assert sample(model, inputs=PROMPTS, max_length=61).shape == (3, 61)


def test_prompts_of_one_symbol_and_of_none_are_prompts(model):
    one, none = PROMPTS[:, :1], PROMPTS[:, :0]

    assert torch.equal(sample(model, inputs=one), sample(model, inputs=one, eval_mode=True))
    assert torch.equal(sample(model, inputs=none), sample(model))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"prompt_lengths": [1, 2, 3]}, "give inputs too"),
        ({"inputs": PROMPTS, "prompt_lengths": [1, 2]}, r"one a row; got shape \(2,\). Give one"),
        ({"inputs": PROMPTS, "prompt_lengths": 5}, r"3 integers, one a row; got shape \(\)"),
        ({"inputs": PROMPTS, "prompt_lengths": [1, 2, 4]}, "between 0 and 3, .* inputs; got 4"),
        ({"inputs": PROMPTS, "prompt_lengths": [-1, 2, 3]}, "between 0 and 3, .* inputs; got -1"),
    ],
)
def test_lengths_that_fit_no_prompts_are_refused(model, kwargs, match):
    with pytest.raises(ValueError, match=match):
        sample(model, **kwargs)


def test_lengths_are_not_for_sources():
    model = models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=12)

    with pytest.raises(ValueError, match="inputs are the source of Serial, whose padding is told"):
        decoding.autoregressive_sample(model, PROMPTS, 3, prompt_lengths=[1, 2, 3])
