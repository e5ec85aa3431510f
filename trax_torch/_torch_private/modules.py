"""Modules: their hooks, their buffers, and whether one is being called."""

import sys
import types
from typing import Any

import torch
from torch import nn

from trax_torch._torch_private.said import say


def call_hooks(module: nn.Module, backward: bool = True) -> bool:
    """Tells whether someone waits for a module to be called, or for gradients at its borders.

    Args:
      module: is not looked into.
      backward: whether hooks of the backward pass count.
    """
    names = ["_forward_hooks", "_forward_pre_hooks"]
    if backward:
        names += ["_backward_hooks", "_backward_pre_hooks"]
    found = [getattr(module, name, None) for name in names]
    if None in found:
        say("hooks where nn.Module had them", "no module is taken apart")
        return True
    return any(found)


def remove_hook(module: nn.Module, hook: Any) -> None:
    """Takes a hook off a module's forward, without the handle that registering it gave."""
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = getattr(module, name, {})
        for key in [key for key, each in hooks.items() if each is hook]:
            del hooks[key]
            for more in (f"{name}_with_kwargs", "_forward_hooks_always_called"):
                getattr(module, more, {}).pop(key, None)


def is_lasting(owner: nn.Module, name: str) -> bool:
    """Tells whether a state_dict holds a module's own buffer."""
    passing = getattr(owner, "_non_persistent_buffers_set", None)
    if passing is None:
        return name in owner.state_dict()
    return name not in passing


def inputs_of_call(frame: types.FrameType) -> Any:
    """Returns the inputs of the module whose call a frame is; None where it is no such frame.

    Where `nn.Module` calls modules in another way, errors name the outermost layer alone.
    """
    return frame.f_locals.get("args") if isinstance(frame.f_locals.get("self"), nn.Module) else None


_CALLS_MODULES = nn.Module.__call__.__code__.co_filename


def refuse_to_lose_gradient(tensor: torch.Tensor) -> None:
    """Raises RuntimeError for a tensor that numpy gets in a module's call, its gradient wanted."""
    if not tensor.requires_grad or not torch.is_grad_enabled():
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == _CALLS_MODULES:
            raise RuntimeError(
                "Within a layer or a loss, functions are needed that pass gradients on; numpy was "
                "given a tensor whose gradient is wanted, and would lose it. Take torch's, or "
                "trax_torch.fastmath.numpy (trax.fastmath.numpy): it differentiates."
            )
