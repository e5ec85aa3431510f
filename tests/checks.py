"""What several tests of layers check with."""

import torch


def grads(layer, x):
    """Returns outputs and gradients of a loss that no output drops out of."""
    layer.zero_grad()
    outputs = layer(x)
    flat = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((y**2).sum() for y in flat).backward()
    return [y.detach() for y in flat] + [p.grad for p in layer.parameters()]


def assert_all_close(got, want, tolerance=1e-6):
    """Asserts that two lists of tensors agree, to an absolute tolerance."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
