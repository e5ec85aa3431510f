"""Gradients: transforms of functions, and who waits for a gradient."""

from typing import Any

import torch
from torch.autograd import forward_ad

from trax_torch._torch_private.said import say


def is_transformed() -> bool:
    """Tells whether a transform of `torch.func`'s (grad, vmap, jvp) is under way."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    if active is None:
        say("_are_functorch_transforms_active", "reversible and recomputed layers keep activations")
        return True
    return bool(active())


def is_set_aside(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is of a transform of `torch.func`'s that is not under way just now.

    What computes with it there would not be followed by the transform.
    """
    functorch = getattr(torch._C, "_functorch", None)
    level_of = getattr(functorch, "maybe_get_level", None)
    current = getattr(functorch, "maybe_current_level", None)
    if level_of is None or current is None:
        say("_functorch.maybe_get_level", "under torch.func recomputed layers keep activations")
        return True
    return bool(level_of(tensor) > (current() or 0))


def is_forward_mode() -> bool:
    """Tells whether forward-mode derivatives are taken by `torch.autograd.forward_ad`."""
    level = getattr(forward_ad, "_current_level", None)
    if level is None:
        say("forward_ad._current_level", "reversible layers keep activations")
        return True
    return bool(level >= 0)


def gradient_hooks(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Tells whether a tensor's gradient has hooks, and whether its accumulation has.

    Where a release keeps them elsewhere, none are seen.
    """
    return tuple(
        bool(getattr(tensor, name, None))
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )  # type: ignore[return-value]


def leaf_of(node: Any) -> torch.Tensor | None:
    """Returns the leaf whose gradient a node of autograd's graph accumulates; None of others."""
    return node.variable if node.name().endswith("AccumulateGrad") else None
