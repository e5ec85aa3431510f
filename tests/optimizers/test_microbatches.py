"""The loss of a batch in parts is the loss of the whole."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.optimizers import Shares


class Tempered(nn.Module):
    """A loss of PyTorch's kind that is given weights."""

    def forward(self, output, targets, weights):
        values = nn.functional.cross_entropy(output.transpose(1, 2), targets, reduction="none")
        return (values * weights).sum() / weights.sum()


def problem(seed, loss, shape=(8, 5), vocab=7, kind="weights"):
    """A classifier of positions, and a batch whose weights, or ignored targets, are uneven."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, 4, generator=g, dtype=torch.float64)
    targets = torch.randint(0, vocab, shape, generator=g)
    weights = torch.rand(shape, generator=g, dtype=torch.float64)
    weights *= torch.rand(shape, generator=g) > 0.5
    weights[0] = 0.0  # a row, and with 8 parts a part, that does not count
    if kind == "ignored":
        targets[weights == 0] = -100
        return x.flatten(0, 1), targets.flatten()
    if kind == "rows":
        return x, targets
    return x, targets, weights


def outcome(model, loss, batch, n_parts):
    """The loss and the gradients of one step of plain SGD, whose weights tell the gradients.

    In float64, so that a batch in parts and the whole differ by less than any mistake.
    """
    model, loss = copy.deepcopy(model).double(), tl.as_layer(copy.deepcopy(loss).double())
    trainer = optimizers.Trainer(
        tl.Serial(model, loss),
        optimizers.SGD(1.0),
        shares=Shares(tl.as_layer(model), loss),
        n_accumulation_steps=n_parts,
    )
    value, _ = trainer.one_step(batch, rng=0)
    return value, [p.grad.clone() for p in trainer.params]


LOSSES = [
    (tl.WeightedCategoryCrossEntropy(), "weights"),
    (tl.WeightedCategoryCrossEntropy(label_smoothing=0.1, cutoff=0.5), "weights"),
    (tl.CategoryCrossEntropy(), "rows"),
    (Tempered(), "weights"),
    (nn.CrossEntropyLoss(), "ignored"),
    (nn.CrossEntropyLoss(weight=torch.arange(1.0, 8.0)), "ignored"),
    (nn.CrossEntropyLoss(reduction="sum"), "ignored"),
    (nn.NLLLoss(ignore_index=-100), "ignored"),
]


@pytest.mark.parametrize(("loss", "kind"), LOSSES, ids=lambda x: getattr(x, "name", None))
@pytest.mark.parametrize("n_parts", [1, 2, 3, 4, 8])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_gradients_of_parts_are_those_of_the_whole(loss, kind, n_parts, seed):
    """Weights are uneven, rows may count for nothing, and a mean of means would be another."""
    batch = problem(seed, loss, kind=kind)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 7))

    whole, grads = outcome(model, loss, batch, 1)
    value, summed = outcome(model, loss, batch, n_parts)

    # The mean of nn.NLLLoss's numbers, which may be of any sign here, can be nearly 0.
    assert value == pytest.approx(whole, rel=1e-11, abs=1e-12)
    for ours, theirs in zip(summed, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12 * float(theirs.abs().max()))


class Smooth(nn.CrossEntropyLoss):
    """A subclass of torch's cross-entropy."""

    def __init__(self):
        super().__init__(ignore_index=0, label_smoothing=0.1)

    def forward(self, output, targets):
        return super().forward(output.flatten(0, -2), targets.flatten())


