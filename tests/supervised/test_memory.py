"""Training block by block takes less memory, and computes what training as a whole does."""

import collections
import contextlib
import copy
import functools
import os
import signal
import types
import weakref

import numpy as np
import pytest
import ranks
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from toys import assert_resumes, assert_same_run, history_of, line_loop, state_of

from trax_torch import layers as tl
from trax_torch import models, optimizers, shapes
from trax_torch._errors import CheckpointError
from trax_torch.optimizers import NonFiniteError, trainer
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


# It computes what training as a whole does.


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_ten_steps_equal_the_ordinary_trainers(model, recipe, mode):
    """Weights, slots, losses, norms and evals, dropout included."""
    whole, blocks = (after(10, mode=m, model=model, recipe=recipe) for m in (False, mode))

    assert_equal_to_rounding(blocks, whole)


def outcome(rank, **kwargs):
    run = after(10, device="cpu", rank=rank, size=2, **kwargs)
    return {k: v.numpy() for k, v in state_of(run).items()}, history_of(run)["train"]


def outcomes(rank, cases):
    return [outcome(rank, **case) for case in cases]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_equal_the_ordinary_trainers_two(model, recipe, tmp_path):
    cases = [{"model": model, "recipe": recipe, "mode": mode} for mode in (False, True, 2)]
    for wanted, *others in ranks.values(tmp_path, 2, outcomes, cases):
        for state, history in others:
            for name, value in wanted[0].items():
                np.testing.assert_allclose(state[name], value, rtol=2e-4, atol=2e-5)
            for name, values in wanted[1].items():
                np.testing.assert_allclose(history[name], values, rtol=1e-4)


def test_ranks_merge_by_adasum_as_ever(tmp_path):
    case = {"adasum": True, "recipe": "SGD"}
    found, wanted = (
        ranks.values(tmp_path / str(m), 2, functools.partial(outcome, mode=m, **case))
        for m in (True, False)
    )

    for name, value in wanted[0][0].items():
        np.testing.assert_allclose(found[0][0][name], value, rtol=2e-4, atol=2e-5)


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


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("model", OTHERS)
def test_models_of_all_kinds_are_cut_into_blocks(model, mode):
    def run(mode):
        torch.manual_seed(3)
        return after(6, mode=mode, model=OTHERS[model](), recipe="Adam")

    assert_equal_to_rounding(run(mode), run(False))


def test_reversible_layers_in_an_nn_sequential_are_blocks_too():
    run = loop(model=with_context())
    kinds = [type(block) for block in run._trainers[0]._blocks._blocks]
    assert kinds.count(tl.ReversibleHalfResidual) == 2


@pytest.mark.parametrize("model", [reversible, OTHERS["nn.Sequential"]])
def test_a_hook_on_the_model_is_called_at_each_step(model):
    model, calls = model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    run = loop(model=model)
    run.run(1)
    n_in_evals = len(calls) - 1
    run.run(3)
    assert len(calls) == 4 + n_in_evals


@pytest.mark.parametrize("mode", [True, 2])
def test_a_weight_that_only_the_whole_has_is_trained(mode):
    """The loss uses it."""

    def run(mode):
        torch.manual_seed(3)
        model = OTHERS["nn.Sequential"]()
        model.scale = nn.Parameter(torch.ones(()))
        entropy = tl.WeightedCategoryCrossEntropy()
        loss = tl.Fn("Loss", lambda x, y, weights: entropy((x * model.scale, y, weights)))
        return after(4, mode=mode, model=model, loss=loss)

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [True, 2])
def test_an_encoder_and_a_decoder_keep_a_stack_between_blocks(mode):
    """Masks and targets travel under what a block takes; the embedding is shared."""

    def run(mode):
        model = models.Transformer(VOCAB, None, 8, 16, 2, 2, 2, max_len=16, dropout=0.1)
        task = TrainTask(tokens(), tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.01))
        evals = EvalTask(tokens(1), tl.WeightedCategoryAccuracy())
        made = line_loop(model=model, task=task, evals=evals, use_memory_efficient_trainer=mode)
        made.run(6)
        return made

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize(
    "recipe",
    [
        functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
        functools.partial(torch.optim.Adagrad, lr=0.1),
        functools.partial(torch.optim.RMSprop, lr=0.01),
        optimizers.SM3(0.1),
        optimizers.Momentum(0.1),
    ],
)
def test_optimizers_of_all_kinds_update_a_block_at_a_time(recipe, mode):
    assert_equal_to_rounding(*(after(6, mode=m, recipe=recipe) for m in (mode, False)))


