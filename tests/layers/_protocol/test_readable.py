"""Weights as they are read: numpy's arrays, and still the weights themselves."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.fastmath import numpy as jnp
from trax_torch.layers._protocol.errors import LayerError
from trax_torch.layers._protocol.readable import Readable


class Scale(tl.Layer):
    """Written Trax's way."""

    def init_weights_and_state(self, input_signature):
        self.weights = torch.linspace(1, 2, input_signature.shape[-1])

    def forward(self, x):
        return self.weights * x


class Shift(Scale):
    """Its constant is numpy's, its weight's square an operation of its own."""

    def forward(self, x):
        w = self.weights
        return x + np.ones(3, np.float32) * w**2 + jnp.ones(3) * w


LAYERS = {
    "Dense": lambda: tl.Dense(3),
    "Embedding": lambda: tl.Embedding(7, 3),
    "LayerNorm": tl.LayerNorm,
    "GRU": lambda: tl.GRU(4),
    "Conv": lambda: tl.Conv(3, (1, 1)),
    "written Trax's way": Scale,
    "a module": lambda: tl.as_layer(nn.Linear(4, 3)),
    "several": lambda: tl.Serial(tl.Dense(4), tl.LayerNorm()),
}


def made(name):
    layer = LAYERS[name]()
    shape = (1, 2, 2, 4) if name == "Conv" else (2, 4)
    kind = np.int32 if name == "Embedding" else np.float32
    layer.init(shapes.ShapeDtype((2, 3, 4) if name == "GRU" else shape, kind), rng=0)
    return layer


def weights_of(layer):
    return tl.flatten_weights_and_state(layer.weights, ())[0]


def weight_of(layer):
    return weights_of(layer)[0]


def backward(layer, name):
    """Gives each parameter of one of `LAYERS` a gradient of all different numbers."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, 2, 2, 4) if name == "Conv" else (2, 3, 4), generator=generator)
    y = layer(x[:, :, 0].abs().long() if name == "Embedding" else x)
    (y * torch.randn(y.shape, generator=generator)).sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_numpy_takes_weights_for_arrays(name):
    """Functions, operators, sums and ufuncs; none fails for a gradient that is wanted."""
    w = weight_of(made(name))
    array = w.detach().numpy().copy()

    assert type(np.asarray(w)) is np.ndarray
    for read in (
        np.array,
        np.asarray,
        np.sum,
        np.mean,
        np.sqrt,
        lambda w: np.sum(w**2),
        lambda w: np.exp(-w),
        lambda w: np.linalg.norm(w),
        lambda w: np.stack([w, w]),
        lambda w: np.concatenate([w, w]),
        lambda w: np.max(w, axis=0),
        lambda w: w - 0.5 * np.ones(w.shape, np.float32),
        lambda w: np.ones(w.shape, np.float32) / (1 + w * w),
        lambda w: np.dot(w, np.ones(w.shape[-1], np.float32)),
        lambda w: w.astype(np.float16),
        lambda w: np.asarray(w, dtype=np.float64),
        lambda w: float(w.sum()),
        lambda w: np.histogram(w)[0],
    ):
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(np.asarray(read(w)), read(array), rtol=1e-3)
    assert np.allclose(w, array)
    assert f"{w.sum():.2f}" == f"{array.sum():.2f}"
    assert repr(w) == repr(torch.from_numpy(array))


@pytest.mark.parametrize("name", ["Dense", "written Trax's way", "a module"])
def test_a_weight_that_is_read_is_the_weight(name):
    """What is written to it is written there; gradients go there."""
    layer = made(name)
    parameter = next(layer.parameters())
    with torch.no_grad():
        weight_of(layer).fill_(2.0)
    weight_of(layer).sum().backward()

    assert (parameter == 2).all()
    assert (parameter.grad == 1).all()


def test_a_layer_that_reads_its_weights_is_trained_past_arrays():
    """Its outputs are plain tensors, and the gradient is the formula's."""
    layer = Shift()
    layer.init(shapes.ShapeDtype((1, 3)))
    y = layer(torch.zeros(1, 3))
    y.sum().backward()

    w = next(layer.parameters())
    assert type(y) is torch.Tensor
    torch.testing.assert_close(w.grad, 2 * w.detach() + 1)
    assert layer.weights.grad is w.grad
    layer.weights.grad = None
    assert w.grad is None


