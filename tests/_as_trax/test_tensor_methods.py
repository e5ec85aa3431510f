"""Methods of tensors that programs call as numpy's, where `trax` is this library."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl

ROWS = np.array([[3.0, 1.0, 2.0], [6.0, 5.0, 4.0]])


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["max", "min", "std", "var", "argmax", "argmin", "sum", "mean"])
def test_reductions_by_axis_are_numpys(name, axis, keepdims):
    """`axis` is numpy's word: one tensor comes, and deviations divide by n."""
    found = getattr(torch.tensor(ROWS), name)(axis=axis, keepdims=keepdims)

    assert torch.equal(found, torch.from_numpy(getattr(ROWS, name)(axis=axis, keepdims=keepdims)))


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.astype(np.int32),
        lambda x: x.astype("float32"),
        lambda x: x.copy(),
        lambda x: x.reshape(2, 3, 1).transpose(2, 0, 1),
        lambda x: x.reshape(2, 3, 1).transpose((1, 2, 0)),
        lambda x: x.transpose(),
        lambda x: x.dot(x.T),
        lambda x: x[0].dot(x[1]),
        lambda x: x.max(axis=(0, 1)),
        lambda x: x.cumsum(axis=1),
        lambda x: x.argsort(axis=1),
    ],
)
def test_calls_as_of_arrays_give_what_arrays_give(use):
    """Also the type."""
    found, want = use(torch.tensor(ROWS)), use(ROWS)

    assert found.numpy().dtype == want.dtype
    assert np.array_equal(found.numpy(), want)


@pytest.mark.usefixtures("trax")
def test_calls_in_torchs_manner_are_as_they_were():
    x = torch.tensor(ROWS)

    assert x.max(1).indices.tolist() == [0, 0]
    assert x.max(dim=1).values.tolist() == [3.0, 6.0]
    assert x.std(dim=1).tolist() == [1.0, 1.0]
    assert x.transpose(0, 1).shape == (3, 2)
    assert x.transpose(dim0=0, dim1=1).shape == (3, 2)
    assert float(x[0].dot(x[1])) == 31.0
    assert x.sort(dim=1).values[0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize(
    "use", [np.sum, np.mean, np.max, np.std, np.var, np.prod, np.any, np.argmax, np.linalg.norm]
)
def test_numpys_functions_take_weights(use):
    """A program that plots or averages them; they want gradients."""
    layer = tl.Dense(3)
    layer.init(torch.zeros(1, 2))
    weight = layer.weights[0]
    array = np.asarray(weight)

    assert type(array) is np.ndarray
    assert np.allclose(np.asarray(use(weight)), use(array))


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize("use", [np.asarray, np.stack, lambda x: np.dot(np.ones(2), x)])
def test_numpys_functions_cut_no_gradient_in_silence(use):
    """Within layers and losses they are refused, as in Trax; elsewhere they are free."""
    layer = tl.Fn("Plain", lambda x: torch.as_tensor(use(x)))
    x = torch.ones(2, requires_grad=True) * 2

    with pytest.raises(tl.LayerError, match=r"Within a layer or a loss.*trax.fastmath.numpy"):
        layer(x)
    with torch.no_grad():
        layer(x)
    assert np.all(np.asarray(use(x)) > 0)


@pytest.mark.usefixtures("trax")
def test_norms_of_weights_are_numbers():
    """Computed by numpy and by operators, in turn."""
    layer = tl.Dense(3)
    layer.init(torch.zeros(1, 2))
    weight = layer.weights[0]

    norm = np.sqrt(np.sum(weight**2))

    assert float(np.asarray(norm)) == pytest.approx(float(np.linalg.norm(np.asarray(weight))))


@pytest.mark.usefixtures("trax")
def test_arrays_of_tensors_are_views_or_copies_as_numpy_asks():
    """`np.asarray` shares memory, `np.array` does not; a type may be asked for."""
    x = torch.zeros(2)
    view, copy = np.asarray(x), np.array(x)
    x.add_(1)

    assert view.tolist() == [1.0, 1.0]
    assert copy.tolist() == [0.0, 0.0]
    assert np.asarray(x, dtype=np.int64).dtype == np.int64
    assert np.asarray(x.bfloat16()).dtype == np.float32


@pytest.mark.usefixtures("trax")
def test_a_functions_gradient_goes_through_them():
    """In a layer, and compiled."""
    layer = tl.Fn("Widest", lambda x: (x.max(axis=1) - x.min(axis=1)).astype(np.float32))
    x = torch.tensor(ROWS, dtype=torch.float32, requires_grad=True)

    for call in (layer, torch.compile(layer, backend="aot_eager")):
        (grad,) = torch.autograd.grad(call(x).sum(), x)
        assert grad.tolist() == [[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]


def test_tensors_are_torchs_where_nobody_asked():
    """And again when the name is given back."""
    assert not hasattr(torch.Tensor, "astype")
    assert "max" not in vars(torch.Tensor)
    assert len(torch.tensor(ROWS).max(axis=1)) == 2


C = np.array([[2.0, -1.0, 0.5], [1.0, 3.0, 2.0]])  # of float64, as numpy makes it


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize(
    "use",
    [
        lambda x: x * C,
        lambda x: C * x,
        lambda x: C - x,
        lambda x: x - C,
        lambda x: C / (1 + x * x),
        lambda x: x / C,
        lambda x: C @ x.T,
        lambda x: x.T @ C,
        lambda x: np.float32(2) * x,
        lambda x: x / np.sqrt(np.float32(3)),
        lambda x: np.exp(x) + np.tanh(x),
        lambda x: np.maximum(x, C),
        lambda x: np.where(C > 1, 1, 0) * x,
        lambda x: x[:, 0] * C[:, 0] + np.arange(2) * x[:, 1],
        lambda x: (x > C) * x,
        lambda x: (x < C) * x,
    ],
)
def test_constants_of_numpy_let_gradients_past(use):
    """Operators and numpy's own functions, item by item; the answer is a tensor of x's type."""
    from trax import layers  # as a program has it

    x = torch.tensor([[0.3, -0.7, 1.1], [1.5, 0.2, -0.4]], requires_grad=True)
    y = layers.Fn("Uses", use)(x)
    y.sum().backward()

    step = 1e-6
    numbers = x.detach().double().numpy()
    want = np.zeros((2, 3))
    for place in np.ndindex(2, 3):
        around = [numbers.copy(), numbers.copy()]
        around[0][place] += step
        around[1][place] -= step
        high, low = (np.sum(use(a)) for a in around)
        want[place] = (high - low) / (2 * step)
    assert type(y) is torch.Tensor
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.detach().numpy(), use(numbers), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), want, atol=1e-5)


