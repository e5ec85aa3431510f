"""Functions that numpy has under no name, functions made of functions, and backends."""

import logging

import numpy as np
import pytest
import torch

from trax_torch import fastmath, shapes
from trax_torch import layers as tl
from trax_torch.fastmath import numpy as jnp

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
INDEX = jnp.index_exp

# A call of ours, and what numpy makes of the same.
CALLS = {
    "logsumexp(x)": lambda x: np.log(np.exp(x).sum()),
    "logsumexp(x, axis=-1, keepdims=True)": lambda x: np.log(np.exp(x).sum(-1, keepdims=True)),
    "logsumexp(1000 + x, axis=0)": lambda x: 1000 + np.log(np.exp(x).sum(0)),
    "logsumexp(x, axis=(0, 1))": lambda x: np.log(np.exp(x).sum()),
    "logsumexp(x, axis=1, b=2.0)": lambda x: np.log((2 * np.exp(x)).sum(1)),
    "logsumexp(x, axis=1, b=-1.0, return_sign=True)[1]": lambda x: -np.ones(3),
    "logsumexp(x, axis=1, b=-1.0, return_sign=True)[0]": lambda x: np.log(np.exp(x).sum(1)),
    "expit(x)": lambda x: 1 / (1 + np.exp(-x)),
    "sigmoid(x)": lambda x: 1 / (1 + np.exp(-x)),
    "erf(0 * x + 0.5)": lambda x: np.full((3, 4), 0.5204998778),
    "lt(x, 0.5)": lambda x: x < 0.5,
    "stop_gradient(x)": lambda x: x,
    "top_k(x, 2)[0]": lambda x: -np.sort(-x)[:, :2],
    "top_k(x, 2)[1]": lambda x: np.argsort(-x)[:, :2],
    "sort_key_val(x, 2 * x)[0]": lambda x: np.sort(x),
    "sort_key_val(x, 2 * x, 0)[1]": lambda x: 2 * np.sort(x, 0),
    "index_update(x, INDEX[0, 1:], 7.0)": lambda x: put(x, np.s_[0, 1:], lambda old: 7.0),
    "index_update(x, 1, x[0])": lambda x: put(x, 1, lambda old: x[0]),
    "index_add(x, INDEX[:, 0], 1.0)": lambda x: put(x, np.s_[:, 0], lambda old: old + 1),
    "index_add(x, np.array([1, 1]), 1.0)": lambda x: put(x, 1, lambda old: old + 2),
    "index_min(x, INDEX[1], 0.0)": lambda x: put(x, 1, lambda old: np.minimum(old, 0)),
    "index_max(x, INDEX[..., 2], 0.0)": lambda x: put(
        x, np.s_[:, 2], lambda old: np.maximum(old, 0)
    ),
    "dynamic_slice(x, (1, 2), (2, 1))": lambda x: x[1:3, 2:3],
    "dynamic_slice(x, (9, -1), (2, 2))": lambda x: x[1:3, :2],
    "dynamic_slice_in_dim(x, 1, 2, axis=1)": lambda x: x[:, 1:3],
    "dynamic_update_slice(x, x[:2, :2], (1, 2))": lambda x: put(
        x, np.s_[1:3, 2:4], lambda old: x[:2, :2]
    ),
    "dynamic_update_slice_in_dim(x, x[:, :1], 3, 1)": lambda x: put(
        x, np.s_[:, 3:], lambda old: x[:, :1]
    ),
    "grad(lambda w: (w * w).sum())(x)": lambda x: 2 * x,
    "grad(lambda w, v: (w * v).sum(), argnums=1)(x, 3 * x)": lambda x: x,
    "grad(lambda w, v: (w * v).sum(), argnums=[0, 1])(x, 3 * x)[0]": lambda x: 3 * x,
    "grad(lambda w: ((w * w).sum(), w), has_aux=True)(x)[0]": lambda x: 2 * x,
    "grad(lambda w: (w['a'] ** 2).sum())({'a': x})['a']": lambda x: 2 * x,
    "grad(lambda w: jnp.sum(jnp.maximum(w, 0.0) * np.float32(2)))(x)": lambda x: 2.0 * (x > 0),
    "value_and_grad(lambda w: (w * w).sum())(x)[0]": lambda x: (x * x).sum(),
    "value_and_grad(lambda w: ((w * w).sum(), w), has_aux=True)(x)[0][1]": lambda x: x,
    "grad(grad(lambda w: w * w * w))(x[0, 0])": lambda x: 6 * x[0, 0],
    "vjp(lambda w: 3 * w, x)[1](x)[0]": lambda x: 3 * x,
    "vjp(lambda v, w: v * w, x, 2 * x)[1](x)[1]": lambda x: x * x,
    "vmap(lambda row: row.sum())(x)": lambda x: x.sum(1),
    "vmap(lambda c, w: c * w, in_axes=(1, None))(x, x[:, 0])": lambda x: x.T * x[:, 0],
    "vmap(lambda row: 2 * row, out_axes=1)(x)": lambda x: 2 * x.T,
    "jit(lambda w: 2 * w, static_argnums=0)(x)": lambda x: 2 * x,
    "scan(lambda c, row: (c + row, c * row), 0 * x[0], x)[0]": lambda x: x.sum(0),
    "scan(lambda c, row: (c + row, c + row), 0 * x[0], x)[1]": lambda x: np.cumsum(x, 0),
    "scan(lambda c, row: (c + row, c + row), 0 * x[0], x, reverse=True)[1]": lambda x: np.cumsum(
        x[::-1], 0
    )[::-1],
    "scan(lambda c, _: (2 * c, None), x, None, length=3)[0]": lambda x: 8 * x,
    "map(lambda row: row.sum(), x)": lambda x: x.sum(1),
    "fori_loop(1, 4, lambda i, v: v * i, x)": lambda x: 6 * x,
    "cond(x[0, 0] > -99, lambda v: v, lambda v: -v, x)": lambda x: x,
    "cond(x[0, 0] < -99, lambda v: v, lambda v: -v, x)": lambda x: -x,
    "cond(False, x, lambda v: v, 2 * x, lambda v: -v)": lambda x: -2 * x,
    "cond(pred=True, true_operand=x, true_fun=jnp.abs, false_operand=x, false_fun=jnp.sin)": np.abs,
    "cond(True, true_fun=jnp.abs, false_fun=jnp.sin, operands=(x,))": np.abs,
}