FROM_2 = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(ignore_index=0),
        nn.NLLLoss(ignore_index=0),
        nn.CrossEntropyLoss(weight=FROM_2),
        nn.CrossEntropyLoss(weight=FROM_2, ignore_index=2),
        Smooth(),
    ],
)
@pytest.mark.parametrize("n_parts", [2, 4, 8])
def test_parts_of_padding_alone_count_for_nothing(loss, n_parts):
    """Whichever class pads: one that is ignored, or whose weight is 0."""
    x, targets = problem(1, loss, kind="ignored")
    targets = targets.clamp(min=0)
    targets[: 2 * len(targets) // 3] = 0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 7))

    whole, grads = outcome(model, loss, (x, targets), 1)
    value, summed = outcome(model, loss, (x, targets), n_parts)

    assert value == pytest.approx(whole, rel=1e-11, abs=1e-12)
    for ours, theirs in zip(summed, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_classes_that_all_weigh_nothing_are_no_number_as_ever():
    loss = tl.as_layer(nn.CrossEntropyLoss(weight=torch.zeros(3)))
    ((part, share), _) = Shares(tl.Serial(), loss).cut((torch.ones(4, 3), torch.ones(4).long()), 2)

    assert loss(part).isnan()
    assert share.isnan()


def test_label_smoothing_with_a_class_that_weighs_nothing_counts_by_rows():
    """Its targets count all the same, so that a part of them alone would be infinite."""
    loss = tl.as_layer(nn.CrossEntropyLoss(FROM_2, label_smoothing=0.1))

    assert Shares(tl.Serial(), loss).counts_rows
    assert not optimizers.ChunkedLoss(None, loss, 1).is_known


def test_a_mean_of_means_would_be_another_gradient():
    """The law above can fail: parts of equal size, each counted alike, give another number."""
    loss = tl.WeightedCategoryCrossEntropy()
    batch = problem(0, loss)
    torch.manual_seed(0)
    model = tl.as_layer(nn.Linear(4, 7).double())
    both = tl.Serial(model, loss)
    whole = both(batch)
    halves = [both(tuple(item[rows] for item in batch)) for rows in (slice(1, 4), slice(4, 8))]

    assert abs((sum(halves) / 2 - whole).item()) > 1e-3


@pytest.mark.parametrize("n_parts", [2, 3])
def test_an_encoder_decoder_is_cut_too(n_parts):
    """Two inputs and two outputs; the weights are the batch's third item."""
    model = models.Transformer(
        input_vocab_size=9, d_model=8, d_ff=8, n_encoder_layers=1, n_decoder_layers=1, n_heads=2,
        dropout=0.0,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    source, target = (torch.randint(1, 9, (6, n), generator=g) for n in (4, 5))
    weights = torch.rand(6, 5, generator=g, dtype=torch.float64)
    model.init((source, target), rng=0)
    loss = tl.WeightedCategoryCrossEntropy()

    whole, grads = outcome(model, loss, (source, target, weights), 1)
    value, summed = outcome(model, loss, (source, target, weights), n_parts)

    assert value == pytest.approx(whole, rel=1e-11)
    for ours, theirs in zip(summed, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_there_are_no_more_parts_than_rows():
    shares = Shares(tl.Dense(1), tl.CategoryCrossEntropy())
    batch = (torch.ones(3, 2), torch.zeros(3))

    assert len(shares.cut(batch, 8)) == 3
    assert sum(share for _, share in shares.cut(batch, 2)) == 1


def test_a_third_input_that_is_no_weights_counts_by_rows():
    """nn.TripletMarginLoss takes a negative example there."""
    shares = Shares(tl.as_layer(nn.Linear(2, 2)), tl.as_layer(nn.TripletMarginLoss()))
    batch = (torch.ones(4, 2), torch.randn(4, 2), torch.randn(4, 2))

    assert [share for _, share in shares.cut(batch, 2)] == [0.5, 0.5]


def test_items_that_do_not_agree_are_refused():
    shares = Shares(tl.Dense(1), tl.L2Loss())
    batch = (torch.ones(4, 2), torch.ones(4, 1), torch.ones(1, 1))

    with pytest.raises(ValueError, match=r"first axis of its items, which must agree; got shapes"):
        shares.cut(batch, 2)


def test_parts_without_shares_are_refused():
    with pytest.raises(ValueError, match="Parts of a batch need Shares"):
        optimizers.Trainer(tl.as_layer(nn.Linear(1, 1)), optimizers.SGD(), n_accumulation_steps=2)


@pytest.mark.parametrize("make", [tl.CrossEntropySum, tl.WeightedCategoryCrossEntropy])
def test_sums_of_trax_are_sums_of_their_parts(make):
    loss = make()
    batch = problem(3, loss)
    torch.manual_seed(0)
    model = nn.Linear(4, 7)

    whole, grads = outcome(model, loss, batch, 1)
    value, summed = outcome(model, loss, batch, 4)

    assert value == pytest.approx(whole, rel=1e-11)
    for ours, theirs in zip(summed, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max()))


def test_targets_of_a_function_of_three_are_no_weights():
    """Two outputs of a model, and targets of any sign."""
    torch.manual_seed(0)
    loss = tl.Fn("Two", lambda a, b, t: ((a - t) ** 2 + b**2).mean())
    model = tl.Branch(tl.Dense(1), tl.Dense(1))
    batch = (torch.randn(8, 3), torch.tensor([1.0, -1.0] * 4)[:, None])
    model.init(batch[0], rng=0)

    assert Shares(model, loss).counts_rows
    assert outcome(model, loss, batch, 4)[0] == pytest.approx(
        outcome(model, loss, batch, 1)[0], rel=1e-11
    )
    weighted = tl.Fn("Mean", lambda a, t, weights: (a * t * weights).sum() / weights.sum())
    assert not Shares(tl.Dense(1), weighted).counts_rows
