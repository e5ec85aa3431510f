"""Transforms, and who waits for a gradient."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from trax_torch import _torch_private as private
from trax_torch import layers as tl


def test_transforms_and_forward_mode_are_noticed():
    """`torch._C._are_functorch_transforms_active` or `forward_ad._current_level` has gone."""
    seen = []

    def look(x):
        seen.append((private.is_transformed(), private.is_forward_mode()))
        return x.sum()

    look(torch.ones(2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    with forward_ad.dual_level():
        look(forward_ad.make_dual(torch.ones(2), torch.ones(2)))

    assert seen == [(False, False), (True, False), (True, False), (False, True)]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch._C, "_are_functorch_transforms_active"), (forward_ad, "_current_level")],
)
def test_where_they_cannot_be_noticed_reversible_layers_keep_activations(
    owner, name, monkeypatch, said
):
    torch.manual_seed(0)
    layer = tl.Serial(tl.ReversibleHalfResidual(tl.Dense(3)), tl.ReversibleSwap())
    xs = tuple(torch.randn(2, 3, requires_grad=True) for _ in range(2))
    layer.init(xs)

    def gradients():
        return torch.autograd.grad(sum((y**2).sum() for y in layer(xs)), xs)

    want = gradients()
    monkeypatch.delattr(owner, name)

    torch.testing.assert_close(gradients(), want)
    assert len(said()) == 1


def test_a_gradients_hooks_are_seen():
    """A tensor keeps its hooks by other names."""
    x, y = (nn.Parameter(torch.ones(1)) for _ in range(2))
    x.register_hook(lambda grad: grad)
    y.register_post_accumulate_grad_hook(lambda p: None)

    assert private.gradient_hooks(x) == (True, False)
    assert private.gradient_hooks(y) == (False, True)
    assert private.gradient_hooks(nn.Parameter(torch.ones(1))) == (False, False)


def test_the_leaf_of_a_node_is_found():
    """The node that accumulates a gradient has another name, or tells its leaf in another way."""
    x = torch.ones(1, requires_grad=True)
    node = (x * 2).grad_fn

    assert private.leaf_of(node) is None
    assert private.leaf_of(node.next_functions[0][0]) is x


def test_a_tensor_of_a_transform_is_known_where_that_is_set_aside():
    """torch tells a tensor's transform otherwise: recomputed layers may lose gradients."""
    found, met = {}, []

    class Below(torch.autograd.Function):
        @staticmethod
        def forward(x):
            found["below"] = private.is_set_aside(x), private.is_set_aside(met[0])
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad

    def f(x):
        met.append(x)
        found["within"] = private.is_set_aside(x), private.is_set_aside(torch.ones(1))
        return Below.apply(x).sum()

    torch.func.grad(f)(torch.ones(1))

    assert found == {"within": (False, False), "below": (False, True)}
