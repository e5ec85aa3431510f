"""The last Dense and the loss in chunks of positions are those of the whole."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.optimizers import ChunkedLoss, Shares, split_head

D, VOCAB = 5, 7
SIZES = [1, 7, 12, 100]  # of chunks, for 12 positions


class Tempered(nn.Module):
    """A loss that is trained itself, and is given weights."""

    def __init__(self):
        super().__init__()
        self.heat = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, output, targets, weights):
        output = output * self.heat.to(output.dtype)
        values = nn.functional.cross_entropy(output.movedim(-1, 1), targets, reduction="none")
        return (values * weights).sum() / weights.sum()


def categories(g, lead, dtype):
    return torch.randint(0, VOCAB, lead, generator=g)


def uneven(g, lead, dtype):
    """Weights of which the first half counts for nothing."""
    weights = torch.rand(lead, generator=g, dtype=dtype) + 0.1
    return weights * (torch.arange(weights.numel()).view(lead) >= weights.numel() // 2)


def of_rows(g, lead, dtype):
    """Weights that broadcast to the positions."""
    return uneven(g, (lead[0], *[1] * (len(lead) - 1)), dtype)


def of_columns(g, lead, dtype):
    """Weights with fewer axes than the positions."""
    return torch.rand(lead[-1:], generator=g, dtype=dtype) + 0.1


def padded(g, lead, dtype):
    """Categories of which the first half is no category."""
    targets = categories(g, lead, dtype)
    return targets.where(torch.arange(targets.numel()).view(lead) >= targets.numel() // 2, -1)


def values(g, lead, dtype):
    return torch.randn(*lead, VOCAB, generator=g, dtype=dtype)


def bits(g, lead, dtype):
    return torch.randint(0, 2, (*lead, VOCAB), generator=g)


def uneven_values(g, lead, dtype):
    return uneven(g, (*lead, VOCAB), dtype)


plain = ()
log_probs = (tl.LogSoftmax(),)
probs = (tl.Sigmoid(),)
CASES = {
    "CategoryCrossEntropy": (plain, tl.CategoryCrossEntropy(), categories),
    "CategoryCrossEntropy, padded": (plain, tl.CategoryCrossEntropy(), padded),
    "CategoryCrossEntropy, smooth": (plain, tl.CategoryCrossEntropy(0.1), categories),
    "Weighted": (plain, tl.WeightedCategoryCrossEntropy(), categories, uneven),
    "Weighted, rows": (plain, tl.WeightedCategoryCrossEntropy(), padded, of_rows),
    "Weighted, columns": (plain, tl.WeightedCategoryCrossEntropy(), categories, of_columns),
    "Weighted, smooth, cutoff": (
        plain,
        tl.WeightedCategoryCrossEntropy(0.1, cutoff=1.5),
        categories,
        uneven,
    ),
    "BinaryCrossEntropy": (plain, tl.BinaryCrossEntropy(), bits),
    "L2Loss": (plain, tl.L2Loss(), values, uneven_values),
    "SmoothL1Loss": (plain, tl.SmoothL1Loss(), values, uneven_values),
    "CrossEntropyLoss": (log_probs, tl.CrossEntropyLoss(), categories, uneven),
    "CrossEntropySum": (log_probs, tl.CrossEntropySum(), categories, uneven),
    "WithLogSoftmax": (plain, tl.CrossEntropyLossWithLogSoftmax(), categories, of_rows),
    "BinaryCrossEntropyLoss": (probs, tl.BinaryCrossEntropyLoss(), bits, uneven_values),
    "BinaryCrossEntropySum": (probs, tl.BinaryCrossEntropySum(), bits, uneven_values),
    "WeightedSum": (plain, tl.WeightedSum(), uneven_values),
    "MSELoss": (plain, tl.as_layer(nn.MSELoss()), values),
    "MSELoss, sum": (plain, tl.as_layer(nn.MSELoss(reduction="sum")), values),
    "Tempered": (plain, tl.as_layer(Tempered()), categories, uneven),
}


def problem(name, lead, dtype=torch.float32, seed=0):
    """A model, a loss, and a batch of (lead, D) inputs."""
    ends, loss, *makers = CASES[name]
    g = torch.Generator().manual_seed(seed)
    model = tl.Serial(tl.Dense(6), tl.Serial(tl.Tanh(), tl.Dense(VOCAB)), ends)
    x = torch.randn(*lead, D, generator=g, dtype=torch.float64).to(dtype)
    model.init(x, rng=seed)
    return model.to(dtype), copy.deepcopy(loss), (x, *(make(g, lead, dtype) for make in makers))


def outcome(forward, batch, modules):
    """The loss, and the gradients of all that is trained."""
    for module in modules:
        module.zero_grad()
    loss = forward(batch)
    loss.backward()
    return loss.detach(), [p.grad for module in modules for p in module.parameters()]


def whole_and_chunks(model, loss, batch, chunk_size, dtype=torch.float64):
    """The outcomes of a model and a loss, as a whole and in chunks.

    Args:
      dtype: what to compute in; None computes in what there is.
    """
    loss = tl.as_layer(loss)
    if dtype is not None:
        model, loss = model.to(dtype), loss.to(dtype)
        batch = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)
    layers, head = split_head(model)
    body, chunked = tl.Serial(*layers), ChunkedLoss(head, loss, chunk_size)

    def in_chunks(batch):
        outputs = body(tl.inputs_from_stack(batch, body.n_in))
        stack = tl.outputs_onto_stack(outputs, batch, body.n_in)
        return chunked(tl.inputs_from_stack(stack, loss.n_in))

    return (
        outcome(tl.Serial(model, loss), batch, [model, loss]),
        outcome(in_chunks, batch, [model, loss]),
    )


def assert_alike(found, wanted, tolerance):
    (value, grads), (wanted_value, wanted_grads) = found, wanted
    assert value.dtype == wanted_value.dtype
    assert value.item() == pytest.approx(wanted_value.item(), rel=tolerance)
    assert [grad is None for grad in grads] == [grad is None for grad in wanted_grads]
    pairs = [(a, b) for a, b in zip(grads, wanted_grads, strict=True) if a is not None]
    scale = max(float(b.abs().max()) for _, b in pairs)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


# Loss and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_chunks_have_the_loss_and_gradients_of_the_whole(name, chunk_size, dtype):
    """Weights are uneven or broadcast, and some chunks' are all 0."""
    whole, chunks = whole_and_chunks(*problem(name, (4, 3), dtype), chunk_size, dtype)

    assert_alike(chunks, whole, 2**5 * torch.finfo(dtype).eps)


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    chunk_size=st.integers(1, 30),
    name=st.sampled_from(list(CASES)),
    seed=st.integers(0, 1000),
)
def test_chunks_of_any_size_and_shape_are_the_whole(lead, chunk_size, name, seed):
    whole, chunks = whole_and_chunks(*problem(name, lead, torch.float64, seed), chunk_size)

    assert_alike(chunks, whole, 1e-11)