def put(x, at, new):
    x = x.copy()
    x[at] = new(x[at])
    return x


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [jnp.array, torch.tensor])
def test_a_function_is_right_and_answers_what_it_was_given(call, kind):
    """Arrays for arrays, tensors for tensors."""
    scope = {**vars(fastmath), "jnp": jnp, "INDEX": INDEX, "np": np}

    ours = eval(call, {**scope, "x": kind(X.copy())})

    np.testing.assert_allclose(ours, CALLS[call](X), rtol=1e-4, atol=1e-5)
    assert isinstance(ours, torch.Tensor) == (kind is torch.tensor)


def test_a_gradient_by_weights_goes_through_a_layer_called_with_arrays():
    """As a Trax program trains by hand."""
    layer = tl.Dense(1)
    layer.init(shapes.ShapeDtype((2, 4)))
    x = jnp.array(X[:2])

    def loss(weights):
        return jnp.mean(layer.pure_fn(torch.from_numpy(X[:2]), weights, ())[0])

    by_w, by_b = fastmath.grad(loss)(layer.weights)

    np.testing.assert_allclose(by_w.detach(), x.mean(0)[:, None], rtol=1e-5)
    assert by_b.tolist() == [1.0]


def clipped():
    """Identity whose gradient is cut; residuals of several kinds."""

    def backward(residuals, g):
        x, nothing, (scale, same) = residuals
        assert nothing is None
        assert same.shape == x.shape
        return (torch.clamp(g, -0.1, 0.1) * scale,)

    return fastmath.custom_vjp(lambda x: x, lambda x: (x, (x, None, (3, x * 1))), backward)