@pytest.mark.parametrize(
    "scale", [np.exp, np.sum, lambda w: np.stack([w, w])[0], lambda w: torch.tensor(np.asarray(w))]
)
def test_a_layer_does_not_lose_the_gradient_of_its_weights_to_numpy(scale):
    """It is refused where the gradient is wanted; without one, and for shapes, numpy computes."""

    class Scales(Scale):
        def forward(self, x):
            assert np.shape(self.weights) == (3,)
            return x * torch.as_tensor(scale(self.weights))

    layer = Scales()
    layer.init(shapes.ShapeDtype((1, 3)))
    with pytest.raises(LayerError, match=r"functions are needed that pass gradients on"):
        layer(torch.ones(1, 3))
    with torch.no_grad():
        want = torch.as_tensor(scale(layer.weights.detach().numpy()))
        assert torch.equal(layer(torch.ones(1, 3)), want.expand(1, 3))


def test_what_is_computed_with_others_is_a_plain_tensor():
    """So a model's activations are, from the first layer on."""
    w = weight_of(made("Dense"))
    x = torch.ones(w.shape)

    assert type(w * w) is type(w[0]) is type(w.T) is type(-w) is Readable
    assert type(torch.stack([w, w])) is Readable
    linear = nn.functional.linear(input=x, weight=w)
    for mixed in (w + x, x * w, torch.stack([w, x]), torch.cat([x, w]), x @ w.T, linear):
        assert type(mixed) is torch.Tensor


def test_copies_and_pickles_are_plain():
    """A copy is a leaf that may be trained; a pickle is read without this package."""
    w = weight_of(made("Dense"))

    copied = copy.deepcopy({"w": w, "again": w})
    loaded = pickle.loads(pickle.dumps(w))

    assert type(copied["w"]) is type(loaded) is torch.Tensor
    assert copied["w"] is copied["again"]
    assert copied["w"].is_leaf
    assert copied["w"].requires_grad
    assert torch.equal(loaded, w)


@pytest.mark.parametrize(
    "of", [lambda w: w, torch.Tensor.detach, lambda w: w.detach().clone(), copy.deepcopy]
)
def test_a_parameter_may_be_made_of_a_weight(of):
    """It is trained as any other."""
    parameter = nn.Parameter(of(weight_of(made("Dense"))))
    before = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], 0.5)
    parameter.sum().backward()
    optimizer.step()

    assert (parameter.grad == 1).all()
    torch.testing.assert_close(parameter.detach(), before - 0.5, rtol=0, atol=1e-6)
    optimizer.zero_grad()
    assert parameter.grad is None


@pytest.mark.parametrize("name", LAYERS)
def test_a_tree_that_was_read_fills_another_layer(name):
    """Its parameters are plain ones; so are those of a call with other weights."""
    layer, other = made(name), made(name)
    for p in other.parameters():
        p.data.add_(1.0)
    other.weights = layer.weights

    assert all(type(p) is nn.Parameter for p in other.parameters())
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_of_torch_func_go_through_trees():
    layer = made("several")
    x = torch.ones(2, 4)

    def loss(weights):
        return layer.pure_fn(x, weights, layer.state)[0].pow(2).sum()

    gradients = torch.func.grad(loss)(layer.weights)
    loss(layer.weights).backward()

    for own, weight in zip(
        tl.flatten_weights_and_state(gradients, ())[0], weights_of(layer), strict=True
    ):
        torch.testing.assert_close(own, weight.grad)


def test_arrays_as_inputs_do_not_stop_a_gradient_by_weights():
    """As a program of Trax trains by hand; outside of it, arrays are answered with arrays."""
    layer = made("Dense")
    x = np.ones((2, 4), np.float32)
    by_w, by_b = torch.func.grad(lambda w: layer(x, weights=w).sum())(layer.weights)

    assert (by_w == 2).all()
    assert (by_b == 2).all()
    assert type(layer(x, weights=layer.weights)) is np.ndarray