def ignored(g, lead, dtype):
    targets = categories(g, lead, dtype)
    return targets.where(torch.arange(targets.numel()).view(lead) >= targets.numel() // 2, 3)


def probabilities(g, lead, dtype):
    p = torch.rand(lead[0], VOCAB, *lead[1:], generator=g, dtype=dtype)
    return p / p.sum(dim=1, keepdim=True)


def padded_with_0(g, lead, dtype):
    targets = categories(g, lead, dtype)
    return targets.where(torch.arange(targets.numel()).view(lead) >= targets.numel() // 2, 0)


CLASS_WEIGHTS = torch.arange(1.0, 1.0 + VOCAB, dtype=torch.float64)
TORCH = {
    "mean": (nn.CrossEntropyLoss(), categories),
    "ignored": (nn.CrossEntropyLoss(ignore_index=3), ignored),
    "classes": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=3), ignored),
    "0 ignored": (nn.CrossEntropyLoss(ignore_index=0), padded_with_0),
    "0 weighs nothing": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS - 1), padded_with_0),
    "smooth": (nn.CrossEntropyLoss(label_smoothing=0.1), categories),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), categories),
    "probabilities": (nn.CrossEntropyLoss(), probabilities),
    "negative log": (nn.NLLLoss(ignore_index=3), ignored),
}


