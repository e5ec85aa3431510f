"""Caches of an uncompiled run grow with its sequences, and change no token by it."""

import pytest
import torch
from decoders import VOCAB, livelier

from trax_torch import layers as tl
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import engine

PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def attention():
    layers = [tl.CausalAttention(8, n_heads=2) for _ in range(2)]
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, 8), *layers, tl.Dense(VOCAB))
    return livelier(model, torch.zeros(1, 1, dtype=torch.int64))


CALLS = {
    "sampled": lambda m: decoding.autoregressive_sample(
        m, PROMPTS, batch_size=2, seed=0, max_length=40, eos_id=-1
    ),
    "ragged": lambda m: decoding.autoregressive_sample(
        m, PROMPTS, batch_size=2, seed=0, max_length=40, eos_id=-1, prompt_lengths=[1, 3]
    ),
    "beams": lambda m: decoding.beam_search(
        m, PROMPTS, batch_size=2, n_beams=3, max_length=20, eos_id=-1, return_scores=True
    ),
    "ragged beams": lambda m: decoding.beam_search(
        m, PROMPTS, batch_size=2, n_beams=3, max_length=20, eos_id=-1, prompt_lengths=[3, 2]
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_caches_that_grow_hold_what_they_held(call, monkeypatch):
    """From room for hardly more than the prompt, several times; to the last bit."""
    grown = []
    grow = kv_cache.KVCache.grow
    monkeypatch.setattr(
        kv_cache.KVCache, "grow", lambda cache, n: (grown.append(n), grow(cache, n))
    )
    model = attention()
    want = call(model)
    assert not grown

    monkeypatch.setattr(engine, "_FIRST_SLOTS", 4)
    got = call(model)

    assert len(set(grown)) >= 2
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        assert torch.equal(a, b)


def test_a_generous_max_length_reserves_no_more_than_is_used(monkeypatch):
    """A sequence that ends at once needs no room for a million tokens."""
    lengths = []
    make = kv_cache.KVCache._make
    monkeypatch.setattr(
        kv_cache.KVCache,
        "_make",
        lambda cache, *kv: (lengths.append(cache.length), make(cache, *kv)),
    )
    model = attention()
    prompt = torch.tensor([[2]])
    first = int(decoding.autoregressive_sample(model, prompt, temperature=0.0, max_length=1))
    lengths.clear()

    tokens = decoding.autoregressive_sample(
        model, prompt, temperature=0.0, max_length=10**6, eos_id=first
    )

    assert tokens.shape == (1, 1)
    assert max(lengths) == engine._FIRST_SLOTS


def test_a_run_may_fill_all_the_room_of_its_model(monkeypatch):
    """The room is the model's, whatever the caches began with; beyond it a token is refused."""
    monkeypatch.setattr(engine, "_FIRST_SLOTS", 4)
    model = tl.Serial(
        tl.ShiftRight(),
        tl.Embedding(VOCAB, 8),
        tl.PositionalEncoding(max_len=20),
        tl.CausalAttention(8, n_heads=2),
        tl.Dense(VOCAB),
    )
    livelier(model, torch.zeros(1, 1, dtype=torch.int64))

    tokens = decoding.autoregressive_sample(model, PROMPTS[:1], max_length=17, eos_id=-1)
    assert tokens.shape == (1, 17)
    with pytest.raises(tl.LayerError, match="room for 20 positions"):
        decoding.autoregressive_sample(model, PROMPTS[:1], max_length=18, eos_id=-1)