def test_a_layer_that_reads_its_weights_compiles_whole():
    layer = made("written Trax's way")
    x = torch.ones(2, 4)

    compiled = torch.compile(layer, backend="eager", fullgraph=True)

    assert torch.equal(compiled(x), layer(x))


def test_state_is_read_by_numpy_too():
    layer = tl.BatchNorm()
    layer.init(shapes.ShapeDtype((2, 3, 3, 4)))

    assert np.sum(layer.state[0]) == 0
    assert np.mean(layer.state[1]) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_shown_as_weights_are_and_clipped_in_place(name):
    """In Trax's layout, whatever PyTorch's is: what shows them by weights agrees."""
    layer = made(name)
    backward(layer, name)
    weights = weights_of(layer)
    shown = [w.grad for w in weights]
    for w, grad in zip(weights, shown, strict=True):
        with torch.no_grad():  # where a weight goes by its gradient, its parameter goes by its own
            w.copy_(grad)
    for parameter in layer.parameters():
        assert torch.equal(parameter, parameter.grad)

    nn.utils.clip_grad_norm_(weights, 1e-3)

    norms = [p.grad.norm() for p in layer.parameters()]
    assert torch.stack(norms).norm() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", ["Dense", "Conv", "LayerNorm"])
def test_a_gradient_that_is_assigned_is_the_weights(name):
    """In whichever order in memory it was; it may be taken away."""
    layer = made(name)
    backward(layer, name)
    w = weight_of(layer)
    before = w.grad.clone()
    for parameter in layer.parameters():  # as what other orders in memory leave
        parameter.grad = parameter.grad.t().contiguous().t() if parameter.dim() == 2 else None

    w.grad = before + 1
    w.grad.mul_(2)

    assert torch.equal(weight_of(layer).grad, 2 * (before + 1))
    w.grad = None
    assert next(layer.parameters()).grad is None


@pytest.mark.parametrize("name", ["Dense", "Conv", "LayerNorm", "written Trax's way"])
def test_hooks_on_weights_see_and_change_their_gradients(name):
    """As they are shown; taken off, they do nothing."""
    layer, seen = made(name), []
    backward(layer, name)
    w = weight_of(layer)
    want = w.grad.clone()
    scale = torch.arange(1.0, 1 + w.numel()).reshape(w.shape)
    layer.zero_grad()
    handle = w.register_hook(lambda grad: (seen.append(grad.clone()), grad * scale)[1])

    backward(layer, name)

    torch.testing.assert_close(seen[0], want)
    torch.testing.assert_close(w.grad, want * scale)
    handle.remove()
    layer.zero_grad()
    backward(layer, name)
    torch.testing.assert_close(w.grad, want)


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_that_are_assigned_to_data_are_the_weights(name):
    layer = made(name)
    w = weight_of(layer)
    numbers = torch.arange(float(w.numel())).reshape(w.shape)

    w.data = numbers
    w.data.mul_(2)

    assert torch.equal(weight_of(layer).detach(), 2 * numbers)
    with pytest.raises(ValueError, match=r"have that shape; got \(1, 1\)"):
        w.data = torch.ones(1, 1)


@pytest.mark.parametrize("reads", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", ["Dense", "LayerNorm"])
def test_weights_are_frozen_and_thawed_where_they_are_read(name, reads):
    layer = made(name)
    parameter = next(layer.parameters())
    with reads():
        w = weight_of(layer)

    w.requires_grad_(False)
    assert not parameter.requires_grad
    w.requires_grad = True
    assert parameter.requires_grad


@pytest.mark.parametrize("name", LAYERS)
def test_size_is_a_number_to_numpy_and_a_shape_to_torch(name):
    w = weight_of(made(name))

    assert w.size == np.asarray(w).size
    assert np.zeros(w.size).shape == (w.numel(),)
    assert w.size() == w.shape
    assert w.size(-1) == w.size(dim=-1) == w.shape[-1]
    assert type(pickle.loads(pickle.dumps(w.size))) is int
    assert np.array_equal(w.copy(), w)
