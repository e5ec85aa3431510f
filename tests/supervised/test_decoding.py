"""Decoding: what comes out, and what is refused."""

import copy
import itertools
import typing

import numpy as np
import pytest
import ties
import torch
import toys
from checks import off_by_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.sampling import Sampler

VOCAB = 7


@pytest.fixture(scope="module")
def model():
    model = models.TransformerLM(
        vocab_size=VOCAB, d_model=16, d_ff=16, n_layers=2, n_heads=2, max_len=64, dropout=0.2
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=4)
    for p in model.parameters():  # livelier than at the start, so that rows differ
        p.data *= 3
    return model.double()


PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6], [2, 2, 2]])


def sample(model, **kwargs):
    defaults = {"eos_id": -1, "max_length": 10, "temperature": 0.0, "batch_size": 3}
    return decoding.autoregressive_sample(model, **{**defaults, **kwargs})


def test_eval_mode_makes_the_same_tokens_as_predict_mode(model):
    """At temperature 0, and at 1 for the same seeds."""
    for temperature in (0.0, 1.0):
        chosen = {"inputs": PROMPTS, "temperature": temperature, "seed": 5}
        fast, slow = sample(model, **chosen), sample(model, **chosen, eval_mode=True)

        assert torch.equal(fast, slow)
    assert torch.equal(fast, sample(model, **chosen, eval_mode=True, eval_min_length=32))


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    """A batch equals each row alone, for seeds per row."""
    batch = sample(model, inputs=PROMPTS, temperature=1.0, seed=[7, 8, 9])
    alone = [
        sample(model, inputs=PROMPTS[i : i + 1], temperature=1.0, seed=[7 + i], batch_size=1)
        for i in range(3)
    ]

    assert torch.equal(batch, torch.cat(alone))


def livelier(model, example):
    """Its weights are larger than at the start, so that rows differ."""
    model.init(example, rng=5)
    for p in model.parameters():
        p.data *= 3
    return model.double()


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


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SRU"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_a_recurrent_model_does_not_depend_on_the_rows_beside_it(kind, temperature):
    model = recurrent(getattr(tl, kind)(8))
    settings = {"temperature": temperature, "max_length": 15}

    together = sample(model, inputs=PROMPTS, seed=[7, 8, 9], **settings)

    for i in range(3):
        alone = sample(model, inputs=PROMPTS[[i]], seed=[7 + i], batch_size=1, **settings)
        assert together[i].tolist() == alone[0].tolist()


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


def test_each_call_starts_afresh_and_leaves_the_model_as_it_was(model):
    model.train()
    first, second = sample(model, inputs=PROMPTS), sample(model, inputs=PROMPTS)

    assert torch.equal(first, second)
    assert model.training
    assert model.sublayers[0].mode == "train"


def test_a_prefix_in_one_pass_equals_a_prefix_by_single_steps(model):
    with torch.no_grad(), model.predict(3, 16):
        symbols = torch.cat([torch.zeros(3, 1, dtype=torch.int64), PROMPTS], dim=1)
        for i in range(symbols.shape[1]):
            logits = model(symbols[:, i : i + 1])
        tokens = []
        for _ in range(10):
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
            logits = model(tokens[-1])

    assert torch.equal(torch.cat(tokens, dim=1), sample(model, inputs=PROMPTS))


def test_the_stream_yields_one_position_after_another_without_end(model):
    stream = decoding.autoregressive_sample_stream(model, PROMPTS, 3, temperature=0.0)
    taken = list(itertools.islice(stream, 10))

    assert all(t.shape == (3, 1) and t.dtype == torch.int64 for t in taken)
    assert torch.equal(torch.cat(taken, dim=1), sample(model, inputs=PROMPTS))
    assert model.sublayers[0].mode != "predict"


def test_the_stream_is_out_of_room_where_the_model_is(model):
    stream = decoding.autoregressive_sample_stream(model, temperature=0.0)
    with pytest.raises(tl.LayerError, match="room for 64 positions"):
        for _ in range(70):
            next(stream)


