"""A model and its loss as a whole and in chunks: losses of all kinds, and what must be equal."""

import copy

import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.optimizers import ChunkedLoss, split_head

D, VOCAB = 5, 7


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
