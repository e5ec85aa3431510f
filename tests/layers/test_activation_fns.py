"""Activations."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes

XS = np.array([-30.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (tl.Relu(), lambda x: np.maximum(x, 0)),
        (tl.ParametricRelu(a=0.25), lambda x: np.maximum(0.25 * x, 0)),
        (tl.LeakyRelu(a=0.125), lambda x: np.where(x > 0, x, 0.125 * x)),
        (tl.Elu(a=0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
        (tl.Selu(1.5, 2.0), lambda x: 2.0 * np.where(x > 0, x, 1.5 * np.expm1(x))),
        (tl.HardSigmoid(), lambda x: np.clip(1 + x, 0, 1)),
        (tl.HardTanh(), lambda x: np.clip(x, -1, 1)),
        (tl.Softplus(), lambda x: np.logaddexp(x, 0)),
        (tl.Exp(), np.exp),
        (tl.Swish(), lambda x: x / (1 + np.exp(-x))),
    ],
    ids=lambda case: case.name if isinstance(case, tl.Layer) else "",
)
def test_an_activation_follows_its_formula(layer, formula):
    np.testing.assert_allclose(layer(XS), formula(XS), rtol=1e-5, atol=1e-7)


def test_selu_keeps_mean_and_variance_of_normal_values():
    """The two constants are those of the paper."""
    x = np.random.default_rng(0).normal(size=400_000).astype(np.float32)

    y = tl.Selu()(x)

    assert abs(y.mean()) < 0.01
    assert abs(y.var() - 1) < 0.01


def test_log_undoes_exp():
    np.testing.assert_allclose(tl.Log()(tl.Exp()(XS)), XS, rtol=1e-6)


def test_glu_gates_the_first_half_by_the_second():
    y = tl.Glu()(np.array([[4.0, 6.0, 0.0, 100.0]], dtype=np.float32))

    np.testing.assert_allclose(y, [[2.0, 6.0]])


def test_glu_refuses_vectors_without_halves():
    with pytest.raises(tl.LayerError, match="their size is even; got 5"):
        tl.Glu()(np.ones((2, 5)))


def test_thresholded_linear_unit_trains_one_threshold_that_starts_at_zero():
    layer = tl.ThresholdedLinearUnit()
    weights, _ = layer.init(shapes.signature(XS))
    assert weights.shape == ()
    np.testing.assert_array_equal(layer(XS), np.maximum(XS, 0))

    layer.weights = torch.tensor(1.5)
    layer(torch.from_numpy(XS)).sum().backward()

    np.testing.assert_array_equal(layer(XS), np.maximum(XS, 1.5))
    assert layer.threshold.grad == 5  # values below it


@pytest.mark.parametrize("x", [-200.0, 200.0])
@pytest.mark.parametrize("make", [tl.Softplus, tl.Swish, tl.Elu, tl.Selu, tl.Gelu, tl.FastGelu])
def test_values_and_gradients_stay_finite_far_out(make, x):
    tensor = torch.tensor([x], requires_grad=True)

    y = make()(tensor)
    y.backward()

    assert y.isfinite().all()
    assert tensor.grad.isfinite().all()