@pytest.mark.parametrize("chunk_size", SIZES)
@pytest.mark.parametrize("lead", [(12,), (4, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_cross_entropies_of_torch_are_the_whole(name, lead, chunk_size):
    """Classes are axis 1; without an axis after it, a Dense goes into chunks, too."""
    loss, make = copy.deepcopy(TORCH[name])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*lead, D, generator=g, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, VOCAB)))
    if name == "negative log":
        model.append(nn.LogSoftmax(dim=-1))
    model = tl.as_layer(model.double())
    if len(lead) > 1:
        model = tl.Serial(model, tl.Fn("ClassesFirst", lambda y: y.movedim(-1, 1).contiguous()))
    assert (split_head(model)[1] is None) == (len(lead) > 1)

    whole, chunks = whole_and_chunks(model, loss, (x, make(g, lead, x.dtype)), chunk_size)

    assert_alike(chunks, whole, 1e-12)


def test_classes_that_a_dense_maps_between_positions_stay_together():
    """With nn.CrossEntropyLoss, the last axis of a Dense is one of positions: rows are cut."""
    g = torch.Generator().manual_seed(0)
    x, targets = torch.randn(4, VOCAB, 5, generator=g), categories(g, (4, 3), None)
    model = tl.as_layer(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))

    assert_alike(*whole_and_chunks(model, nn.CrossEntropyLoss(), (x, targets), 1), 1e-11)


@pytest.mark.parametrize("n_axes", [0, 1])
def test_an_item_without_positions_is_one_chunk(n_axes):
    x = torch.randn(*[1] * n_axes, D)
    targets = torch.tensor([3] if n_axes else 3)
    model = tl.as_layer(nn.Linear(D, VOCAB))

    assert_alike(*whole_and_chunks(model, nn.CrossEntropyLoss(), (x, targets), 4), 1e-11)


def test_a_column_of_numbers_is_cut():
    """A model without a Dense at its end, whose outputs have no axis but that of the batch."""
    model = tl.Serial(tl.Dense(1), tl.Fn("Column", lambda y: y[:, 0]))
    x = torch.randn(9, D)
    model.init(x, rng=0)
    batch = x, torch.randn(9), torch.rand(9)
    chunked = ChunkedLoss(None, tl.L2Loss(), 2)

    assert chunked._laid_out(batch)[1] == 5
    assert_alike(*whole_and_chunks(model, tl.L2Loss(), batch, 2), 1e-11)


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
@pytest.mark.parametrize("name", ["LSTMSeq2SeqAttn", "Transformer"])
def test_what_lies_below_the_models_output_stays_there(name, chunk_size):
    """Targets are the model's own second output, with log-probabilities and without."""
    g = torch.Generator().manual_seed(0)
    source, target = (torch.randint(1, 9, (3, n), generator=g) for n in (4, 5))
    if name == "Transformer":
        sizes = {"d_ff": 8, "n_encoder_layers": 1, "n_decoder_layers": 1, "n_heads": 2}
        model = models.Transformer(9, d_model=8, dropout=0.0, **sizes)
        loss = tl.WeightedCategoryCrossEntropy()
    else:
        model, loss = models.LSTMSeq2SeqAttn(9, 9, d_model=8), tl.CrossEntropyLoss()
    model.init((source, target), rng=0)
    batch = source, target, torch.rand(3, 5, generator=g)
    assert split_head(model)[1].n_out == 1

    assert_alike(*whole_and_chunks(model, loss, batch, chunk_size), 1e-11)