def test_what_follows_the_end_symbol_is_padding(model):
    """The end is kept, the row is padded, and the batch stops when all have ended."""
    free = sample(model, inputs=PROMPTS, max_length=20)
    eos = int(free[0, 3])
    ended = sample(model, inputs=PROMPTS, max_length=20, eos_id=eos, pad_id=-7)

    for row, full in zip(ended.tolist(), free.tolist(), strict=True):
        if eos in full:
            end = full.index(eos)
            assert row[: end + 1] == full[: end + 1]
            assert set(row[end + 1 :]) <= {-7}
        else:
            assert row == full[: len(row)]
    solo = sample(model, inputs=PROMPTS[:1], batch_size=1, max_length=20, eos_id=eos)
    assert solo.shape == (1, free[0].tolist().index(eos) + 1)


def test_numpy_and_lists_are_taken_as_tokens(model):
    expected = sample(model, inputs=PROMPTS)

    assert torch.equal(expected, sample(model, inputs=PROMPTS.numpy().astype(np.int32)))
    assert torch.equal(expected, sample(model, inputs=PROMPTS.tolist()))
    one = sample(model, start_id=np.int64(3), seed=np.int64(4), temperature=1.0)
    assert torch.equal(one, sample(model, start_id=3, seed=4, temperature=1.0))
    for start in (torch.tensor(3), np.array(3), [[3]] * 3):
        assert torch.equal(one, sample(model, start_id=start, seed=4, temperature=1.0))
    empty = sample(model, inputs=[[], [], []])
    assert torch.equal(empty, sample(model))


def test_a_model_of_several_inputs_gets_the_source():
    """n_in > 1: inputs are the source, and what is decoded begins with the start symbol."""

    class Copier(tl.Layer):
        """Answers the source, position by position."""

        def __init__(self):
            super().__init__(n_in=2, n_out=2)
            self.position = tl.ShiftRight()  # anything with a predict mode

        def forward(self, x):
            source, tokens = x
            step = torch.nn.functional.one_hot(source, VOCAB).float()
            return step[:, : tokens.shape[1]], tokens

    source = torch.tensor([[3, 4], [5, 6]])
    result = decoding.autoregressive_sample(
        Copier(), source, batch_size=2, temperature=0.0, eos_id=-1, max_length=2
    )
    assert result.tolist() == [[3, 3], [5, 5]]
    with pytest.raises(ValueError, match="takes 2 inputs, the first of which is the source"):
        decoding.autoregressive_sample(Copier())


class Foreign(nn.Module):
    """A plain module: the next token is the number of tokens so far."""

    def forward(self, tokens):
        counts = torch.arange(tokens.shape[1]).expand(tokens.shape) % VOCAB
        return torch.nn.functional.one_hot(counts, VOCAB).float()


class Caching(Foreign):
    """The same with a cache of its own, by the protocol."""

    rooms: typing.ClassVar = []
    count = None

    def init_cache(self, batch_size, max_length):
        self.count = 0
        self.rooms.append((batch_size, max_length))

    def reset_cache(self):
        self.count = 0

    def forward(self, tokens):
        logits = super().forward(tokens)
        if self.count is None:
            return logits
        logits = logits.roll(self.count, dims=-1)
        self.count += tokens.shape[1]
        return logits


def test_a_foreign_module_takes_part_by_its_own_cache_or_in_eval_mode():
    settings = {"batch_size": 2, "max_length": 5}
    module = Caching()
    module.rooms.clear()

    assert sample(module, **settings).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert module.rooms == [(2, 5)]
    assert sample(Foreign(), eval_mode=True, **settings).tolist() == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(TypeError, match="Foreign cannot predict position by position"):
        sample(Foreign(), **settings)


def test_a_foreign_module_is_between_tokens_as_it_was_before():
    """Two streams of one module do not disturb each other, and nothing is left behind."""
    module = Caching()
    streams = [
        decoding.autoregressive_sample_stream(module, [[1] * n], temperature=0.0) for n in (1, 3)
    ]
    taken = [[int(next(stream)) for stream in streams] for _ in range(3)]

    assert taken == [[1, 3], [2, 4], [3, 5]]
    assert module.count is None