@pytest.mark.parametrize("mode", [True, 2])
def test_a_loss_alone_is_trained(mode):
    def run(mode):
        torch.manual_seed(3)
        weighted = nn.Linear(3, 3)
        loss = tl.Fn("Loss", lambda x, y: ((x - y) ** 2).mean())
        batches = [(np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32))] * 5
        task = TrainTask(
            batches,
            tl.Serial(tl.as_layer(weighted), loss),
            functools.partial(torch.optim.SGD, lr=0.1),
        )
        evals = EvalTask(batches, loss)
        made = line_loop(
            model=tl.Serial(), task=task, evals=evals, use_memory_efficient_trainer=mode
        )
        made.run(3)
        return made

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [False, True, 2])
def test_weights_that_are_frozen_between_runs_stay(mode):
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    recipe = torch.optim.Adam(model.parameters(), lr=0.01)
    run = after(2, mode=mode, model=model, recipe=recipe)
    frozen = list(model.parameters())[6].requires_grad_(False)
    before = frozen.clone()
    run.run(2)

    assert torch.equal(frozen, before)


def test_parameter_groups_and_their_order_stay():
    """Also those of which a block has no weight at all."""

    def run(mode):
        model = reversible()
        model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
        first, *others = model.parameters()
        groups = [{"params": [first], "lr": 0.1}, {"params": others, "weight_decay": 0.1}]
        return after(5, mode=mode, model=model, recipe=torch.optim.AdamW(groups, lr=0.01))

    one, other = run(True), run(False)
    assert_equal_to_rounding(one, other)
    sizes = [[len(g["params"]) for g in run.optimizers[0].param_groups] for run in (one, other)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize("model", ["TransformerLM", "a module"])
def test_the_loss_may_come_in_chunks(model, chunk, mode):
    def run(**kwargs):
        torch.manual_seed(3)
        made = Tied() if model == "a module" else model
        return after(6, model=made, recipe="SGD", **kwargs)

    assert_equal_to_rounding(run(mode=mode, loss_chunk_size=chunk), run(mode=False))


@pytest.mark.parametrize("mode", [True, 2])
def test_half_precision_computes_again_in_half_precision(mode):
    assert_equal_to_rounding(*(after(6, mode=m, precision="bf16") for m in (mode, False)))


@pytest.mark.parametrize("model", ["TransformerLM", "reversible", "a module"])
def test_gradients_are_those_of_autograd(model):
    """In float64, where rounding hides no error."""
    torch.manual_seed(3)
    layer = tl.as_layer({**MODELS, **OTHERS}[model]())
    batch = tuple(map(torch.from_numpy, tokens()[0]))
    if not layer.is_initialized:
        layer.init(shapes.signature(batch[0]), rng=0)
    both = tl.Serial(layer.double(), tl.WeightedCategoryCrossEntropy())
    torch.manual_seed(5)
    want_loss = both(batch)
    params = [p for p in both.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(want_loss, params, allow_unused=True)
    blocks = optimizers.Blocks([layer], both.sublayers[1], torch.device("cpu"))
    found = {}
    torch.manual_seed(5)
    loss = blocks.forward(batch)
    blocks.backward(1.0, lambda due: found.update((p, p.grad) for p in due))

    torch.testing.assert_close(loss, want_loss.detach(), rtol=1e-12, atol=0)
    for p, grad in zip(params, wanted, strict=True):
        torch.testing.assert_close(found[p], grad, rtol=1e-9, atol=1e-12)


def test_several_tasks_share_a_model():
    def run(mode):
        tasks = [
            TrainTask(tokens(i), tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.01))
            for i in range(2)
        ]
        made = line_loop(
            model=reversible(),
            task=tasks,
            evals=EvalTask(tokens(2), tl.WeightedCategoryAccuracy()),
            use_memory_efficient_trainer=mode,
        )
        made.run(7)
        return made

    for mode in (True, 2):
        assert_equal_to_rounding(run(mode), run(False))


def test_a_model_to_measure_has_the_weights_in_host_memory_too():
    runs = [after(6, mode=m, eval_model=reversible()) for m in (2, False)]
    assert_equal_to_rounding(*runs)


# Gradients and weights come and go.


@pytest.mark.parametrize("model", ["TransformerLM", "reversible"])
def test_gradients_of_two_blocks_at_most_are_alive_at_once(model, monkeypatch):
    run = loop(model=model)
    params = list(run.model.parameters())
    sizes = sorted(sum(p.numel() for p in due) for due in run._trainers[0]._blocks.params_due())
    alive, update = [], trainer.Trainer._update_alone

    def watched(self, due):
        alive.append(sum(p.grad.numel() for p in params if p.grad is not None))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", watched)
    run.run(2)

    assert len(alive) == 2 * sum(n > 0 for n in sizes)
    assert max(alive) <= sum(sizes[-2:]) < sum(p.numel() for p in params)
    assert all(p.grad is None for p in params)


def test_in_a_module_of_others_each_gradient_is_freed_as_soon_as_it_is_complete(monkeypatch):
    """But for those that are wanted until the end, the embedding's here."""
    model = Tied(n_blocks=5)
    run = loop(model=model)
    alive, update = [], trainer.Trainer._update_alone

    def watched(self, due):
        alive.append(sum(p.grad.numel() for p in model.parameters() if p.grad is not None))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", watched)
    run.run(1)

    assert max(alive) <= 2 * 16 * 8 + model.embedding.weight.numel()


@pytest.mark.parametrize(
    ("use", "n_early"), [("detach", 6), ("data", 6), ("no_grad", 6), ("reentrant", 3), ("both", 3)]
)
def test_weights_that_are_used_beside_the_graph_wait_for_the_end(use, n_early, monkeypatch):
    """Of seven weights, of which checkpoints leave two without a gradient."""
    run = loop(model=Beside(use))
    counts, update = [], trainer.Trainer._update_alone

    def counted(self, due):
        counts.append(len(due))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", counted)
    run.run(2)

    assert counts == 2 * ([1] * n_early + [7 - n_early])


def test_a_gradient_that_goes_on_after_its_weight_was_updated_is_refused():
    """In a model that uses weights otherwise than at its first step."""
    model = Beside("outside")
    run = after(1, model=model)
    model.use = "both"
    with pytest.raises(
        RuntimeError, match=r"shape \(8,.* then got more of it.*use_reentrant=False"
    ):
        run.run(1)


def test_blocks_of_a_module_of_others_compute_their_activations_again():
    model = Tied(n_blocks=5)
    run = loop(model=model)
    calls = []
    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: calls.append(1))
    run.model.train()
    batch = tuple(map(torch.from_numpy, tokens()[0]))
    run._trainers[0].one_step(batch, rng=0)

    assert len(calls) == 2 * 5
    assert all("forward" not in vars(block) for block in model.blocks)


