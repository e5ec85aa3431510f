"""Autograd sees chunks as it would see the whole: each weight gets one gradient, the right one."""

import pytest
import torch
from chunks import VOCAB, D, assert_alike, problem, whole_and_chunks
from torch import nn

from trax_torch import layers as tl
from trax_torch.optimizers import ChunkedLoss, split_head


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


# What the loss reaches by itself


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


# What is refused


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
