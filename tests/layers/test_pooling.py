"""Pooling, against a loop over windows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl


def windows(x, window, strides, padding):
    """Returns an array of windows (batch, out..., values, channels), NaN where there is padding."""
    pads = [(0, 0)] * len(window)
    if padding == "SAME":
        axes = zip(x.shape[1:-1], window, strides, strict=True)
        totals = [max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in axes]
        pads = [(total // 2, total - total // 2) for total in totals]
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=np.nan)
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:-1], window, strides, strict=True)]
    found = [
        x[(slice(None), *(slice(i * s, i * s + w) for i, s, w in zip(at, strides, window)))]  # noqa: B905
        for at in itertools.product(*map(range, counts))
    ]
    found = np.stack([w.reshape(x.shape[0], -1, x.shape[-1]) for w in found], axis=1)
    return found.reshape(x.shape[0], *counts, -1, x.shape[-1])


@settings(max_examples=40, deadline=None)
@given(
    n_axes=st.integers(1, 3),
    window=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    strides=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    padding=st.sampled_from(["VALID", "SAME"]),
    kind=st.sampled_from(
        [(tl.MaxPool, np.nanmax), (tl.SumPool, np.nansum), (tl.AvgPool, np.nanmean)]
    ),
)
def test_pools_reduce_each_window(n_axes, window, strides, padding, kind):
    """What is padded counts in none of them."""
    window, strides = tuple(window[:n_axes]), tuple(strides[:n_axes])
    x = np.random.default_rng(0).normal(size=[2, *(4, 5, 6)[:n_axes], 3]).astype(np.float32)
    layer, reduce = kind

    y = layer(window, strides, padding)(x)

    np.testing.assert_allclose(y, reduce(windows(x, window, strides, padding), -2), atol=1e-5)


@pytest.mark.parametrize("layer", [tl.MaxPool, tl.SumPool, tl.AvgPool])
def test_pools_move_by_one_unless_told_otherwise(layer):
    """Trax's default, where torch's windows do not overlap."""
    assert layer()(torch.zeros(2, 5, 6, 3)).shape == (2, 4, 5, 3)
    assert layer()(torch.zeros(0, 5, 6, 3)).shape == (0, 4, 5, 3)
    assert str(layer((2, 3))) == f"{layer.__name__}(2,3)"


def test_pools_pass_gradients_on():
    x = torch.randn(1, 4, 4, 2, requires_grad=True)

    tl.AvgPool((3, 3), padding="SAME")(x).sum().backward()

    counts = torch.tensor([1 / 4 + 2 / 6 + 1 / 9, 1 / 4 + 3 / 6 + 2 / 9])
    assert torch.allclose(x.grad[0, 0, :2, 0], counts, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: tl.MaxPool((2, 2), padding="FULL"),
            "MaxPool pads by 'SAME' or 'VALID'; got 'FULL'",
        ),
        (lambda: tl.SumPool((2, 2), (1,)), r"got pool_size=\(2, 2\) and strides=\(1,\)"),
        (lambda: tl.AvgPool(()), "windows of 1 to 3 axes"),
    ],
)
def test_pools_refuse_settings_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 1, 5, 3)])
def test_pools_refuse_tensors_that_hold_no_window(shape):
    with pytest.raises(tl.LayerError, match=r"2 axes of space that a window of \(2, 2\) fits into"):
        tl.MaxPool()(torch.zeros(shape))