class Remembering(tl.Layer):
    """Adds to each vector the sum of those before; its memory is of a kind of its own."""

    class Memory(nn.Module):
        total = 0.0

        def reset(self):
            self.total = 0.0

        def reorder(self, parents):
            self.total = self.total[parents]

    def init_cache(self, batch_size=None, max_length=None):
        self._memory = self.Memory()

    def forward(self, x):
        sums = x.cumsum(1)
        if self._memory is not None:
            sums = sums + self._memory.total
            self._memory.total = sums[:, -1:]
        return sums


class CountingTwice(tl.Layer):
    """Passes all on, and takes each position for two."""

    def init_cache(self, batch_size=None, max_length=None):
        self._memory = kv_cache.Position(None)

    def forward(self, x):
        if self._memory is not None:
            self._memory.advance(2 * x.shape[1])
        return x


def with_layer(layer):
    model = tl.Serial(
        tl.ShiftRight(),
        tl.Embedding(VOCAB, 8),
        tl.PositionalEncoding(64),
        layer,
        tl.CausalAttention(8, n_heads=2),
        tl.Dense(VOCAB),
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=2)
    return model.double()


@pytest.mark.parametrize("layer", [Remembering, CountingTwice])
def test_memories_of_other_kinds_take_part(layer):
    """Each layer counts for itself then, and beams are rows that are reordered."""
    model = with_layer(layer())

    assert torch.equal(sample(model, inputs=PROMPTS), sample(model, inputs=PROMPTS, eval_mode=True))
    beams = decoding.beam_search(model, PROMPTS, 3, n_beams=1, eos_id=-1, max_length=10)
    assert torch.equal(beams[:, 0], sample(model, inputs=PROMPTS))
    several, scores = decoding.beam_search(
        model, PROMPTS, 3, n_beams=4, eos_id=-1, max_length=5, return_scores=True
    )
    tokens = torch.cat([PROMPTS.repeat_interleave(4, 0), several.flatten(0, 1)], dim=1)
    model.eval()
    with torch.no_grad():
        log_probs = torch.log_softmax(model(tokens), -1).gather(2, tokens[..., None])[:, 3:, 0]
    assert torch.allclose(log_probs.sum(1).float(), 10 / 6 * scores.flatten(), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="prompt_lengths needs"):
        sample(model, inputs=PROMPTS, prompt_lengths=[1, 2, 3])


