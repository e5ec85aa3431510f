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


def off_by_rounding(run, *modules, n_draws=4):
    """How far a result of float32 may be from that of float64, by what the models themselves say.

    Rounding is as if weights were a little others. So they are moved by float32's unit roundoff,
    up or down by lot, and the largest change of the result counts 64 times: for sums of as many
    products, and for the layers one after another.

    Args:
      run: returns a tensor, or several, computed by the modules in float64; without gradients.
      *modules: whose weights it depends on; they are as they were in the end.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [p for m in modules for p in m.parameters() if p.is_floating_point()]
    kept = [p.detach().clone() for p in weights]
    with torch.no_grad():
        want, largest = _flat(run()), 0.0
        assert want.dtype == torch.float64
        for _ in range(n_draws):
            for p, start in zip(weights, kept, strict=True):
                up = torch.randint(2, p.shape, generator=generator) * 2 - 1
                p.copy_(start * (1 + 2.0**-24 * up))
            largest = max(largest, float((_flat(run()) - want).abs().nan_to_num(0.0).max()))
        for p, start in zip(weights, kept, strict=True):
            p.copy_(start)
    return 64 * max(largest, 2.0**-24 * float(want[want.isfinite()].abs().max()))


def _flat(results):
    results = results if isinstance(results, (tuple, list)) else [results]
    return torch.cat([r.flatten() for r in results])
