"""Modules: hooks, buffers, and their calls."""

import pytest
import torch
from torch import nn

from trax_torch import _torch_private as private
from trax_torch import layers as tl


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(print),
        lambda m: m.register_forward_pre_hook(print),
        lambda m: m.register_full_backward_hook(print),
        lambda m: m.register_full_backward_pre_hook(print),
    ],
)
def test_a_modules_hooks_are_seen(register):
    """`nn.Module` keeps its hooks by other names."""
    module = nn.Linear(1, 1)
    assert not private.call_hooks(module)

    handle = register(module)
    assert private.call_hooks(module)

    handle.remove()
    assert not private.call_hooks(module)


def test_a_module_whose_hooks_cannot_be_seen_is_not_taken_apart(said):
    module = nn.Linear(1, 1)
    del module._backward_hooks

    assert private.call_hooks(module)
    assert not private.call_hooks(module, backward=False)
    assert len(said()) == 1


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_is_taken_off_without_its_handle(kind):
    """`nn.Module` keeps its hooks by other names. Others' hooks stay."""
    module = nn.Linear(1, 1)
    calls = []

    def mine(*_):
        calls.append("mine")

    def other(*_):
        calls.append("other")

    for hook in (mine, other, mine):
        getattr(module, f"register_{kind}_hook")(hook, with_kwargs=hook is other)
    private.remove_hook(module, mine)
    module(torch.ones(1))

    assert calls == ["other"]


def test_without_hooks_where_they_were_none_is_taken_off():
    """Its handle does it then, as ever."""
    private.remove_hook(object(), print)


@pytest.mark.parametrize("is_known", [True, False])
def test_buffers_that_a_state_dict_holds_are_told_from_others(is_known):
    """`nn.Module` keeps elsewhere which buffers are not saved; then its state_dict is asked."""
    module = nn.Module()
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("passing", torch.ones(1), persistent=False)
    if is_known:
        assert module._non_persistent_buffers_set == {"passing"}
        assert private.is_lasting(module, "kept")
        assert not private.is_lasting(module, "passing")
        return

    class Elsewhere(nn.Module):
        def state_dict(self):
            return {"kept": 1}

    module = Elsewhere()
    del module._non_persistent_buffers_set
    assert private.is_lasting(module, "kept")
    assert not private.is_lasting(module, "passing")


def test_errors_name_the_layer_inside():
    """The frames in which `nn.Module` calls modules have other names for what they hold."""
    model = tl.Serial(tl.Dense(3), tl.Fn("Bad", lambda x: x.no_such_thing))
    x = torch.ones(2, 3)

    with pytest.raises(tl.LayerError) as error:
        model.init(x)

    assert error.value.layer_name == "Bad"
    assert tuple(error.value.input_signature.shape) == (2, 3)


def test_a_module_keeps_its_own_in_three_dicts():
    """`nn.Module` no longer reads `_parameters`, `_buffers` and `_modules`: Layer does."""
    module = nn.Module()
    module._parameters["w"] = nn.Parameter(torch.ones(1))
    module._buffers["b"] = torch.ones(1)
    module._modules["m"] = nn.Linear(1, 1)

    assert [name for name, _ in module.named_parameters()] == ["w", "m.weight", "m.bias"]
    assert [name for name, _ in module.named_buffers()] == ["b"]
    assert module.w is module._parameters["w"]
    assert module.m is module._modules["m"]
    assert module.b is module._buffers["b"]


def test_a_module_may_refuse_what_it_is_loaded_with():
    """`_load_from_state_dict` is no longer asked, or has no list of errors at its end."""

    class Refuses(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            args[-1].append(f"refused {sorted(state_dict)} at {prefix}")

    outer = nn.Sequential(Refuses(1, 1))
    with pytest.raises(RuntimeError, match="refused .*0.bias.* at 0."):
        outer.load_state_dict(outer.state_dict())


def test_numpy_is_refused_a_gradient_while_a_module_is_called():
    """The frames of a call of a module are those of the file that defines it."""

    class Asks(nn.Module):
        def forward(self, x):
            private.refuse_to_lose_gradient(x)
            return x

    wanted = torch.ones(2, requires_grad=True)
    private.refuse_to_lose_gradient(wanted)
    with pytest.raises(
        RuntimeError, match="needed that pass gradients on; numpy was given .* Take"
    ):
        Asks()(wanted)
    assert Asks()(wanted.detach()).sum() == 2
    with torch.no_grad():
        assert Asks()(wanted).sum() == 2