def test_eval_mode_stays_within_a_models_length():
    """Padding to a power of two goes no further than there will be tokens."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    settings = {"batch_size": 1, "max_length": 12}

    assert torch.equal(sample(model, **settings), sample(model, eval_mode=True, **settings))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"eval_mode": True, "start_id": 5}, ValueError, "its own start symbol, 0"),
        ({"inputs": PROMPTS, "batch_size": 2}, ValueError, "batch of 3, but batch_size is 2"),
        ({"inputs": PROMPTS.float()}, TypeError, r"integers .*; got torch.float32. Make rows"),
        ({"inputs": PROMPTS > 0}, TypeError, r"integers .*; got torch.bool"),
        ({"inputs": PROMPTS[0]}, ValueError, r"shape \(batch, length\); got shape \(3,\). One seq"),
        ({"inputs": [[1, 2], [3]]}, TypeError, r"got \[\[1, 2\], \[3\]\]. .* give prompt_lengths"),
        (
            {"inputs": "abc"},
            TypeError,
            r"integers of shape \(batch, length\); got 'abc'. Make rows",
        ),
        ({"inputs": np.array(["a"])}, TypeError, r"integers of shape \(batch, length\); got array"),
        (
            {"inputs": list(PROMPTS)},
            TypeError,
            r"length\); got \[tensor.*. Make rows of one length",
        ),
        (
            {"start_id": np.zeros((3, 2), int)},
            ValueError,
            r"\(batch, 1\); got shape \(3, 2\). Give",
        ),
        ({"start_id": [3, 2, 1]}, ValueError, r"\(batch, 1\); got shape \(3,\). Give one for each"),
        (
            {"inputs": PROMPTS, "prompt_lengths": [1.0, 2.0, 3.0]},
            TypeError,
            "row; got torch.float32",
        ),
        (
            {"inputs": PROMPTS, "prompt_lengths": "abc"},
            TypeError,
            "row; got 'abc'. Count the tokens",
        ),
        ({"start_id": None}, TypeError, r"start_id is an integer, or .*; got None. Give 0"),
        ({"start_id": 1.5}, TypeError, r"start_id is an integer, or .*; got torch.float32"),
        ({"start_id": True}, TypeError, r"start_id is an integer, or .*; got torch.bool"),
        ({"start_id": np.zeros((2, 1), int)}, ValueError, "start_id have a batch of 2"),
        ({"temperature": -0.5}, ValueError, "temperature is a number, 0 or more; got -0.5"),
        ({"max_length": 0}, ValueError, "max_length counts tokens, so it is at least 1; got 0"),
        ({"max_length": 5.0}, TypeError, "max_length is an integer; got 5.0"),
        (
            {"max_length": None},
            TypeError,
            "max_length is an integer; got None; give a number: a stream",
        ),
        ({"eval_min_length": 0}, ValueError, "eval_min_length counts positions, so .*; got 0"),
        ({"eval_min_length": -3}, ValueError, "counts positions, so it is at least 1; got -3"),
        ({"eval_min_length": 2.5}, TypeError, "eval_min_length is an integer; got 2.5"),
        ({"eval_min_length": "3"}, TypeError, "eval_min_length is an integer; got '3'"),
        ({"pad_id": 1.5}, TypeError, "pad_id is an integer; got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size counts sequences, so it is at least 1; got 0"),
        ({"eos_id": None}, TypeError, "eos_id is an integer; got None; give -1 for none"),
        ({"seed": [1, 2], "temperature": 1.0}, ValueError, "got 2 for 3 rows"),
    ],
)
def test_what_cannot_be_decoded_is_refused(model, kwargs, error, match):
    with pytest.raises(error, match=match):
        sample(model, **kwargs)


def test_a_stream_alone_may_be_without_end(model):
    """What is returned whole must end, and so must what is compiled for."""
    for search in (decoding.autoregressive_sample, decoding.beam_search, decoding.warmup):
        with pytest.raises(
            TypeError, match="max_length is an integer; got None; give a number: a stream"
        ):
            search(model, max_length=None)
    assert next(decoding.autoregressive_sample_stream(model, max_length=None)).shape == (1, 1)
    with pytest.raises(ValueError, match="max_length counts tokens, so it is at least 1; got 0"):
        decoding.autoregressive_sample_stream(model, max_length=0)


RAGGED = torch.tensor([[1, 2, 3, 4, 5], [6, 5, -1, 99, 0], [3, 0, 0, 0, 0]])


def recurrent(cell):
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, 8), cell, tl.Dense(VOCAB))
    return livelier(model, torch.zeros(1, 1, dtype=torch.int64))


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


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(model):
    """Up to the end symbol; padding has 0. A stream yields the same."""
    free = sample(model, inputs=PROMPTS, temperature=2.0, seed=1)
    settings = {"temperature": 2.0, "seed": 1, "eos_id": int(free[0, 4])}
    tokens, log_probs = sample(model, inputs=PROMPTS, return_log_probs=True, **settings)

    model.eval()
    whole = torch.cat([PROMPTS, tokens], dim=1)
    with torch.no_grad():
        want = torch.log_softmax(model(whole), -1).gather(2, whole[..., None])[:, 3:, 0].float()
    ends = (tokens == settings["eos_id"]).cumsum(1) - (tokens == settings["eos_id"]).long()
    assert torch.allclose(log_probs, want.masked_fill(ends > 0, 0.0), atol=1e-5)
    assert torch.equal(tokens, sample(model, inputs=PROMPTS, **settings))
    stream = decoding.autoregressive_sample_stream(
        model, PROMPTS, 3, temperature=2.0, seed=1, return_log_probs=True
    )
    first, its_log_probs = next(stream)
    assert torch.equal(first, tokens[:, :1])
    assert torch.allclose(its_log_probs, want[:, :1], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_type_give_float32_log_probabilities(model, dtype):
    """Those that float64 weights give to the same tokens, as closely as the type allows."""
    other = copy.deepcopy(model).to(dtype)
    settings = {"inputs": PROMPTS, "batch_size": 3, "eos_id": -1}

    tokens, log_probs = sample(other, return_log_probs=True, **settings)
    beams, scores = decoding.beam_search(
        other, n_beams=2, max_length=5, length_penalty=0, return_scores=True, **settings
    )

    assert log_probs.dtype == scores.dtype == torch.float32
    for found, its in ((log_probs, tokens), (scores, beams.flatten(0, 1))):
        rows = its.shape[0] // 3
        close = {torch.bfloat16: 0.2, torch.float64: 1e-5}.get(dtype)
        if close is None:
            close = off_by_rounding(lambda its=its, rows=rows: wide_told(model, its, rows), model)
        want = told(model, its, rows)
        if found is scores:
            n_terms = its.shape[1] if dtype == torch.float32 else 2  # a bound, or what was seen
            want, close = want.sum(1).view_as(scores), n_terms * close
        assert torch.allclose(found, want, rtol=0, atol=close)
    if dtype == torch.float64:
        assert torch.equal(tokens, sample(model, **settings))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
def test_float32_chooses_what_float64_does_for_any_number_of_rows(model, n_rows):
    """Few rows are multiplied in a way of their own; processors have kernels by their number."""
    inputs = torch.randint(1, VOCAB, (n_rows, 3), generator=torch.Generator().manual_seed(n_rows))
    narrow, chosen = copy.deepcopy(model).float(), {"temperature": 0.7, "seed": 2}

    found, want = (sample(m, inputs=inputs, batch_size=n_rows, **chosen) for m in (narrow, model))

    ties.assert_same_tokens(found, want, ties.in_float64(model), inputs, **chosen)


def told(model, tokens, n_each=1):
    """The log-probabilities of what follows the prompts, from the model in eval mode."""
    return wide_told(model, tokens, n_each).float()


def wide_told(model, tokens, n_each=1):
    """The same in the model's own type."""
    logits = ties.logits_of(model.eval(), PROMPTS.repeat_interleave(n_each, 0), tokens)
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def test_filters_are_handed_to_the_sampler(model, monkeypatch):
    seen = {}

    def sampler(temperature, batch_size, seed, **filters):
        seen.update(filters)
        return Sampler(temperature, batch_size, seed)

    monkeypatch.setattr(decoding, "Sampler", sampler)
    sample(model, top_k=3, min_p=0.1)
    assert seen == {"top_k": 3, "top_p": None, "min_p": 0.1}
    next(decoding.autoregressive_sample_stream(model, top_p=0.9))
    assert seen == {"top_k": None, "top_p": 0.9, "min_p": None}


