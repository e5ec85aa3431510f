"""Layers that compute again do so under `torch.func`, and give what they gave with all kept."""

import pytest
import torch
from live_bytes import Peak
from torch.utils import _pytree

from trax_torch import layers as tl
from trax_torch import shapes

N, D, HIDDEN = 64, 4, 512
ONE_CHUNK = 8 * HIDDEN * 4  # bytes of the hidden activations of 8 rows


def peak_of(fn, *args):
    with Peak() as peak:
        fn(*args)
    return peak.most


def wide(*more):
    layer = tl.Serial(tl.Dense(HIDDEN), tl.Tanh(), *more, tl.Dense(3))
    layer.init(shapes.ShapeDtype((N, D)), rng=1)
    return layer


def loss_of(layer, x, rng=7):
    def loss(weights):
        return (layer.pure_fn(x, weights, layer.state, rng)[0] ** 2).sum()

    return loss


def plain(monkeypatch):
    """Has all activations kept."""
    monkeypatch.setattr("trax_torch._recompute._torch_private.is_forward_mode", lambda: True)


def named(layer):
    return list(layer.named_parameters())


def weights_of(layer):
    return _pytree.tree_map(lambda w: w.detach().clone(), layer.weights)


def assert_equal(found, expected):
    found, expected = _pytree.tree_leaves(found), _pytree.tree_leaves(expected)
    assert len(found) == len(expected) > 0
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


X = torch.linspace(-1, 1, N * D).reshape(N, D).sin()


def both(monkeypatch, compute):
    """What is computed with activations computed again, and with all kept."""
    again = compute()
    with monkeypatch.context() as m:
        plain(m)
        return again, compute()


def test_chunk_needs_the_memory_of_a_chunk_under_func_grad(monkeypatch):
    layer = tl.Chunk(wide(), 8)
    gradient = torch.func.grad(loss_of(layer, X))
    weights = weights_of(layer)

    again, kept = both(monkeypatch, lambda: peak_of(gradient, weights))
    assert kept > N // 8 * ONE_CHUNK
    assert again < kept / 2


@pytest.mark.parametrize("more", [(), (tl.Dropout(0.3),)], ids=["plain", "dropout"])
@pytest.mark.parametrize("chunk", [8, 24])
def test_gradients_are_the_same_bit_for_bit(monkeypatch, more, chunk):
    layer = tl.Chunk(wide(*more), chunk)
    weights = weights_of(layer)

    again, kept = both(monkeypatch, lambda: torch.func.grad_and_value(loss_of(layer, X))(weights))
    assert_equal(again, kept)


def test_they_are_those_of_an_ordinary_backward_pass():
    layer = tl.Chunk(wide(tl.Dropout(0.3)), 8)
    (layer(X, rng=7) ** 2).sum().backward()

    found = torch.func.grad(loss_of(layer, X))(weights_of(layer))
    names = layer._named("weights", found)
    assert_equal([names[k] for k, _ in named(layer)], [p.grad for _, p in named(layer)])


def vmapped(loss):
    return torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")


def of_x(loss):
    return lambda w, x: torch.func.grad(loss, 1)(w, x)


def twice(loss):
    def norm(w, x):
        return sum((g**2).sum() for g in _pytree.tree_leaves(torch.func.grad(loss)(w, x)))

    return torch.func.grad(norm, argnums=(0, 1))


def thrice(loss):
    return torch.func.grad(lambda w, x: twice(loss)(w, x)[1].sum())


def forwards_over(loss):
    def along(w, x):
        return torch.func.jvp(lambda x: torch.func.grad(loss)(w, x), (x,), (torch.ones_like(x),))

    return along


def hessian(loss):
    return lambda w, x: torch.func.hessian(lambda x: loss(w, x))(x[:1])


def ordinary_over(loss):
    def gradients(w, x):
        x = x.clone().requires_grad_()
        found = torch.func.grad(loss)(w, x)
        sum((g**2).sum() for g in _pytree.tree_leaves(found)).backward()
        return x.grad

    return gradients


WAYS = [vmapped, of_x, twice, thrice, forwards_over, hessian, ordinary_over]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_every_transform_gives_what_it_gave(monkeypatch, way, rate):
    """By the rows, in second and third order, in forward mode, and ordinary autograd around it."""
    if rate and way is hessian:
        pytest.skip("its columns would draw random numbers")
    layer = tl.Chunk(wide(tl.Dropout(rate)) if rate else wide(), 8)
    layer.double()
    weights = weights_of(layer)
    x = torch.stack([X, 2 * X]) if way is vmapped else X
    x = x.double()

    def loss(w, x):
        torch.manual_seed(5)
        return (layer.pure_fn(x, w, layer.state)[0] ** 2).sum()

    again, kept = both(monkeypatch, lambda: way(loss)(weights, x))
    for f, e in zip(_pytree.tree_leaves(again), _pytree.tree_leaves(kept), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12 * float(e.abs().max()))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_what_a_layer_reaches_by_itself_has_its_gradient(monkeypatch, rate):
    """A function may use a tensor that is no input and no weight: activations are kept."""
    x = torch.ones(4, 3)

    def loss(w):
        torch.manual_seed(5)
        layer = tl.Serial(tl.Dropout(rate), tl.Fn("Scale", lambda x: x * w))
        return (tl.Chunk(layer, 2)(x) * torch.arange(4.0)[:, None]).sum()

    again, kept = both(monkeypatch, lambda: torch.func.grad(loss)(torch.ones(3)))
    assert kept.any()
    assert_equal(again, kept)
    ws = torch.ones(2, 3)
    of_rows = torch.func.vmap(torch.func.grad(loss), randomness="same")
    assert_equal(*both(monkeypatch, lambda: of_rows(ws)))


@pytest.mark.parametrize("size", [2, 3])
def test_running_averages_move_once_a_chunk(size):
    layer = tl.Chunk(tl.BatchNorm(axis=(0,)), size)
    x = torch.randn(6, 3)
    layer.init(shapes.signature(x))

    def loss(weights):
        y, state = layer.pure_fn(x, weights, layer.state, 0)
        return (y**3).sum(), state

    weights = weights_of(layer)
    found, state = torch.func.grad(loss, has_aux=True)(weights)
    expected_state = layer.pure_fn(x, weights, layer.state, 0)[1]
    (layer(x) ** 3).sum().backward()
    assert_equal(state, expected_state)
    assert len(_pytree.tree_leaves(found)) == 2


def test_an_error_inside_is_the_layers_own():
    def bad(x):
        raise ArithmeticError("as it is")

    layer = tl.Chunk(tl.Fn("Bad", bad), 2)

    with pytest.raises(tl.LayerError, match=r"layer Bad(.|\n)*as it is"):
        torch.func.grad(lambda x: layer(x).sum())(torch.ones(4, 3))
