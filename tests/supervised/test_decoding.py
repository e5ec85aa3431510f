"""Decoding: what comes out, and what is refused."""

import itertools
import typing

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._sampling import Sampler

VOCAB = 7


@pytest.fixture(scope="module")
def model():
    model = models.TransformerLM(
        vocab_size=VOCAB, d_model=16, d_ff=16, n_layers=2, n_heads=2, max_len=64, dropout=0.2
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=4)
    for p in model.parameters():  # livelier than at the start, so that rows differ
        p.data *= 3
    return model


PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6], [2, 2, 2]])


def sample(model, **kwargs):
    settings = {"eos_id": -1, "max_length": 10, "temperature": 0.0, "batch_size": 3}
    return decoding.autoregressive_sample(model, **{**settings, **kwargs})


def test_eval_mode_makes_the_same_tokens_as_predict_mode(model):
    """At temperature 0, and at 1 for the same seeds."""
    for temperature in (0.0, 1.0):
        settings = {"inputs": PROMPTS, "temperature": temperature, "seed": 5}
        fast, slow = sample(model, **settings), sample(model, **settings, eval_mode=True)

        assert torch.equal(fast, slow)
    assert torch.equal(fast, sample(model, **settings, eval_mode=True, eval_min_length=32))


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    """A batch equals each row alone, for seeds per row."""
    batch = sample(model, inputs=PROMPTS, temperature=1.0, seed=[7, 8, 9])
    alone = [
        sample(model, inputs=PROMPTS[i : i + 1], temperature=1.0, seed=[7 + i], batch_size=1)
        for i in range(3)
    ]

    assert torch.equal(batch, torch.cat(alone))


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
        ({"inputs": PROMPTS.float()}, TypeError, "token ids, which are integers; got torch.float"),
        ({"inputs": PROMPTS[0]}, ValueError, r"have shape \(batch, length\); got \(3,\)"),
        ({"start_id": np.zeros((3, 2), int)}, ValueError, r"int or \(batch, 1\); got"),
        ({"start_id": np.zeros((2, 1), int)}, ValueError, "start_id have a batch of 2"),
        ({"temperature": -0.5}, ValueError, "temperature is 0 or more; got -0.5"),
        ({"max_length": 0}, ValueError, "at least 1; got 0"),
        ({"seed": [1, 2], "temperature": 1.0}, ValueError, "got 2 for 3 rows"),
    ],
)
def test_what_cannot_be_decoded_is_refused(model, kwargs, error, match):
    with pytest.raises(error, match=match):
        sample(model, **kwargs)


def test_a_temperature_of_0_is_the_argmax_and_draws_nothing():
    logits = torch.tensor([[0.1, 3.0, 3.0], [5.0, -torch.inf, 4.0]])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    assert Sampler(0.0, 2)(logits).tolist() == [1, 0]
    assert torch.equal(torch.rand(1), expected)


def test_sampling_follows_the_softmax_and_keeps_masked_tokens_masked():
    """At temperature 1: frequencies agree with the probabilities, by a chi-square test."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    n = 20_000
    logits = probabilities.log().expand(n, 5)
    counts = torch.bincount(Sampler(1.0, n, seed=1)(logits), minlength=5).double()

    assert counts[4] == 0
    expected = n * probabilities[:4].double()
    chi_square = ((counts[:4] - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom: passes 999 times in 1000


def test_without_a_seed_torchs_generator_decides(model):
    def draw(seed):
        torch.manual_seed(seed)
        return sample(model, temperature=1.0, max_length=20)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
