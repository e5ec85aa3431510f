"""Products of decoding that are not torch's own."""

import pytest
import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.layers._core import products

SIZES = 1024, 1536  # as small as a matrix is that oneDNN gets


@pytest.fixture
def asked(monkeypatch):
    """Lists the shapes that oneDNN multiplies, on any processor."""
    monkeypatch.setattr(products, "IS_AVX2", True)
    multiply, shapes = _torch_private.onednn_linear(), []
    if multiply is None:
        pytest.skip("this torch has no product of oneDNN")

    def listed(x, *args):
        shapes.append(tuple(x.shape))
        return multiply(x, *args)

    monkeypatch.setattr(_torch_private, "onednn_linear", lambda: listed)
    return shapes


def dense(use_bias=True, sizes=SIZES):
    layer = tl.Dense(sizes[0], use_bias=use_bias, bias_initializer=tl.RandomNormalInitializer(1.0))
    layer.init(torch.zeros(1, sizes[1]), rng=0)
    return layer.eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def predicted(layer, x):
    with layer.predict(len(x), 256), torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 64), (3, 21), (256,)])
def test_prompts_with_large_matrices_are_multiplied_by_onednn(asked, use_bias, shape):
    layer, x = dense(use_bias), noise(*shape, SIZES[1])

    found = predicted(layer, x)

    assert asked == [x.shape]
    want = x.double() @ layer.weight.double().t()
    want = want + layer.bias.double() if use_bias else want
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)


def test_inputs_with_gaps_between_rows_are_multiplied_as_well(asked):
    layer, x = dense(), noise(2, 40, SIZES[1])[:, ::2]
    want = x.double() @ layer.weight.double().t() + layer.bias.double()
    torch.testing.assert_close(predicted(layer, x).double(), want, rtol=1e-4, atol=1e-4)
    assert asked == [x.shape]


def test_all_else_is_multiplied_by_torch(asked, monkeypatch):
    """Few rows and many, small matrices, other types, gradients, autocast, and other modes."""
    layer = dense()
    predicted(layer, noise(8, SIZES[1]))
    predicted(layer, noise(257, SIZES[1]))
    predicted(dense(sizes=(64, 64)), noise(20, 64))
    predicted(dense().double(), noise(20, SIZES[1]).double())
    x = noise(20, SIZES[1])
    with torch.no_grad():
        layer(x)
    with layer.predict(20, 1):
        layer(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        predicted(layer, x)
    turned = dense()
    turned.weight = nn.Parameter(turned.weight.detach().t().contiguous().t())
    predicted(turned, x)
    with monkeypatch.context() as here:
        here.setattr(torch.backends.mkldnn, "enabled", False)
        predicted(layer, x)
    monkeypatch.setattr(products, "IS_AVX2", False)
    predicted(layer, x)
    assert asked == []


def test_a_torch_without_the_product_multiplies_as_it_does(monkeypatch):
    monkeypatch.setattr(products, "IS_AVX2", True)
    monkeypatch.setattr(_torch_private, "onednn_linear", lambda: None)
    layer, x = dense(), noise(20, SIZES[1])
    assert torch.equal(predicted(layer, x), nn.functional.linear(x, layer.weight, layer.bias))
