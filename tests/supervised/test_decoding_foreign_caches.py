"""Modules and layers that remember in a way of their own take part in decoding."""

import itertools

import pytest
import torch
from decoders import PROMPTS, VOCAB, Caching, Foreign, recurrent, sample
from torch import nn

from trax_torch import layers as tl
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding


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
        decoding.autoregressive_sample_stream(module, torch.ones(1, n).long(), temperature=0.0)
        for n in (1, 3)
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


class Store(nn.Module):
    """Keys and values of a run, as a module."""

    def __init__(self, batch, length, d):
        super().__init__()
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(batch, length, d), persistent=False)
        self.n = 0

    def update(self, k, v):
        end = self.n + k.shape[1]
        self.k[:, self.n : end], self.v[:, self.n : end], self.n = k, v, end
        return self.k[:, :end], self.v[:, :end]


class Attending(nn.Module):
    """Attention that is given its cache by whoever holds it."""

    def __init__(self, d):
        super().__init__()
        self.qkv, self.store = nn.Linear(d, 3 * d), None

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.store is not None:
            k, v = self.store.update(k, v)
        n, m = q.shape[1], k.shape[1]
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Inward(nn.Module):
    """Puts caches into the modules inside it, which know no protocol."""

    def __init__(self, d=16):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(VOCAB, d), nn.Linear(d, VOCAB)
        self.layers = nn.ModuleList([Attending(d) for _ in range(2)])
        for p in self.parameters():
            p.data *= 2

    def init_cache(self, batch_size, max_length):
        for layer in self.layers:
            layer.store = Store(batch_size or 1, max_length or 64, 16)

    def reset_cache(self):
        for layer in self.layers:
            layer.store.n = 0

    def reorder_cache(self, parents):
        for layer in self.layers:
            layer.store.k, layer.store.v = layer.store.k[parents], layer.store.v[parents]

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.out(x)


def test_caches_that_are_put_into_inner_modules_are_the_runs_own():
    """Two streams of one model are what each is alone, and none leaves a cache in the model."""
    model, prompts = Inward(), ([[2, 3]], [[4, 5]])

    def stream(model, prompt):
        return decoding.autoregressive_sample_stream(model, torch.tensor(prompt), temperature=0.0)

    alone = [list(itertools.islice(stream(Inward(), p), 8)) for p in prompts]
    together = list(itertools.islice(zip(*(stream(model, p) for p in prompts), strict=True), 8))

    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone
    assert all(layer.store is None for layer in model.layers)
    assert not any(isinstance(m, Store) for m in model.modules())


def test_a_model_with_caches_inside_computes_as_before_after_a_call():
    model, x = Inward(), torch.tensor([[0, 2, 3, 4]])
    want = model(x)

    decoding.autoregressive_sample(model, torch.tensor([[2, 3]]), max_length=20, eos_id=-1)
    decoding.beam_search(model, torch.tensor([[2, 3]]), n_beams=3, max_length=6, eos_id=-1)

    assert torch.equal(model(x), want)


def test_a_module_may_have_symbols_of_its_own_and_a_calls_own_go_before():
    """Caching gives the number of tokens so far."""
    module = Caching()
    module.start_id, module.eos_id, module.pad_id = 3, [2, 4], 6

    tokens = decoding.autoregressive_sample(module, [[1], [1]], 2, temperature=0.0)

    assert tokens.tolist() == [[1, 2]] * 2
    tokens = decoding.autoregressive_sample(module, [[1] * 3] * 2, 2, temperature=0.0, pad_id=0)
    assert tokens.tolist() == [[3, 4]] * 2
    tokens = decoding.autoregressive_sample(module, None, 2, temperature=0.0, eos_id=3)
    assert tokens.tolist() == [[0, 1, 2, 3]] * 2
    module.takes_whole_prompts = True
    tokens = decoding.autoregressive_sample(module, [[1], [1]], 2, temperature=0.0, eos_id=3)
    assert tokens.tolist() == [[0, 1, 2, 3]] * 2
    assert sample(module, inputs=[[1]], start_id=5, batch_size=1, max_length=3).tolist() == [
        [1, 2, 3]
    ]


def test_beams_of_rows_with_padding_are_refused_where_a_cache_knows_of_none():
    class Reordering(Caching):
        def reorder_cache(self, parents):
            pass

    with pytest.raises(ValueError, match="prompt_lengths needs a model whose memories"):
        decoding.beam_search(Reordering(), PROMPTS, 3, n_beams=2, prompt_lengths=[1, 2, 3])
