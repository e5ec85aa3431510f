"""An optimizer's step: its hooks, what is around it, and what fused ones obey."""

import sys
from typing import Any

import torch

from trax_torch._torch_private.said import say

_optimizers: Any = sys.modules[torch.optim.Optimizer.__module__]  # hidden by its package

_profiler: Any = torch.autograd.profiler


def step_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Returns the hooks of an optimizer's step; where a release keeps them elsewhere, none."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for name in names for hook in getattr(optimizer, name, {}).values()]


_STEP = getattr(torch.optim.Optimizer, "profile_hook_step", None)

_CODE_AROUND_STEP = None if _STEP is None else _STEP(lambda self: None).__code__


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Has an optimizer take its step, without what torch puts around it where nobody would see it.

    That is a name for profilers, and a look for hooks, which take 10 to 20 us. What else is put
    around it, or in its place, is called as it is; so is all that a release keeps elsewhere.
    """
    around: Any = type(optimizer).step
    code = getattr(around, "__code__", None)
    if code is None or code is not _CODE_AROUND_STEP or is_step_watched(optimizer):
        optimizer.step()
    else:
        around.__wrapped__(optimizer)


def is_step_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Tells whether a hook, profiler or scheduler sees an optimizer's step; True if unknown."""
    own = vars(optimizer)
    try:
        return bool(
            "step" in own  # a scheduler, which counts steps
            or own["_optimizer_step_pre_hooks"]
            or own["_optimizer_step_post_hooks"]
            or _optimizers._global_optimizer_pre_hooks
            or _optimizers._global_optimizer_post_hooks
            or _profiler._is_profiler_enabled
        )
    except (AttributeError, KeyError):
        say("hooks and profilers where steps had them", "each step looks for them itself")
        return True


def set_verdict(optimizer: torch.optim.Optimizer, is_bad: torch.Tensor) -> None:
    """Has a fused optimizer leave all as it is where a number on the device is not 0.

    The fused kernels ask for it by this attribute, which `torch.amp.GradScaler` sets.
    """
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]


def verdict_of(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Returns what `set_verdict` set, or None."""
    return getattr(optimizer, "found_inf", None)