@pytest.mark.usefixtures("trax")
def test_arrays_take_tensors_in():
    """What writes to an array stays numpy's, and cuts no gradient in silence."""
    total = np.zeros((2, 3))
    total += torch.tensor(ROWS)
    total[0] = np.multiply.reduce(torch.tensor(ROWS))

    assert total.tolist() == [[18.0, 5.0, 8.0], [6.0, 5.0, 4.0]]

    def writes(x):
        total = np.zeros(2)
        total += x
        return x * total

    with pytest.raises(tl.LayerError, match=r"Within a layer or a loss"):
        tl.Fn("Writes", writes)(torch.ones(2, requires_grad=True))


@pytest.mark.usefixtures("trax")
def test_a_model_with_a_constant_of_numpy_trains():
    """A mask, as programs have it."""
    layer = tl.Fn("Masked", lambda x: np.tril(np.ones((3, 3))) * x)
    model = tl.Serial(tl.Dense(3), layer)
    model.init(torch.zeros(3, 2))
    x = torch.ones(3, 2)

    (grad,) = torch.autograd.grad(model(x).sum(), model.sublayers[0].bias)
    assert grad.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.usefixtures("trax")
def test_weights_are_as_they_were():
    """Arrays to numpy's functions; with arrays around operators the weights themselves."""
    layer = tl.Dense(3)
    layer.init(torch.zeros(1, 2))
    weight = layer.weights[0]
    array = np.asarray(weight)

    assert type(np.exp(weight)) is type(np.exp(weight, dtype=np.float64)) is np.ndarray
    for use in (lambda w: np.ones((2, 3)) * w, lambda w: 1 - w * np.ones(3), lambda w: w @ w.T):
        assert type(use(weight)) is type(weight)
        np.testing.assert_allclose(np.asarray(use(weight)), use(array), rtol=1e-5)