def test_a_function_may_bring_its_own_gradient():
    """In autograd, in `grad`, and mapped."""
    x = torch.ones(3, requires_grad=True)
    (5 * clipped()(x)).sum().backward()

    assert x.grad.tolist() == pytest.approx([0.3] * 3)
    assert float(fastmath.grad(lambda v: 5 * clipped()(v))(1.0)) == pytest.approx(0.3)
    mapped = fastmath.vmap(fastmath.grad(lambda v: 5 * clipped()(v)))(X[0])
    assert mapped.tolist() == pytest.approx([0.3] * 4)


def test_arguments_without_a_gradient_are_handed_to_the_backward_pass():
    power = fastmath.custom_vjp(
        lambda n, x: x**n,
        lambda n, x: (x**n, x),
        lambda n, x, g: (10 * g * n * x ** (n - 1),),
        nondiff_argnums=(0,),
    )

    assert float(power(3, torch.tensor(2.0))) == 8
    assert float(fastmath.grad(lambda x: power(3, x))(2.0)) == 120


def test_a_rematerialized_function_has_the_same_gradient():
    x = torch.ones(2, requires_grad=True)
    fastmath.remat(lambda v: (v * v * v).sum())(x).backward()

    assert x.grad.tolist() == [3, 3]


def test_signatures_are_computed_without_numbers():
    of = fastmath.abstract_eval(lambda x, y: (x @ y, {"n": x.sum()}))

    product, rest = of(shapes.ShapeDtype((2, 3)), np.zeros((3, 5), np.float32))

    assert product == shapes.ShapeDtype((2, 5))
    assert rest["n"] == shapes.ShapeDtype(())


def test_a_choice_is_part_of_a_compiled_graph():
    def choose(x):
        return fastmath.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, x)

    compiled = torch.compile(choose, backend="eager", fullgraph=True)

    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert compiled(-torch.ones(2)).tolist() == [-2, -2]


def test_data_sets_come_as_arrays():
    class OfAnotherLibrary:
        def numpy(self):
            return np.array([7])

    examples = [{"x": torch.ones(2), "y": (OfAnotherLibrary(), "text")}]

    (example,) = fastmath.dataset_as_numpy(examples, batch_size=8)

    assert type(example["x"]) is np.ndarray
    assert example["y"] == (np.array([7]), "text")


def test_another_name_for_the_backend_is_noted_and_torch_computes(caplog):
    """As a program asks for it: in a block, for good, by name or by Backend."""
    caplog.set_level(logging.INFO, "trax_torch")
    with fastmath.use_backend("tensorflow-numpy"):
        inside = fastmath.backend_name(), fastmath.is_backend(fastmath.Backend.TFNP)
        total = jnp.sum(torch.ones(2))
    fastmath.set_backend(fastmath.Backend.JAX)
    set_so = fastmath.backend_name()
    fastmath.set_backend(None)

    assert inside == ("tensorflow-numpy", True)
    assert isinstance(total, torch.Tensor)
    assert set_so == "jax"
    assert fastmath.backend_name() == "torch"
    assert "Backend jax is asked for; torch computes" in caplog.text
    with (
        pytest.raises(ValueError, match="one of jax, .*; got 'mlx'. Leave it out"),
        fastmath.use_backend("mlx"),
    ):
        pass


def test_devices_are_counted_as_the_launcher_started_them(monkeypatch):
    """One rank, one device: what Loop's n_devices may be."""
    assert fastmath.local_device_count() == fastmath.global_device_count() == 1
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    assert fastmath.device_count() == fastmath.global_device_count() == 8
    assert fastmath.local_device_count() == 4


@pytest.mark.parametrize(
    ("fails", "error", "says"),
    [
        (lambda: fastmath.scan(max, 0, None), ValueError, "goes along xs, or `length` times; got"),
        (lambda: fastmath.cond(True, 1, 2), TypeError, "cond takes .* got 2 arguments after pred"),
        (
            lambda: fastmath.cond(True, abs, abs, 1, linear=True),
            TypeError,
            "cond takes .* and linear. Give two functions",
        ),
    ],
)
def test_what_cannot_be_is_said(fails, error, says):
    with pytest.raises(error, match=says):
        fails()