def test_an_end_at_the_first_position_ends_a_row_there(model):
    """The end symbol is the result, others go on; and where all end, all is over."""
    first = sample(model, inputs=PROMPTS, max_length=1)
    eos = int(first[1])

    tokens = sample(model, inputs=PROMPTS, eos_id=eos, pad_id=-5)

    assert tokens[1, 0] == eos
    assert set(tokens[1, 1:].tolist()) <= {-5}
    solo = sample(model, inputs=PROMPTS[1:2], batch_size=1, eos_id=eos)
    assert solo.tolist() == [[eos]]
    twice = sample(model, inputs=PROMPTS[[1, 1]], batch_size=2, eos_id=eos)
    assert twice.tolist() == [[eos], [eos]]
    assert first.shape == (3, 1)


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


@pytest.mark.parametrize("eval_mode", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"inputs": [[1, 7, 2]]},
            "Token id 7 is outside the vocabulary of 7, whose ids are 0 to 6",
        ),
        ({"inputs": [[1, -3, 2]]}, "Token id -3 is outside the vocabulary of 7"),
    ],
)
def test_ids_outside_the_vocabulary_are_named(model, kwargs, match, eval_mode):
    with pytest.raises(tl.LayerError, match=match):
        sample(model, batch_size=1, eval_mode=eval_mode, **kwargs)
    with pytest.raises(tl.LayerError, match="Token id 8 is outside the vocabulary of 7"):
        sample(model, start_id=8)