@pytest.mark.parametrize("chunk_size", SIZES)
def test_gradients_reach_what_else_the_model_gives_the_loss(chunk_size):
    """Targets and weights that a model computes itself; weights say what a chunk counts for."""
    g = torch.Generator().manual_seed(0)
    weights = tl.Serial(tl.Dense(VOCAB), tl.Sigmoid())
    model = tl.Serial(tl.Branch(tl.Dense(6), tl.Dense(VOCAB), weights), tl.Dense(VOCAB)).double()
    x = torch.randn(4, 3, D, generator=g, dtype=torch.float64)
    model.init(x, rng=0)
    body, head = split_head(model)
    assert (len(body), head.n_out, model.n_out) == (1, 1, 3)

    assert_alike(*whole_and_chunks(model.double(), tl.L2Loss(), (x,), chunk_size), 1e-12)


def test_outputs_of_any_kind_are_cut_into_rows():
    """A model of PyTorch gives what it will, and its loss takes it."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(D, 2), nn.Linear(D, 3)

        def forward(self, x):
            return {"one": self.one(x), "other": [self.other(x)]}

    loss = tl.Fn(
        "Both", lambda y, t, weights: ((y["one"].sum(-1) - t) ** 2 * weights).sum() / weights.sum()
    )
    batch = torch.randn(6, D), torch.randn(6), torch.tensor([0.0, 0.0, 1.0, 2.0, 0.5, 0.0])

    assert_alike(*whole_and_chunks(tl.as_layer(Two()), loss, batch, 2), 1e-11)


def test_weights_that_are_all_0_are_no_number_as_ever():
    """And so are the gradients, by which a step is known to be none."""
    model, loss, (x, targets, weights) = problem("Weighted", (4, 3))

    _, (value, grads) = whole_and_chunks(model, loss, (x, targets, 0 * weights), 5)

    assert value.isnan()
    assert all(grad.isnan().all() for grad in grads)


# Types


@pytest.mark.parametrize("name", ["Weighted", "L2Loss", "CrossEntropyLoss", "Tempered"])
def test_autocast_reaches_into_chunks(name):
    """Losses and gradients are those of the whole, to the precision of bfloat16."""
    model, loss, batch = problem(name, (16, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = []
        dense = model.sublayers[1].sublayers[1]
        hook = dense.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
        whole, chunks = whole_and_chunks(model, loss, batch, 50, dtype=None)
        hook.remove()

    assert set(seen) == {torch.bfloat16}
    assert_alike(chunks, whole, 0.03)
    assert {grad.dtype for grad in chunks[1]} <= {torch.float32, torch.float64}


def test_gradients_of_bfloat16_weights_are_summed_in_float32():
    """600 chunks of equal gradients; a sum in bfloat16 would stop at 256."""
    head = tl.Dense(1, use_bias=False)
    head.init(torch.ones(1, 1))
    head.to(torch.bfloat16)
    chunked = ChunkedLoss(head, tl.as_layer(nn.L1Loss(reduction="sum")), 1)
    x = torch.ones(600, 1, dtype=torch.bfloat16)

    chunked((x, torch.full_like(x, -9.0))).backward()

    assert head.weight.grad.dtype == torch.bfloat16
    assert head.weight.grad.item() == 600


# How autograd sees it


def test_no_more_logits_than_a_chunks_exist():
    """The head is called once for each chunk, forward and backward, and on no more positions."""
    model, loss, batch = problem("Weighted", (4, 3))
    seen = []
    dense = model.sublayers[1].sublayers[1]
    layers, head = split_head(model)
    dense.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    hidden = tl.Serial(*layers)(batch[0])

    ChunkedLoss(head, loss, 5)((hidden, *batch[1:])).backward()

    assert seen == [(4, VOCAB)] * 3


def test_hooks_of_weights_see_one_gradient():
    """As DistributedDataParallel and updates in the backward pass need it; and it is the whole."""
    model, loss, batch = problem("Weighted", (4, 3))
    calls = []
    weight = model.sublayers[1].sublayers[1].weight
    weight.register_hook(lambda grad: calls.append("gradient") or 2 * grad)
    weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))

    whole, chunks = whole_and_chunks(model, loss, batch, 5)

    assert calls == ["gradient", "accumulated"] * 2
    assert_alike(chunks, whole, 1e-11)


def test_nothing_is_differentiated_where_nobody_asks():
    model, loss, batch = problem("Weighted", (4, 3))
    layers, head = split_head(model)
    hidden = tl.Serial(*layers)(batch[0])
    chunked = ChunkedLoss(head, loss, 5)

    with torch.no_grad():
        value = chunked((hidden, *batch[1:]))
    for p in model.parameters():
        p.requires_grad_(False)

    assert not value.requires_grad
    assert not chunked((hidden.detach(), *batch[1:])).requires_grad
    assert chunked((hidden, *batch[1:])).item() == pytest.approx(value.item())


def test_frozen_weights_get_no_gradient():
    model, loss, batch = problem("Weighted", (4, 3))
    model.sublayers[1].sublayers[1].weight.requires_grad_(False)

    whole, chunks = whole_and_chunks(model, loss, batch, 5)

    assert [grad is None for grad in chunks[1]] == [False, False, True, False]
    assert_alike(chunks, whole, 1e-11)


def test_a_tied_dense_gets_both_gradients():
    """A layer that is used twice, and a weight that is two modules'."""
    shared = tl.Dense(D)
    twice = tl.Serial(shared, tl.Tanh(), shared)
    twice.init(torch.ones(1, D), rng=0)
    tied = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    tied[2].weight = tied[0].weight
    batch = torch.randn(4, 3, D), torch.randint(0, D, (4, 3))

    for model in (twice, tl.as_layer(tied)):
        assert split_head(model)[1] is not None
        assert_alike(*whole_and_chunks(model, tl.CategoryCrossEntropy(), batch, 5), 1e-11)