@pytest.mark.parametrize("model", ["TransformerLM", "reversible"])
def test_weights_of_three_blocks_at_most_are_on_the_device(model, monkeypatch):
    """With their slots: what is copied there, and lives."""
    run = loop(model=model, mode=2)
    blocks = run._trainers[0]._blocks
    sizes = sorted(3 * sum(p.numel() for p in m.parameters()) for m in blocks._modules)
    living, most = {}, []
    copy = optimizers.HostMemory._copy

    def counted(self, tensor):
        made = copy(self, tensor)
        living[id(made)] = made.numel()
        weakref.finalize(made, living.pop, id(made))
        most.append(sum(living.values()))
        return made

    monkeypatch.setattr(optimizers.HostMemory, "_copy", counted)
    run.run(3)

    assert 0 < max(most) <= sum(sizes[-3:]) < 3 * sum(p.numel() for p in run.model.parameters())
    assert not living


def test_weights_live_in_host_memory_between_steps():
    run = loop(mode=2)
    homes = [p.data_ptr() for p in run.model.parameters()]
    run.run(3)
    assert [p.data_ptr() for p in run.model.parameters()] == homes


# Runs go on.


@pytest.mark.parametrize("mode", [True, 2])
def test_a_run_that_was_cut_equals_one_that_was_not(mode, tmp_path):
    assert_resumes(functools.partial(loop, mode=mode), tmp_path, 5, 5)


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, 2), (2, False)])
def test_a_run_goes_on_in_another_mode(before, now, tmp_path):
    whole = after(10, tmp_path / "whole", mode=False)
    after(5, tmp_path / "cut", mode=before)
    resumed = loop(tmp_path / "cut", mode=now)
    assert resumed.step == 5
    resumed.run(5)

    assert_equal_to_rounding(resumed, whole)


