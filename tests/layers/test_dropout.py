"""Dropout: the share that goes, the mean that stays, and attention that drops weights."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch.layers import _dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.001, 1e-5, 0.99999])
def test_a_share_of_the_rate_goes_and_the_mean_stays(rate):
    """Within five standard deviations; also rates that 16 bits do not meet."""
    torch.manual_seed(0)
    n = 1_000_003

    found = _dropout.kept((n,), rate, torch.ones(1, dtype=torch.float64))

    values = found.unique()
    share = (found == 0).double().mean().item()
    assert len(values) <= 2
    assert values.max().item() * (1 - rate) == pytest.approx(1, rel=2e-3)
    assert abs(share - rate) <= 5 * (rate * (1 - rate) / n) ** 0.5 + 1e-3 * rate


def test_values_of_one_draw_go_independently():
    """Any two of eight neighbours go together in rate^2 of the cases."""
    torch.manual_seed(1)
    n, rate = 200_000, 0.3

    gone = (_dropout.kept((n, 8), rate, torch.ones(1)) == 0).double()

    both = (gone.T @ gone / n).numpy()
    expected = np.full((8, 8), rate**2)
    np.fill_diagonal(expected, rate)
    np.testing.assert_allclose(both, expected, atol=5 * rate / n**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 3, 4)])
def test_what_goes_in_the_values_goes_in_the_gradient(dtype, shape):
    """Type and shape stay, whatever the number of values."""
    torch.manual_seed(2)
    layer = tl.Dropout(0.5)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)

    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)

    assert (y.dtype, y.shape) == (dtype, torch.Size(shape))
    assert torch.equal(gradient, y)
    assert set(y.detach().flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("kind", ["all", "mask", "causal"])
def test_attention_drops_weights_after_the_softmax(kind):
    """Against the formula in float64, with the same factors."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=generator, dtype=torch.float64).unbind()
    mask = {
        "all": None,
        "mask": torch.rand(2, 1, 1, 6, generator=generator) > 0.3,
        "causal": torch.ones(6, 6, dtype=torch.bool).tril(),
    }[kind]
    scores = torch.einsum("bhnd,bhld->bhnl", q, k) / 8**0.5
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -1e30), -1)

    torch.manual_seed(4)
    found = _dropout.attend(q, k, v, mask if kind == "mask" else None, 0.4, kind == "causal")
    torch.manual_seed(4)
    factors = _dropout.kept(weights.shape, 0.4, weights)

    torch.testing.assert_close(found, (weights * factors) @ v)
    assert (factors == 0).any()


def test_compiled_dropout_keeps_share_and_mean():
    """By one program with the layer before it."""
    torch.manual_seed(5)
    layer = torch.compile(tl.Dropout(0.25), fullgraph=True)

    y = layer(torch.ones(400, 1000))

    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert y.mean().item() == pytest.approx(1, abs=0.005)


def test_rows_of_a_vmap_drop_what_they_like():
    """With `randomness="different"`, as of torch's own."""
    torch.manual_seed(6)

    rows = torch.func.vmap(tl.Dropout(0.5), randomness="different")(torch.ones(2, 64))

    assert not torch.equal(rows[0], rows[1])