def reaching(model, reach):
    """A mean over items, and what keeps something of the model small that is not the loss's."""

    def mean(output, targets, weights):
        values = nn.functional.cross_entropy(output.movedim(-1, 1), targets, reduction="none")
        return (values * weights).sum() / weights.sum() + reach(model).pow(2).sum()

    return tl.Fn("Reaching", mean)


def hidden_of(model):
    """What the first layer gave last."""
    if not hasattr(model, "seen"):
        model.seen = []
        model.sublayers[0].register_forward_hook(lambda layer, args, y: model.seen.append(y))
        model(torch.zeros(4, 3, D))
    return model.seen[-1]


REACHES = {
    "a layer before": lambda model: model.sublayers[0].weight,
    "the head": lambda model: model.sublayers[1].sublayers[1].weight,
    "the head's for good": lambda model: vars(model).setdefault("held", REACHES["the head"](model)),
    "all": lambda model: torch.cat([p.flatten() for p in model.parameters()]),
    "activations": hidden_of,
}


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
@pytest.mark.parametrize("name", REACHES)
def test_weights_that_the_loss_reaches_by_itself_get_their_gradients(name, chunk_size):
    model, _, batch = problem("Weighted", (4, 3))
    REACHES[name](model)

    whole, chunks = whole_and_chunks(model, reaching(model, REACHES[name]), batch, chunk_size)

    assert_alike(chunks, whole, 1e-11)


def test_what_only_some_chunks_reach_gets_its_gradient():
    torch.manual_seed(0)
    scale = nn.Parameter(torch.ones(()))
    loss = tl.Fn("Some", lambda y, t: (y * (scale if t.sum() > 0 else 1.0)).mean())
    x, targets = torch.randn(4, 3), torch.tensor([0.0, 1.0, 1.0, 0.0])

    ChunkedLoss(None, loss, 1)((x.requires_grad_(), targets)).backward()

    torch.testing.assert_close(scale.grad, x.detach()[1:3].sum() / x.numel())


def test_a_weight_with_hooks_that_the_loss_reaches_by_itself_is_refused():
    """They would see gradients of chunks, and that of the whole again."""
    model, _, batch = problem("Weighted", (4, 3))
    model.sublayers[0].weight.register_hook(lambda grad: 2 * grad)

    with pytest.raises(ValueError, match=r"one of shape \(6, 5\) by itself.* Take them off, or"):
        whole_and_chunks(model, reaching(model, REACHES["a layer before"]), batch, 5)