class Broken(Exception):
    """What a test breaks off a step with."""


def break_off_at(monkeypatch, n, error):
    """Has the update of the n-th block from now fail."""
    count, update = iter(range(1_000_000)), trainer.Trainer._update_alone

    def failing(self, due):
        if next(count) == n:
            raise error
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", failing)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("mode", [True, 2])
def test_what_is_half_updated_is_not_saved_nor_trained_on(mode, error, tmp_path, monkeypatch):
    whole = after(10, tmp_path / "whole", mode=mode)
    run = after(5, tmp_path / "run", mode=mode)
    saved = sorted(p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        break_off_at(patch, 2, error)
        with pytest.raises(error):
            run.run(5)

    for action in (lambda: run.save_checkpoint("model"), lambda: run.run(1), run.run_evals):
        with pytest.raises(CheckpointError, match="step 6 was broken off.*Go back to step 5"):
            action()
    assert sorted(p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors")) == saved
    run.load_checkpoint()
    run.run(5)
    assert_same_run(run, whole)
    assert_same_weights(loop(tmp_path / "run", mode=mode), whole)


def test_without_a_checkpoint_there_is_no_way_back(monkeypatch):
    run = after(1)
    break_off_at(monkeypatch, 1, Broken())
    with pytest.raises(Broken):
        run.run(1)
    with pytest.raises(CheckpointError, match="Nothing was saved to go back to: build Loop again"):
        run.run(1)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_signal_in_the_midst_of_a_backward_pass_ends_the_run_after_the_step(
    mode, tmp_path, monkeypatch
):
    whole = after(3, tmp_path / "whole", mode=mode)
    run = after(2, tmp_path / "run", mode=mode)
    count, update = iter(range(1_000_000)), trainer.Trainer._update_alone

    def signalled(self, due):
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, due)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update_alone", signalled)
        with pytest.raises(SystemExit) as end:
            run.run(5)

    assert end.value.code == 143
    resumed = loop(tmp_path / "run", mode=mode)
    assert resumed.step == 3
    assert_same_weights(resumed, whole)


def run_until_killed(folder, mode):
    """Trains on after step 5, and dies when step 7 has updated a block and not all."""
    run = after(5, folder, mode=mode)
    updated, update = [], trainer.Trainer._update_alone

    def killed(self, due):
        updated.append(run.step)
        if updated.count(6) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, due)

    trainer.Trainer._update_alone = killed
    run.run(5)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_process_that_is_killed_in_the_midst_of_a_backward_pass_resumes_whole(mode, tmp_path):
    """In a child of its own: blocks are updated already, and nobody sees it coming."""
    child = os.fork()
    if not child:
        try:
            run_until_killed(tmp_path / "run", mode)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = loop(tmp_path / "run", mode=mode)
    assert resumed.step == 5
    resumed.run(5)

    assert_same_run(resumed, after(10, tmp_path / "whole", mode=mode))


