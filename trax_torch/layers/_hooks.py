"""Hooks that users put on modules."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Tells whether someone wants to be told when a module is called as a whole."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