class ByKeyword(nn.Module):
    """A plain module that calls its embedding as it likes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens):
        return self.embedding(input=nn.functional.pad(tokens, (1, 0))[:, :-1])


def test_an_embedding_may_be_called_by_keyword():
    module = ByKeyword()

    assert sample(module, eval_mode=True).shape == (3, 10)
    with pytest.raises(tl.LayerError, match="Token id 7 is outside the vocabulary of 7"):
        sample(module, inputs=[[7, 1]], batch_size=1, eval_mode=True)


class Answering(Caching):
    """Returns what it is told to make of its logits."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, tokens):
        return self.made(super().forward(tokens))


@pytest.mark.parametrize("eval_mode", [False, True])
@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda x: {"logits": x}, "Answering gave dict. Let it return them, or a tuple"),
        (lambda x: (), "Answering gave tuple"),
        (lambda x: x[:, -1], r"Answering gave torch.float32 of shape \(3, 7\)"),
        (lambda x: x.argmax(-1, keepdim=True), r"gave torch.int64 of shape \(3, \d, 1\)"),
        (lambda x: x[:, :2], r"\(3, 4, vocab\); Answering gave torch.float32 of shape \(3, 2, 7\)"),
        (lambda x: x[:1], r"gave torch.float32 of shape \(1, 4, 7\)"),
    ],
)
def test_what_is_no_logits_is_refused(made, match, eval_mode):
    with pytest.raises(tl.LayerError, match="Tokens are chosen by logits, .*" + match):
        sample(Answering(made), inputs=PROMPTS, eval_mode=eval_mode)


def test_logits_may_begin_a_tuple_or_a_list():
    for made in (lambda x: (x, 1), lambda x: [x]):
        tokens = sample(Answering(made), eval_mode=True)

        assert torch.equal(tokens, sample(Foreign(), eval_mode=True))


@pytest.mark.parametrize("eval_mode", [False, True])
def test_logits_that_are_not_numbers_are_refused(eval_mode):
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    model.sublayers[-1].bias.data[3] = torch.nan

    with pytest.raises(ValueError, match="logits for token 1 are not numbers: a row holds NaN"):
        sample(model, eval_mode=eval_mode)


def test_masked_logits_are_numbers():
    """A model may forbid tokens by -inf."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    model.sublayers[-1].bias.data[1:] = -torch.inf

    assert set(sample(model, temperature=1.0, seed=0).flatten().tolist()) == {0}
    found, scores = decoding.beam_search(model, n_beams=2, max_length=3, return_scores=True)
    assert found.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert scores.tolist() == [[0.0, -torch.inf]]


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_has_ended_may_have_nothing_left(seed):
    """What a model makes of it is nobody's concern: its mates go on as they would alone."""
    settings = {"start_id": 4, "eos_id": 1, "temperature": 1.0}
    together = sample(toys.Grammar(), inputs=[[3], [2]], batch_size=2, seed=[0, seed], **settings)
    alone = sample(toys.Grammar(), inputs=[[2]], batch_size=1, seed=[seed], **settings)

    assert together[0].tolist() == [1] + [0] * (alone.shape[1] - 1)
    assert together[1].tolist() == alone[0].tolist()


def test_a_row_that_has_not_ended_must_have_something_left():
    """Without an end symbol no row ends, of a stream neither."""
    settings = {"start_id": 4, "temperature": 0.0}
    with pytest.raises(ValueError, match="logits for token 2 are not numbers"):
        sample(toys.Grammar(), inputs=[[3]], batch_size=1, eos_id=-1, **settings)
    with pytest.raises(ValueError, match="logits for token 2 are not numbers"):
        list(decoding.autoregressive_sample_stream(toys.Grammar(), [[3]], **settings))