def resumed_on_two_ranks(rank, folder, mode):
    """Returns what differs between a run that was cut and one that was not."""
    settings = {"mode": mode, "rank": rank, "size": 2, "device": "cpu"}
    whole = after(8, f"{folder}/whole", **settings)
    after(5, f"{folder}/cut", **settings).run(1)  # which is not saved
    resumed = loop(f"{folder}/cut", **settings)
    step = resumed.step
    resumed.run(3)
    mine, theirs = state_of(resumed), state_of(whole)
    differ = [k for k in mine if not torch.equal(mine[k], theirs[k])]
    return step, differ, history_of(resumed) == history_of(whole)


@pytest.mark.parametrize("mode", [True, 2])
def test_two_ranks_resume_bit_for_bit(mode, tmp_path):
    found = ranks.values(tmp_path, 2, resumed_on_two_ranks, str(tmp_path), mode)
    assert found == [(5, [], True)] * 2


def assert_same_weights(one, other):
    mine, theirs = state_of(one), state_of(other)
    assert [k for k in mine if not torch.equal(mine[k], theirs[k])] == []


# Steps that are not finite


class Spoiling(torch.autograd.Function):
    """Passes on what comes, and a gradient that is not finite where it is told so."""

    @staticmethod
    def forward(ctx, x, spoils):
        ctx.spoils = spoils
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan" if ctx.spoils else 1.0), None


def spoiling(told):
    """A reversible model; the gradients of its first layers are spoilt when `told` says so."""
    layer = tl.Fn("Spoiling", lambda x: Spoiling.apply(x, bool(told)))
    body = reversible()
    return tl.Serial(body.sublayers[:2], layer, body.sublayers[2:])


@pytest.mark.parametrize("mode", [True, 2])
def test_a_gradient_in_the_midst_that_is_not_finite_names_the_checkpoint(mode, tmp_path):
    told = []
    run = after(6, tmp_path / "run", mode=mode, model=spoiling(told))
    told.append(1)
    with pytest.raises(NonFiniteError, match="Step 7: .*nan.*not usable: load older") as caught:
        run.run(4)

    assert all(p.grad is None for p in run.model.parameters())
    assert f"Go back to step 5, saved in {tmp_path}/run: load_checkpoint()" in str(caught.value)
    with pytest.raises(CheckpointError, match="broken off"):
        run.save_checkpoint("other")
    told.clear()
    run.load_checkpoint()
    run.run(5)
    whole = after(10, tmp_path / "whole", mode=mode, model=spoiling([]))
    assert_same_run(run, whole)


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(factor, mode):
    """Statistics neither; it is found before the first update, and the run can go on."""
    told = []
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn("Loss", lambda x, y, w: entropy((x, y, w)) * (factor if told else 1.0))
    run = after(4, mode=mode, model=with_statistics(), loss=loss)
    before = state_of(run)
    told.append(1)
    with pytest.raises(NonFiniteError, match="Step 5: the loss is (nan|inf), so .*, or lower the"):
        run.run(1)

    assert run.step == 4
    assert all(torch.equal(before[k], v) for k, v in state_of(run).items())
    told.clear()
    run.run(1)


def bad_loss_on_one_rank(rank):
    told = []
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn(
        "Loss", lambda x, y, weights: entropy((x, y, weights)) * (float("nan") if told else 1.0)
    )
    run = after(2, device="cpu", rank=rank, size=2, loss=loss)
    before = state_of(run)
    told += [1] * rank
    with pytest.raises(NonFiniteError) as caught:
        run.run(1)
    assert all(torch.equal(before[k], v) for k, v in state_of(run).items())
    return str(caught.value.__notes__)


def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(tmp_path):
    notes = ranks.values(tmp_path, 2, bad_loss_on_one_rank)
    assert all("ranks whose part of the loss is not finite: 1" in note for note in notes)


def bad_gradient_on_one_rank(rank, folder, mode):
    told = []
    settings = {"mode": mode, "model": spoiling(told), "rank": rank, "size": 2, "device": "cpu"}
    run = after(5, f"{folder}/run", **settings)
    told += [1] * rank
    with pytest.raises(NonFiniteError, match="Step 6: .*not usable.*Go back to step 5"):
        run.run(1)
    with pytest.raises(CheckpointError, match="broken off"):
        run.run(1)
    told.clear()
    run.load_checkpoint()
    run.run(1)
    return run.step


