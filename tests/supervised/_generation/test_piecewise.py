"""Predict mode gives in pieces what a model gives at once, or the model is refused by name."""

import random

import pytest
import torch
from decoders import VOCAB, Caching, livelier
from torch import nn

from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step

D = 8
TOKENS = torch.zeros(1, 3, dtype=torch.int64)
PROMPT = torch.tensor([[2, 3, 4]])


def stack(*inner):
    """A model of tokens around some layers, in float64."""
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, D), *inner, tl.Dense(VOCAB))
    return livelier(model, TOKENS)


def sample(model, **kwargs):
    settings = {"temperature": 0.0, "max_length": 8, "eos_id": -1, **kwargs}
    return decoding.autoregressive_sample(model, PROMPT, **settings)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(D, D, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]


class Convolved(nn.Module):
    """Causal, and padded for itself in each call."""

    def __init__(self, pads=2):
        super().__init__()
        self.conv, self.pads = nn.Conv1d(D, D, 3), pads

    def forward(self, x):
        return self.conv(nn.functional.pad(x.transpose(1, 2), (self.pads, 0))).transpose(1, 2)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


class Positioned(nn.Module):
    """Learned positions, counted from what comes in."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, D)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1]))


class PlainModel(nn.Module):
    """One layer of this package among torch's own."""

    def __init__(self):
        super().__init__()
        self.shift, self.embed = tl.ShiftRight(), nn.Embedding(VOCAB, D)
        self.gru, self.out = nn.GRU(D, D, batch_first=True), nn.Linear(D, VOCAB)

    def forward(self, tokens):
        return self.out(self.gru(self.embed(self.shift(tokens)))[0])


class Gated(nn.Module):
    """A part of one's own that acts on each position alone, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.n_calls = nn.Linear(D, D), nn.Linear(D, D), 0

    def forward(self, x):
        self.n_calls += 1
        return self.one(x) * torch.sigmoid(self.two(x))


@pytest.mark.parametrize("part", [Recurrent, Convolved, Attending, Positioned])
def test_a_part_that_looks_along_positions_and_forgets_is_refused(part):
    """By name, with both ways out; in eval mode it decodes."""
    model = stack(part())
    named = {"Recurrent": "GRU", "Convolved": "Conv1d"}.get(part.__name__, part.__name__)

    for decode in (sample, lambda m: decoding.beam_search(m, PROMPT, max_length=8)):
        with pytest.raises(TypeError, match=f"alone: {named}. Decode with eval_mode=True; or let"):
            decode(model)

    assert sample(model, eval_mode=True).shape == (1, 8)


def test_one_layer_of_ours_makes_no_plain_model_predict():
    with pytest.raises(TypeError, match="PlainModel cannot predict position by position: it gives"):
        sample(PlainModel())


def test_a_function_that_sums_over_positions_is_refused():
    """A user's function is nobody's known layer."""
    with pytest.raises(TypeError, match="alone: PureLayer"):
        sample(stack(tl.Fn("Sums", lambda x: x.cumsum(1))))

    model = stack(tl.Fn("Doubles", lambda x: 2 * x))
    assert torch.equal(sample(model), sample(model, eval_mode=True))


def test_a_part_that_takes_no_pieces_is_refused_with_the_reason():
    with pytest.raises(TypeError, match="fails where tokens come in pieces .*[Kk]ernel size"):
        decoding.autoregressive_sample(PaddedOnce(), PROMPT, temperature=0.0, max_length=3)


class PaddedOnce(nn.Module):
    """Fails for fewer than three positions."""

    def __init__(self):
        super().__init__()
        self.shift, self.embed = tl.ShiftRight(), nn.Embedding(VOCAB, D)
        self.conv, self.out = Convolved(pads=0), nn.Linear(D, VOCAB)

    def forward(self, tokens):
        x = self.embed(self.shift(tokens))
        return self.out(nn.functional.pad(self.conv(x), (0, 0, 2, 0)))


def test_a_part_that_acts_on_each_position_alone_is_tried_once():
    """Its tokens are those of eval mode; later calls try nothing."""
    gated = Gated()
    model = stack(gated, tl.GRU(D))
    want = sample(model, eval_mode=True)

    n_calls = []
    for _ in range(3):
        before = gated.n_calls
        assert torch.equal(sample(model), want)
        n_calls.append(gated.n_calls - before)

    assert n_calls[0] > n_calls[1] == n_calls[2] == 8  # the prompt's pass, and seven steps


def test_a_model_with_another_part_is_tried_anew():
    """What is known is known of its parts, not of their owner."""
    model = PlainModel()
    model.gru = Tupled()
    sample(model)

    model.gru = nn.GRU(D, D, batch_first=True)
    with pytest.raises(TypeError, match="cannot predict"):
        sample(model)


class Behind(nn.Module):
    """Adds what was some positions before."""

    def __init__(self, n_back):
        super().__init__()
        self.n_back = n_back

    def forward(self, x):
        return x + nn.functional.pad(x, (0, 0, self.n_back, 0))[:, : -self.n_back]


class Stepped(nn.Module):
    """Positions count, but the first ones are alike."""

    def forward(self, x):
        return x + torch.arange(x.shape[1])[:, None] // 9


@pytest.mark.parametrize("part", [Behind(6), Behind(11), Stepped()], ids=["6", "11", "stepped"])
def test_a_part_that_looks_along_many_positions_is_refused(part):
    """A trial is as long as what the call comes to."""
    model = stack(part)
    settings = {"max_length": 20, "eos_id": -1}
    assert decoding.autoregressive_sample(model, PROMPT, eval_mode=True, **settings).shape == (
        1,
        20,
    )

    for decode in (decoding.autoregressive_sample, decoding.beam_search):
        with pytest.raises(TypeError, match="at once. It has parts .*: (Behind|Stepped)"):
            decode(model, PROMPT, **settings)


def test_a_longer_call_is_tried_anew():
    model = stack(Behind(30))
    sample(model)
    with pytest.raises(TypeError, match="cannot predict"):
        sample(model, max_length=60)


class ShutOff(Recurrent):
    """Adds nothing at first, as many residual branches do."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * super().forward(x)


