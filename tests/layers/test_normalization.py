"""Normalization, against Trax's figures and its formulas."""

import copy

import figures
import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


def randn(*shape):
    return np.random.default_rng(0).normal(1, 2, size=shape).astype(np.float32)


def test_batch_norm_follows_trax_step_by_step():
    """Outputs and state of three training steps, and then of eval mode, equal Trax's."""
    layer = tl.BatchNorm()
    layer.init(figures.part("batchnorm", "step0_in"))
    figures.set_flat_weights(layer, figures.parts("batchnorm", "w"))

    for step in range(figures.case("batchnorm")["n_steps"]):
        output = layer(figures.part("batchnorm", f"step{step}_in"))

        figures.assert_close(output, figures.part("batchnorm", f"step{step}_out"))
        for value, i in zip(layer.state, range(3), strict=True):
            figures.assert_close(value, figures.part("batchnorm", f"step{step}_state{i}"))
    output = layer.eval()(figures.part("batchnorm", "step0_in"))

    figures.assert_close(output, figures.part("batchnorm", "eval_out"))


@pytest.mark.parametrize("momentum", [0.999, 0.9, 0.8])
def test_batch_norm_keeps_running_averages(momentum):
    """Figures of Trax's own test: all axes averaged, biased variance."""
    layer = tl.BatchNorm(momentum=momentum)
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    layer.init(x)

    y = layer(x)

    mean, variance, n_batches = layer.state
    np.testing.assert_allclose(mean, (1 - momentum) * 11.5, rtol=1e-4)
    np.testing.assert_allclose(variance, momentum + (1 - momentum) * 47.9167, rtol=1e-5)
    np.testing.assert_allclose(y, (x - 11.5) / np.sqrt(47.9167 + 1e-5), rtol=1e-5)
    assert int(n_batches) == 1
    assert mean.shape == variance.shape == (1, 1, 1)


