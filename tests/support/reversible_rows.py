"""Reversible layers in a row, and the same layers one by one."""

import copy
import functools

import torch

from trax_torch import layers as tl
from trax_torch import shapes

D = 4


def half(*more, dropout=0.0, n_context=1, name=None):
    """A half residual of a small network over the sum of its context."""
    layers = [tl.Add() for _ in range(n_context - 1)]
    layers += [tl.Dense(6), tl.Tanh(), tl.Dropout(dropout), tl.Dense(D), *more]
    return tl.ReversibleHalfResidual(*layers, name=name)


def blocks(n, **kwargs):
    return [layer for _ in range(n) for layer in (half(**kwargs), tl.ReversibleSwap())]


def built(*layers, inputs, dtype=torch.float64, seed=0):
    model = tl.Serial(*layers)
    model.init(shapes.signature(inputs), rng=seed)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.normal_(generator=torch.Generator().manual_seed(seed + i)).mul_(0.5)
    return model.to(dtype)


def vectors(n=2, dtype=torch.float64, shape=(3, D)):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(n))


def one_by_one(model, stack):
    """Runs a Serial's layers alone, so that none stands in a row."""
    for layer in model.sublayers:
        outputs = layer(tl.inputs_from_stack(stack, layer.n_in))
        stack = tl.outputs_onto_stack(outputs, stack, layer.n_in)
    return stack


def items(x):
    return x if isinstance(x, tuple) else (x,)


def weighted_sum(outputs):
    floats = [y for y in items(outputs) if y.requires_grad]
    return sum((y * (i + y.sin())).sum() for i, y in enumerate(floats, 1))


def gradients(run, model, inputs, loss=weighted_sum, seed=3):
    """Returns the outputs, and the gradients of inputs and of weights."""
    model.zero_grad()
    inputs = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in items(inputs))
    torch.manual_seed(seed)
    outputs = run(inputs if len(inputs) > 1 else inputs[0])
    loss(outputs).backward()
    return [
        *(y.detach() for y in items(outputs)),
        *(x.grad for x in inputs),
        *(p.grad for p in model.parameters()),
    ]


def assert_as_one_by_one(model, inputs, tolerance=1e-10, **kwargs):
    twin = copy.deepcopy(model)
    got = gradients(model, model, inputs, **kwargs)
    want = gradients(functools.partial(one_by_one, twin), twin, inputs, **kwargs)
    assert_close(got, want, tolerance)
    assert_close(model.buffers(), twin.buffers(), tolerance)


def assert_close(got, want, tolerance=1e-10):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            size = max(1.0, b.double().abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * size)


def keeps_nothing(outputs):
    """Tells whether a row of reversible layers is one node of the graph behind the outputs."""
    seen, todo = set(), [y.grad_fn for y in items(outputs)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "_RunBackward":
            return True
        todo += [n for n, _ in node.next_functions]
    return False