@pytest.mark.parametrize("mode", [True, 2])
def test_a_gradient_in_the_midst_that_is_not_finite_on_one_rank_is_told_on_both(mode, tmp_path):
    """And both can go back."""
    found = ranks.values(tmp_path, 2, bad_gradient_on_one_rank, str(tmp_path), mode)
    assert found == [6, 6]


# What it cannot do is refused.


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"n_accumulation_steps": 2}, "gradients of several parts .* Make batches smaller"),
        ({"on_nonfinite": "skip"}, "other weights are updated already. Leave it out"),
        ({"compile": True}, "blocks run one by one"),
        ({"strategy": "fsdp"}, "Choose one of the two"),
        ({"recipe": optimizers.Adam(0.01, clip_grad_norm=1.0)}, "clip_grad_norm does not go with"),
        ({"use_memory_efficient_trainer": 3}, "is False, True or 2; got 3"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(kwargs, why):
    with pytest.raises(ValueError, match=why):
        loop(**kwargs)


def test_a_block_that_writes_into_what_is_kept_of_it_is_refused():
    model = nn.Sequential(
        nn.Embedding(VOCAB, 8),
        tl.Residual(tl.Dense(8)),
        nn.SELU(inplace=True),
        nn.Linear(8, 8),
        tl.Residual(tl.Dense(8)),
        nn.Linear(8, VOCAB),
    )
    run = loop(model=model)
    with pytest.raises(ValueError, match="writes into its inputs, .* inplace=False"):
        run.run(1)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_last_block_that_writes_into_its_inputs_is_refused(mode):
    model = nn.Sequential(
        nn.Embedding(VOCAB, 8),
        tl.Residual(tl.Dense(8)),
        nn.ReLU(inplace=True),
        nn.Linear(8, VOCAB),
    )
    run = loop(model=model, mode=mode)
    with pytest.raises(ValueError, match="What comes last writes into its inputs.*inplace=False"):
        run.run(1)


class Differentiating(nn.Module):
    """Adds to what its layers make of x the gradient of that."""

    def __init__(self, context=contextlib.nullcontext):
        super().__init__()
        self.net, self.context = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), context

    def forward(self, x):
        with self.context():
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = self.net(x)
            return y + torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def differentiating(*args):
    blocks = (Differentiating(*args) for _ in range(2))
    return nn.Sequential(nn.Embedding(VOCAB, 8), *blocks, nn.Linear(8, VOCAB))


def test_a_block_that_computes_gradients_in_its_forward_pass_is_told_how():
    run = loop(model=differentiating())
    with pytest.raises(
        ValueError, match=r"computes gradients in its forward.*torch.enable_grad\(\)"
    ):
        run.run(1)

    model = differentiating(torch.enable_grad)
    twin = copy.deepcopy(model)
    assert_equal_to_rounding(after(3, model=model), after(3, mode=False, model=twin))


class Odd(dict):
    """Somebody's own dict."""


@pytest.mark.parametrize("pack", [lambda a, b: Odd(a=a), lambda a, b: types.SimpleNamespace(a=a)])
def test_a_block_that_gives_tensors_in_something_unknown_is_refused(pack):
    """Before a weight is updated: nothing would train what comes before."""
    run = loop(model=through_nest(pack, "a"))
    with pytest.raises(
        TypeError, match="ToNest gives a (Odd|SimpleNamespace), which .* Return them"
    ):
        run.run(1)


class Hiding(nn.Module):
    """Uses another module's weight, which is none of its own parameters."""

    def __init__(self, other):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8))
        self.__dict__["weight"] = other.weight

    def forward(self, x):
        return self.net(x) @ self.weight


def test_a_weight_of_a_later_block_that_a_block_hides_is_refused():
    """It is updated when the block that hides it runs again."""
    later = nn.Linear(8, 8)
    blocks = (Hiding(later), tl.Residual(later), tl.Residual(tl.Dense(8)))
    run = loop(model=nn.Sequential(nn.Embedding(VOCAB, 8), *blocks, nn.Linear(8, VOCAB)))
    with pytest.raises(RuntimeError, match=r"of shape \(8, 8\), was written into since"):
        run.run(1)