def test_a_second_backward_pass_is_refused():
    """The first has scaled the gradients in place."""
    chunked = ChunkedLoss(None, tl.CategoryCrossEntropy(), 2)
    x = torch.randn(4, 3, requires_grad=True)
    loss = chunked((x, torch.zeros(4, dtype=torch.int64)))
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n_parts", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_parts_of_a_batch_go_in_chunks(n_parts, chunk_size):
    """Accumulation and chunks together: one step of plain SGD, whose weights tell the gradients."""
    model, loss, batch = problem("Weighted", (6, 3), torch.float64)
    layers, head = split_head(model)
    body, chunked = tl.Serial(*layers), ChunkedLoss(head, loss, chunk_size)

    def step(n_parts, forward):
        trainer = optimizers.Trainer(
            tl.Serial(model, loss),
            optimizers.SGD(0.0),
            forward=forward,
            shares=Shares(model, loss),
            n_accumulation_steps=n_parts,
        )
        value, _ = trainer.one_step(batch, rng=0)
        value = torch.tensor(value, dtype=torch.float64)
        return value, [p.grad.clone() for p in trainer.params]

    whole = step(1, None)
    assert_alike(step(n_parts, lambda xs: chunked((body(xs[0]), *xs[1:]))), whole, 1e-11)


# Where a model is cut


DENSE = functools.partial(nn.Linear, D, 2)
HEADS = {
    "Dense": lambda: tl.Dense(2),
    "Serial": lambda: tl.Serial(tl.Relu(), tl.Serial(tl.Dense(2))),
    "LogSoftmax": lambda: tl.Serial(tl.Dense(2), tl.LogSoftmax()),
    "Linear": lambda: tl.as_layer(DENSE()),
    "Sequential": lambda: tl.as_layer(nn.Sequential(nn.ReLU(), nn.Sequential(DENSE()))),
    "both": lambda: tl.Serial(tl.Relu(), nn.Sequential(nn.ReLU(), DENSE(), nn.LogSoftmax(-1))),
    "around": lambda: tl.Serial(tl.Serial(tl.Relu(), tl.Dense(2)), tl.LogSoftmax()),
    "apart": lambda: tl.Serial(tl.Relu(), DENSE(), nn.LogSoftmax(dim=-1)),
}
BODIES = {
    "Relu": lambda: tl.Serial(tl.Dense(2), tl.Relu()),
    "axis 1": lambda: tl.Serial(tl.Dense(2), tl.LogSoftmax(axis=1)),
    "dim 1": lambda: tl.as_layer(nn.Sequential(DENSE(), nn.LogSoftmax(dim=1))),
    "Residual": lambda: tl.Residual(tl.Dense(D)),
    "empty": lambda: tl.Serial(),
    "softmax": lambda: tl.LogSoftmax(),
    "weight norm": lambda: tl.as_layer(
        nn.Sequential(nn.utils.parametrizations.weight_norm(DENSE()))
    ),
}


@pytest.mark.parametrize("name", [*HEADS, *BODIES])
def test_a_model_is_cut_before_its_last_dense_and_stays_as_it_is(name):
    model = (HEADS | BODIES)[name]()
    x = torch.randn(3, D)
    model.init(x, rng=0)
    names, before = list(model.state_dict()), model(x)

    body, head = split_head(model)

    assert (head is not None) == (name in HEADS)
    series = tl.Serial(*body) if head is None else tl.Serial(*body, head)
    assert torch.equal(series(x), before)
    assert list(model.state_dict()) == names
    params = {id(p) for p in model.parameters()}
    assert {id(p) for p in series.parameters()} == params
    if head is not None:
        assert sum(p.numel() for p in head.parameters()) == 2 * D + 2