def test_a_model_is_tried_anew_when_its_weights_have_changed():
    part = ShutOff()
    model = stack(part)
    with torch.no_grad():
        part.gate.zero_()
    assert torch.equal(sample(model), sample(model, eval_mode=True))

    with torch.no_grad():
        part.gate.fill_(1.0)
    with pytest.raises(TypeError, match="cannot predict"):
        sample(model)


@pytest.mark.parametrize(
    "what",
    [lambda x: {"logits": x}, lambda x: None, lambda x: x[:, -1]],
    ids=["dict", "None", "2-d"],
)
def test_what_a_part_makes_of_logits_is_named_where_it_is_no_logits(what):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = stack(tl.GRU(D))

        def forward(self, tokens):
            return what(self.inner(tokens))

    with pytest.raises((TypeError, tl.LayerError), match="Tokens are chosen by logits, floats"):
        sample(Returns())


class Tupled(nn.Module):
    def forward(self, x):
        return (x,)


def test_known_parts_are_not_tried(monkeypatch):
    """Layers of this package and position-wise modules of torch cost nothing more."""
    monkeypatch.setattr(compiled_step, "step", None)  # what a trial takes
    inner = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D), nn.Dropout(0.1))
    model = stack(tl.CausalAttention(D, n_heads=2), inner, tl.Relu(), tl.GRU(D))

    assert not compiled_step.steps_of(model).tried
    sample(model)
    assert not compiled_step.steps_of(model).tried


def test_a_module_with_a_cache_of_its_own_sees_to_itself():
    """And to what is inside it."""
    model = Caching()
    model.inner = Recurrent()

    assert sample(model).shape == (1, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tl.Serial(tl.ShiftRight(2), tl.Embedding(VOCAB, D), tl.GRU(D), tl.Dense(VOCAB)),
        lambda: stack(tl.GRU(D), tl.ShiftRight(), tl.GRU(D)),
        lambda: tl.Serial(tl.Embedding(VOCAB, D), tl.ShiftRight(), tl.GRU(D), tl.Dense(VOCAB)),
        lambda: tl.Serial(tl.ShiftRight(), tl.ShiftRight(), tl.Embedding(VOCAB, VOCAB)),
    ],
    ids=["by two", "twice", "of embeddings", "twice of tokens"],
)
def test_a_shift_of_more_than_the_tokens_by_one_is_refused(make):
    """The start symbol stands for one shift of the tokens; in eval mode all are right."""
    model = make()
    model.init(TOKENS, rng=0)

    with pytest.raises(TypeError, match=r"ShiftRight\(.\) in Serial shifts further, or something"):
        sample(model)

    assert sample(model, eval_mode=True).shape == (1, 8)


def test_branches_may_each_shift_the_tokens():
    branches = [tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, D)) for _ in range(2)]
    model = livelier(tl.Serial(tl.Branch(*branches), tl.Add(), tl.GRU(D), tl.Dense(VOCAB)), TOKENS)

    assert torch.equal(sample(model), sample(model, eval_mode=True))


PARTS = [
    lambda: tl.Dense(D),
    lambda: tl.LayerNorm(),
    lambda: tl.GRU(D),
    lambda: tl.SRU(D),
    lambda: tl.CausalAttention(D, n_heads=2),
    lambda: tl.CausalConv(D, kernel_width=3),
    lambda: tl.CausalDepthwiseConv(kernel_size=3),
    lambda: tl.PositionalEncoding(max_len=40),
    lambda: tl.Residual(tl.LayerNorm(), tl.Dense(D), tl.Relu()),
    lambda: tl.Residual(tl.CausalAttention(D, n_heads=2)),
    lambda: tl.Dropout(0.5),
    lambda: tl.Tanh(),
    Gated,
    lambda: nn.Linear(D, D),
    # What is not a model in predict mode:
    Recurrent,
    Convolved,
    Attending,
    Positioned,
    tl.ShiftRight,
    lambda: tl.Fn("Sums", lambda x: x.cumsum(1) / 4),
]
N_FINE = 14


@pytest.mark.parametrize("seed", range(40))
def test_stacks_drawn_at_random_predict_what_they_are_in_eval_mode_or_are_refused(seed):
    """Three parts, in float64: the same tokens, where all parts can predict; else a refusal."""
    draws = random.Random(seed)
    indices = [draws.randrange(len(PARTS)) for _ in range(3)]
    torch.manual_seed(seed)
    model = stack(*[PARTS[i]() for i in indices])
    want = sample(model, eval_mode=True)

    if max(indices) < N_FINE:
        assert torch.equal(sample(model), want)
    else:
        with pytest.raises(TypeError, match="cannot predict|shifts further"):
            sample(model)