class Leaving(nn.Module):
    """Leaves a number for the loss on itself: an attribute, or a buffer."""

    def __init__(self, in_buffer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8))
        if in_buffer:
            self.register_buffer("aux", torch.ones(()))

    def forward(self, x):
        y = self.net(x)
        self.aux = (y**2).mean().detach() if "aux" in self._buffers else (y**2).mean()
        return x + y


def with_an_auxiliary_loss(mode, in_buffer=False):
    torch.manual_seed(3)
    block = Leaving(in_buffer)
    model = nn.Sequential(nn.Embedding(VOCAB, 8), block, Leaving(in_buffer), nn.Linear(8, VOCAB))
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn("Loss", lambda x, y, weights: entropy((x, y, weights)) + block.aux)
    return after(3, mode=mode, model=model, loss=loss)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_loss_that_reads_what_a_block_left_on_itself_is_refused(mode):
    """No gradient would come to it; what needs none may be in a buffer."""
    with pytest.raises(ValueError, match="the loss uses aux of Leaving, which .* Return it beside"):
        with_an_auxiliary_loss(mode)

    assert_equal_to_rounding(*(with_an_auxiliary_loss(m, in_buffer=True) for m in (mode, False)))


def test_hooks_of_weights_see_whole_gradients_or_are_refused():
    def run(mode, model, register="register_hook", hook=lambda grad: grad.clamp(-0.01, 0.01)):
        model = {**MODELS, **OTHERS}[model]()
        model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
        for p in model.parameters():
            getattr(p, register)(hook)
        return after(3, mode=mode, model=model)

    assert_equal_to_rounding(*(run(mode, "reversible") for mode in (True, False)))
    with pytest.raises(
        ValueError, match=r"shape \(8, 8\) has gradient hooks.* 2 blocks use it, none"
    ):
        run(True, "weights that blocks share")
    with pytest.raises(ValueError, match="has gradient hooks.* 1 blocks use it, some of them rev"):
        run(True, "reversible", "register_post_accumulate_grad_hook", lambda p: None)


class LooksAtAll(torch.optim.SGD):
    """Somebody's own optimizer."""


def test_an_optimizer_that_may_look_at_all_weights_is_refused():
    with pytest.raises(ValueError, match="LooksAtAll may look at all of them"):
        loop(recipe=functools.partial(LooksAtAll, lr=0.1))


class OwnRecipe(optimizers.Optimizer):
    """A recipe that binds an optimizer of somebody's own."""

    def bind(self, params):
        return LooksAtAll(params, lr=self.learning_rate)


def test_an_optimizer_that_may_look_at_all_weights_is_refused_behind_a_recipe():
    with pytest.raises(ValueError, match="LooksAtAll of .* may look at all of them. Give a recipe"):
        loop(recipe=OwnRecipe(0.1))


@pytest.mark.parametrize("when", ["pre", "post"])
def test_an_optimizer_whose_steps_are_listened_to_is_refused(when):
    """From the start, and if someone comes later."""
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = after(1, model=model, recipe=optimizer)
    getattr(optimizer, f"register_step_{when}_hook")(lambda *_: None)

    for action in (lambda: run.run(1), lambda: loop(model=model, recipe=optimizer)):
        with pytest.raises(
            ValueError, match="would see a block's gradients alone; it has 1 of.*Rem"
        ):
            action()


def test_a_trainer_of_its_own_says_that_a_bad_step_was_not_taken():
    """Also after steps of which no Loop took note."""
    model = tl.Serial(tl.Dense(1), tl.L2Loss())
    batch = torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 1)
    model.init(batch)
    alone = trainer.Trainer(model, optimizers.SGD(0.1))
    alone.one_step(batch)
    with pytest.raises(NonFiniteError, match="so the step was not taken"):
        alone.one_step((batch[0] * float("nan"), *batch[1:]))