def test_a_model_that_waits_for_its_weights_is_not_cut():
    assert split_head(tl.Serial(tl.Relu(), tl.Dense(2)))[1] is None


def test_what_travels_within_a_sequential_is_no_stack():
    """An nn.LSTM gives its output and its state, as one."""

    class First(nn.Module):
        def forward(self, xs):
            return xs[0]

    model = nn.Sequential(nn.LSTM(D, 6, batch_first=True), First(), nn.Linear(6, VOCAB))
    batch = torch.randn(4, 3, D), torch.randint(0, VOCAB, (4, 3))

    assert split_head(tl.as_layer(model))[1] is not None
    assert_alike(*whole_and_chunks(tl.as_layer(model), tl.CategoryCrossEntropy(), batch, 5), 1e-11)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_model_that_someone_listens_to_is_not_cut(is_wrapped):
    """A forward hook of the model as a whole is called as ever."""
    model = nn.Sequential(DENSE()) if is_wrapped else tl.Serial(tl.Dense(2))
    layer = tl.as_layer(model)
    layer.init(torch.ones(1, D))
    model.register_forward_hook(lambda module, args, output: None)

    assert split_head(layer)[1] is None


LISTENERS = {
    "forward": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "before": lambda m: m.register_forward_pre_hook(lambda module, args: None),
    "backward": lambda m: m.register_full_backward_hook(lambda module, grads, above: None),
    "spectral norm": lambda m: nn.utils.spectral_norm(m),
}


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.parametrize("make", [lambda: tl.Dense(VOCAB), lambda: nn.Linear(D, VOCAB)])
def test_a_last_layer_that_someone_listens_to_is_not_called_for_each_chunk(make, name):
    """A spectral norm of the old kind is such a hook, and goes on at each call."""
    dense = make()
    model = tl.Serial(tl.Relu(), dense)
    model.init(torch.ones(1, D))
    assert split_head(model)[1] is not None
    LISTENERS[name](dense)

    assert split_head(model)[1] is None


def test_a_log_softmax_that_someone_listens_to_is_not_called_for_each_chunk():
    last = nn.LogSoftmax(dim=-1)
    last.register_forward_hook(lambda module, args, output: None)

    assert split_head(tl.as_layer(nn.Sequential(DENSE(), last)))[1] is None


# What is refused


@pytest.mark.parametrize(
    "make",
    [tl.MaskedSequenceAccuracy, tl.SequenceAccuracy, tl.WeightedFScore, tl.MacroAveragedFScore],
)
def test_measures_of_more_than_positions_are_refused(make):
    with pytest.raises(ValueError, match=f"and {make().name} is none. Leave loss_chunk_size at 0"):
        ChunkedLoss(None, make(), 8)


def test_a_loss_that_is_called_like_one_of_trax_is_not_taken_for_it():
    loss = tl.PureLayer(lambda xs: (xs[0] * xs[2]).sum(), n_in=3, name="L2Loss")

    assert not ChunkedLoss(None, loss, 8).is_known
    assert ChunkedLoss(None, tl.L2Loss(), 8).is_known


def test_items_that_do_not_agree_get_the_losss_own_message():
    model, loss, (x, targets, weights) = problem("Weighted", (4, 3))
    for batch, match in (
        ((x, targets[:, :2], weights), r"must agree; got shapes \(4, 3, 7\) and \(4, 2\)"),
        ((x, targets, weights[:3]), r"one weight a target"),
    ):
        with pytest.raises(tl.LayerError, match=match):
            layers, head = split_head(model)
            ChunkedLoss(head, loss, 5)((tl.Serial(*layers)(batch[0]), *batch[1:]))


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_model_with_a_forward_of_its_own_is_not_cut(is_wrapped):
    model = tl.as_layer(nn.Sequential(DENSE())) if is_wrapped else tl.Serial(tl.Dense(2))
    model.init(torch.ones(1, D))
    inner = model.module if is_wrapped else model
    inner.forward = functools.partial(lambda forward, x: 2 * forward(x), inner.forward)

    assert split_head(model)[1] is None
