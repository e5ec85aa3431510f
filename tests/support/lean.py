"""Runs that train with little memory: models, recipes, and what must be equal."""

import collections
import functools

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from toys import history_of, line_loop, state_of

from trax_torch import layers as tl
from trax_torch import models, optimizers, shapes
from trax_torch.supervised import EvalTask, TrainTask

VOCAB = 12
CHEAP = {"d_model": 16, "d_ff": 32, "n_layers": 2, "n_heads": 2, "max_len": 16}


def tokens(seed=0, rank=0, size=1):
    """Batches of tokens with uneven weights: a rank's rows of them. A list can go back."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(12):
        x = rng.integers(1, VOCAB, (4, 8))
        items = (x, x, rng.random(x.shape).astype(np.float32))
        batches.append(tuple(item[rank::size] for item in items))
    return batches


def half(d):
    return tl.ReversibleHalfResidual(
        tl.LayerNorm(), tl.Dense(2 * d), tl.Relu(), tl.Dropout(0.3), tl.Dense(d)
    )


def reversible(d=16, n=3):
    return tl.Serial(
        tl.Embedding(VOCAB, d),
        tl.Dropout(0.1),
        tl.Dup(),
        [[half(d), tl.ReversibleSwap()] for _ in range(n)],
        tl.Concatenate(),
        tl.LayerNorm(),
        tl.Dense(VOCAB),
    )


MODELS = {
    "TransformerLM": lambda: models.TransformerLM(VOCAB, dropout=0.1, **CHEAP),
    "reversible": reversible,
    "GRU": lambda: models.GRULM(VOCAB, 16, 1),
}
RECIPES = {
    "Adam": optimizers.Adam(0.01),
    "Adafactor": optimizers.Adafactor,  # a class, as in Trax
    "SGD": optimizers.SGD(0.1),
}


def loop(
    folder=None,
    mode=True,
    model="reversible",
    recipe="Adam",
    loss=None,
    rank=0,
    size=1,
    **kwargs,
):
    loss = loss or tl.WeightedCategoryCrossEntropy()
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    task = TrainTask(tokens(0, rank, size), loss, recipe, n_steps_per_checkpoint=5)
    evals = EvalTask(tokens(1), tl.WeightedCategoryCrossEntropy())
    made = MODELS[model]() if isinstance(model, str) else model
    kwargs.setdefault("use_memory_efficient_trainer", mode)
    return line_loop(folder, model=made, task=task, evals=evals, **kwargs)


def after(n_steps, *args, **kwargs):
    run = loop(*args, **kwargs)
    run.run(n_steps)
    return run


def assert_equal_to_rounding(one, other):
    mine, theirs = state_of(one), state_of(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)
    for mode, metrics in history_of(one).items():
        for name, values in metrics.items():
            np.testing.assert_allclose(values, history_of(other)[mode][name], rtol=1e-5)


class Tied(nn.Module):
    """A model of PyTorch's kind whose last layer has the first one's weights."""

    def __init__(self, n_blocks=3):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
            for _ in range(n_blocks)
        )
        self.spare = nn.Linear(8, 8)  # which the loss does not depend on

    def forward(self, x):
        x = self.embedding(x)
        for block in self.blocks:
            x = x + block(x)
        return x @ self.embedding.weight.T


def shared_layers():
    """Weights that several blocks use."""
    embedding, block = tl.Embedding(VOCAB, 8), tl.Residual(tl.Dense(8), tl.Tanh())
    return tl.Serial(embedding, block, tl.Residual(tl.Dense(8)), block, tl.Dense(VOCAB))


def with_statistics():
    block = [tl.Residual(tl.Dense(8), tl.BatchNorm(axis=(0, 1)), tl.Relu()) for _ in range(2)]
    return tl.Serial(tl.Embedding(VOCAB, 8), block, tl.Dense(VOCAB))


def frozen():
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    for layer in model.sublayers[3:6]:
        layer.requires_grad_(False)
    return model


class Halving(nn.Module):
    """Its forward changes what it holds: a buffer that no state_dict has, an attribute, a count."""

    def __init__(self, n=8, holds="buffer"):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n, n), nn.Tanh())
        self.holds, self.n_calls, self.cache = holds, 0, None
        if holds == "buffer":
            self.register_buffer("scale", torch.ones(()), persistent=False)
        else:
            self.scale = torch.ones(())

    def forward(self, x):
        if self.holds == "none":
            self.cache = self.scale if self.cache is None else self.cache * 0.8
            return x + self.cache * self.net(x)
        if self.training:
            self.n_calls += 1
            if self.holds == "buffer":
                self.scale.mul_(0.5)
            else:
                self.scale = self.scale * 0.5
        return x + self.scale * self.net(x) / self.n_calls


def halving(holds):
    return nn.Sequential(
        nn.Embedding(VOCAB, 8), Halving(8, holds), Halving(8, holds), nn.Linear(8, VOCAB)
    )


class HalvingParts(Tied):
    """A module of others whose parts change what they hold, running statistics too."""

    def __init__(self, holds):
        super().__init__()
        self.blocks = nn.ModuleList(Halving(8, holds) for _ in range(3))
        for block in self.blocks:
            block.net.append(nn.BatchNorm1d(8))


class Repeated(Tied):
    """A module that runs one block several times."""

    def __init__(self):
        super().__init__(1)
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)


def patched():
    """A module whose blocks somebody gave another forward."""
    model = Tied()
    for block in model.blocks:
        block.forward = functools.partial(lambda forward, x: 2 * forward(x), block.forward)
    return model


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.fft.fft(self.linear(x))


class OfSpectrum(Spectrum):
    def forward(self, x):
        return self.linear(torch.fft.ifft(x).real)


class ToNest(nn.Module):
    """Returns what it computes in a nest, as `pack` makes it of two tensors."""

    def __init__(self, pack):
        super().__init__()
        self.linear, self.pack = nn.Linear(8, 8), pack

    def forward(self, x):
        return self.pack(self.linear(x), x)


class FromNest(nn.Module):
    """Takes the items `keys` of a nest, and adds up what it makes of them."""

    def __init__(self, *keys):
        super().__init__()
        self.linear, self.keys = nn.Linear(8, 8), keys

    def forward(self, nest):
        first, *others = (nest[key] for key in self.keys)
        return sum(others, self.linear(first))


def through_nest(pack, *keys, whole=nn.Sequential):
    """A model in whose midst a nest travels, twice."""
    return whole(
        nn.Embedding(VOCAB, 8),
        *(ToNest(pack), FromNest(*keys), ToNest(pack), FromNest(*keys)),
        nn.Linear(8, VOCAB),
    )


Pair = collections.namedtuple("Pair", ["a", "b"])


def as_dict(a, b):
    return {"a": a, "more": (b, [a * 2.0])}


class Picking(nn.Module):
    def forward(self, x):
        return x["more"][1][0] + x["more"][0]


def with_context():
    """A reversible model in an nn.Sequential; it takes two items, and a third lies below."""
    layers = [[half(8), tl.ReversibleSwap()] for _ in range(2)]
    inner = tl.Serial(layers, tl.Concatenate(), tl.Dense(8))
    inner.init((shapes.ShapeDtype((4, 8, 8)),) * 2, rng=0)
    three = tl.Fn("Three", lambda x: (x, x * 0.5, x * 2.0), n_out=3)
    return nn.Sequential(nn.Embedding(VOCAB, 8), three, inner, tl.Add(), nn.Linear(8, VOCAB))


class Beside(nn.Module):
    """A module of others that uses weights, or their parts, beside autograd's graph.

    Args:
      use: 'reentrant' checkpoints a block three times, 'both' uses it outside, too, 'outside' does
        that alone; else what is used of a weight without gradients.
    """

    def __init__(self, use):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(VOCAB, 8), nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.end, self.use = nn.Linear(8, VOCAB), use

    def forward(self, x):
        x = self.embedding(x)
        if self.use in ("reentrant", "both", "outside"):
            run = functools.partial(checkpoint, self.block, use_reentrant=True)
            for _ in range(3):
                inside = self.training and self.use != "outside"
                x = x + (run if inside else self.block)(x)
            return self.end(x if self.use == "reentrant" else self.block(x))
        if self.use == "no_grad":
            with torch.no_grad():
                fixed = self.linear.weight.T
        else:
            weight = self.linear.weight
            fixed = {"detach": weight.T.detach, "data": lambda: weight.data.T}[self.use]()
        return self.end(self.block(self.linear(x @ fixed)))


def doubled(model):
    """A model in series whose whole somebody gave another forward."""
    model.forward = functools.partial(lambda forward, x: 2 * forward(x), model.forward)
    return model


def hooked():
    """A reversible layer among others, whose hook changes what it gives."""
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    model.sublayers[5].register_forward_hook(lambda layer, args, out: (2 * out[0], *out[1:]))
    return model


class WithoutReverse(tl.ReversibleLayer):
    def __init__(self):
        super().__init__(n_in=2, n_out=2)
        self.net = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x):
        return x[0] + torch.tanh(self.net(x[1])), x[1]


def without_reverse():
    layers = [(WithoutReverse(), tl.ReversibleSwap()) for _ in range(2)]
    return tl.Serial(tl.Embedding(VOCAB, 8), tl.Dup(), layers, tl.Concatenate(), tl.Dense(VOCAB))


OTHERS = {
    **{
        f"weights beside the graph: {use}": functools.partial(Beside, use)
        for use in ("reentrant", "both", "detach", "data", "no_grad")
    },
    "an nn.Sequential with another forward": lambda: doubled(OTHERS["nn.Sequential"]()),
    "a Serial with another forward": lambda: doubled(reversible()),
    "a reversible layer with a hook": hooked,
    "a reversible layer without a reverse": without_reverse,
    "dicts in an nn.Sequential": lambda: through_nest(as_dict, "a"),
    "ordered dicts": lambda: through_nest(
        lambda a, b: collections.OrderedDict(a=a, more=b), "a", "more"
    ),
    "named tuples": lambda: through_nest(Pair, 0, 1),
    "dicts in a Serial": lambda: through_nest(as_dict, "a", whole=tl.Serial),
    "what is deep in a nest": lambda: nn.Sequential(
        nn.Embedding(VOCAB, 8), ToNest(as_dict), Picking(), nn.Linear(8, VOCAB)
    ),
    "pairs in an nn.Sequential": lambda: through_nest(lambda a, b: (a, b), 0, 1),
    "lists in an nn.Sequential": lambda: through_nest(lambda a, b: [a, b], 0, 1),
    "tuples of one": lambda: through_nest(lambda a, b: (a + b,), 0),
    "an LSTM in an nn.Sequential": lambda: nn.Sequential(
        *(nn.Embedding(VOCAB, 8), nn.LSTM(8, 8, batch_first=True)),
        *(FromNest(0), nn.Linear(8, VOCAB)),
    ),
    "a Serial in an nn.Sequential": with_context,
    "a module": Tied,
    "a block that is there three times": Repeated,
    "blocks with forwards of their own": patched,
    "complex numbers between blocks": lambda: nn.Sequential(
        nn.Embedding(VOCAB, 8), Spectrum(), OfSpectrum(), OfSpectrum(), nn.Linear(8, VOCAB)
    ),
    "nn.Sequential": lambda: nn.Sequential(
        nn.Embedding(VOCAB, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, VOCAB)
    ),
    "weights that blocks share": shared_layers,
    "buffers that no state_dict has": lambda: halving("buffer"),
    "tensors that are attributes": lambda: halving("attribute"),
    "attributes that are made when first wanted": lambda: halving("none"),
    "parts that change a buffer": lambda: HalvingParts("buffer"),
    "parts that change an attribute": lambda: HalvingParts("attribute"),
    "parts that make an attribute": lambda: HalvingParts("none"),
    "running statistics": with_statistics,
    "frozen weights": frozen,
    "plain layers": lambda: tl.Serial(
        tl.Embedding(VOCAB, 8), [[tl.Dense(8), tl.Relu()] for _ in range(5)], tl.Dense(VOCAB)
    ),
}


def assert_same_weights(one, other):
    mine, theirs = state_of(one), state_of(other)
    assert [k for k in mine if not torch.equal(mine[k], theirs[k])] == []