def test_only_the_last_position_of_a_prompt_goes_through_the_last_layers(model):
    """The logits of the others would be most of a prompt's work, and nobody wants them."""
    sizes = []
    hook = model.sublayers[-1].register_forward_hook(lambda m, x, y: sizes.append(y.shape[1]))

    sample(model, inputs=PROMPTS, max_length=3)
    hook.remove()

    assert sizes == [1, 1, 1]
    assert not model.sublayers[-2]._forward_pre_hooks


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


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 9), batch=st.integers(1, 4), seed=st.integers(0, 1000))
def test_predict_mode_equals_eval_mode_for_any_prompts(model, n, batch, seed):
    prompts = torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
    chosen = {"inputs": prompts, "batch_size": batch, "temperature": 0.5, "seed": seed}

    assert torch.equal(sample(model, **chosen), sample(model, **chosen, eval_mode=True))


def test_without_a_seed_torchs_generator_decides(model):
    def draw(seed):
        torch.manual_seed(seed)
        return sample(model, temperature=1.0, max_length=20)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("make", [tl.CausalConv, tl.CausalDepthwiseConv])
def test_convolutions_predict_and_refuse_ragged_prompts(make):
    """Their memory is the end of the prompt, where padding would stand."""
    model = with_layer(make(8) if make is tl.CausalConv else make())
    fast = sample(model, inputs=PROMPTS)

    assert torch.equal(fast, sample(model, inputs=PROMPTS, eval_mode=True))
    beams = decoding.beam_search(model, PROMPTS, 3, n_beams=1, eos_id=-1, max_length=10)
    assert torch.equal(beams[:, 0], fast)
    with pytest.raises(ValueError, match="prompt_lengths needs a model whose memories"):
        sample(model, inputs=PROMPTS, prompt_lengths=[1, 2, 3])


@pytest.mark.parametrize("make", [lambda: tl.GRU(8), lambda: tl.CausalAttention(8, n_heads=2)])
def test_a_layer_with_a_memory_that_is_used_twice_is_refused(make):
    """Both uses would write into one memory."""
    shared = make()
    model = recurrent(tl.Serial(shared, tl.Dense(8), shared))

    for search in (sample, decoding.beam_search):
        with pytest.raises(TypeError, match="is used 2 times in Serial. Build a layer for each"):
            search(model, batch_size=1, max_length=1)
    assert sample(model, eval_mode=True).shape == (3, 10)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_eval_mode_leaves_the_memories_of_a_model_that_predicts_alone(model):
    expected = sample(model, inputs=PROMPTS)

    with model.predict(3, 20):
        for _ in range(2):
            assert torch.equal(sample(model, inputs=PROMPTS, eval_mode=True), expected)
        assert [m.filled for m in model._memories()] == [0, 0, 0]
        model(PROMPTS)
        assert [m.filled for m in model._memories()] == [3, 3, 3]


class Nest(Caching):
    """A module that sees to the cache of the one inside it, whose init_cache takes more."""

    class Inner(nn.Module):
        def init_cache(self, batch_size, max_length, heads):
            self.sizes = (batch_size, max_length, heads)

        def reset_cache(self):
            raise AssertionError

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    def init_cache(self, batch_size, max_length):
        super().init_cache(batch_size, max_length)
        self.inner.init_cache(batch_size, max_length, heads=2)


def test_the_outermost_module_makes_the_caches_of_those_inside():
    module = Nest()

    assert sample(module, max_length=5).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert not hasattr(module.inner, "sizes")


def test_a_stream_ends_after_max_length_tokens(model):
    """Also of a model that has room for more, or for any number."""
    for one in (model, recurrent(tl.GRU(8))):
        stream = decoding.autoregressive_sample_stream(one, temperature=0.0, max_length=3)
        assert len(list(stream)) == 3


def test_a_seed_may_be_a_tensor(model):
    chosen = {"temperature": 1.0, "inputs": PROMPTS}

    one = sample(model, seed=torch.tensor(7), **chosen)
    several = sample(model, seed=torch.tensor([7, 8, 9]), **chosen)

    assert torch.equal(one, sample(model, seed=7, **chosen))
    assert torch.equal(several, sample(model, seed=[7, 8, 9], **chosen))


def test_eval_mode_pads_to_its_shortest_length_whatever_max_length_is(model):
    lengths = []
    hook = model.register_forward_pre_hook(lambda m, x: lengths.append(x[0].shape[1]))
    sample(model, eval_mode=True, eval_min_length=32)
    hook.remove()

    assert set(lengths) == {32}