@pytest.mark.parametrize("axis", [(0, 1, 2), 0, (0, 2), (1,), -1, (0, -1), (3, 0)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_averages_over_any_axes(axis, mode):
    layer = tl.BatchNorm(axis=axis, mode=mode)
    x = randn(2, 3, 4, 5)
    layer.init(x)
    averaged = tuple(np.atleast_1d(axis) % 4)
    features = [n for i, n in enumerate(x.shape) if i not in averaged]
    beta, gamma = randn(*features), randn(*features) + 1
    layer.weights = beta, gamma
    kept = tuple(slice(None) if i not in averaged else None for i in range(4))
    if mode == "train":
        mean, variance = x.mean(averaged, keepdims=True), x.var(averaged, keepdims=True)
    else:
        stats = [1 if i in averaged else n for i, n in enumerate(x.shape)]
        mean, variance = randn(*stats), np.abs(randn(*stats))
        layer.state = mean, variance, np.int32(7)

    y = layer(x)

    wanted = gamma[kept] * (x - mean) / np.sqrt(variance + 1e-5) + beta[kept]
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    assert int(layer.state[2]) == (1 if mode == "train" else 7)


@pytest.mark.parametrize(("center", "scale"), [(False, True), (True, False), (False, False)])
def test_batch_norm_leaves_out_what_it_is_told_to(center, scale):
    """An empty place in the tree stands for it."""
    layer = tl.BatchNorm(axis=0, center=center, scale=scale)
    x = randn(6, 3)
    weights, _ = layer.init(x)
    beta, gamma = randn(3), randn(3) + 1
    layer.weights = beta if center else (), gamma if scale else ()

    y = layer(x)

    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(y, z * (gamma if scale else 1) + (beta if center else 0), atol=1e-5)
    assert [w == () for w in weights] == [not center, not scale]
    assert len(list(layer.parameters())) == center + scale


def test_batch_norm_of_one_value_is_its_shift():
    """Its variance is 0, where torch's running one would be NaN."""
    layer = tl.BatchNorm(axis=0, momentum=0.5)
    x = randn(1, 3)
    layer.init(x)

    y = layer(x)

    np.testing.assert_array_equal(y, np.zeros((1, 3)))
    np.testing.assert_allclose(layer.state[0], x / 2)
    np.testing.assert_allclose(layer.state[1], np.full((1, 3), 0.5))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_of_nothing_is_nothing(mode):
    layer = tl.BatchNorm(axis=0, mode=mode)
    _, before = layer.init(shapes.ShapeDtype((4, 3)))

    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    torch.testing.assert_close(layer.state, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batch_norm_keeps_the_type_of_its_input(dtype):
    layer = tl.BatchNorm()
    x = torch.from_numpy(randn(3, 2, 4, 7)).to(dtype)
    layer.init(x)

    assert layer(x).dtype == dtype
    assert layer.eval()(x).dtype == dtype
    assert layer.state[0].dtype == torch.float32


def test_batch_norm_changes_mode_with_the_model():
    layer = tl.BatchNorm(axis=0)
    x = torch.randn(4, 3)
    layer.init(x)
    layer(x)
    running = layer.state

    with layer.predict():
        y = layer(x)

    torch.testing.assert_close(y, layer.eval()(x))
    torch.testing.assert_close(layer.state, running)


def test_batch_norm_gives_its_new_state_as_a_function():
    """pure_fn returns what the averages would be, and moves none; torch.func differentiates it."""
    layer = tl.BatchNorm(axis=0, momentum=0.5)
    x = torch.randn(4, 3)
    weights, state = layer.init(x)

    _, new_state = layer.pure_fn(x, weights, state)
    gradient = torch.func.grad(lambda w: (layer.pure_fn(x, w, state)[0] ** 2).sum())(weights)

    torch.testing.assert_close(layer.state, state)
    torch.testing.assert_close(new_state[0][0], x.mean(0) / 2)
    torch.testing.assert_close(gradient[1], torch.full((3,), 8.0), atol=1e-3, rtol=0)


def test_batch_norm_refuses_tensors_without_its_axes():
    with pytest.raises(tl.LayerError, match=r"averages over axes \(0, 1, 2\).* has 2 axes"):
        tl.BatchNorm().init(torch.zeros(4, 3))


@pytest.mark.parametrize("learn_epsilon", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 7, 3), (4, 5, 3), (4, 3)])
def test_filter_response_norm_computes_its_formula(shape, learn_epsilon):
    """Without axes of space nothing is averaged."""
    layer = tl.FilterResponseNorm(
        learn_epsilon=learn_epsilon, init_epsilon=0.5, init_learnt_epsilon=0.25
    )
    x = randn(*shape)
    layer.init(x)
    gamma, beta = randn(3) + 1, randn(3)
    layer.weights = gamma, beta, (np.float32(-0.25),) if learn_epsilon else ()
    square = np.mean(x**2, axis=tuple(range(1, x.ndim - 1)), keepdims=True) if x.ndim > 2 else x**2

    y = layer(x)

    epsilon = 0.75 if learn_epsilon else 0.5
    np.testing.assert_allclose(y, gamma * x / np.sqrt(square + epsilon) + beta, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(y), copy.deepcopy(layer).eval()(torch.from_numpy(x))
    )


def test_filter_response_norm_starts_as_in_trax():
    plain, learning = tl.FilterResponseNorm("train"), tl.FilterResponseNorm(learn_epsilon=True)
    signature = shapes.ShapeDtype((2, 4, 4, 3))

    gamma, beta, epsilon = plain.init(signature)[0]

    assert gamma.tolist() == [1, 1, 1]
    assert beta.tolist() == [0, 0, 0]
    assert epsilon == ()
    assert learning.init(signature)[0][2][0].item() == pytest.approx(1e-4)


@pytest.mark.parametrize("setting", [{"init_epsilon": 0}, {"init_learnt_epsilon": -1e-4}])
def test_filter_response_norm_refuses_an_epsilon_of_zero(setting):
    with pytest.raises(ValueError, match=r"needs epsilons above 0, against division by 0; got"):
        tl.FilterResponseNorm(**setting)
