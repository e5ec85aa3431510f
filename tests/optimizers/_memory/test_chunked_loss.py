"""The last Dense and the loss in chunks of positions are those of the whole."""

import copy

import pytest
import torch
from chunks import CASES, VOCAB, D, assert_alike, categories, problem, whole_and_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.optimizers import ChunkedLoss, Shares, split_head

SIZES = [1, 7, 12, 100]  # of chunks, for 12 positions


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
