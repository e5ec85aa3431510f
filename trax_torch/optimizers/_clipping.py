"""Clipping by the global norm as a part of an optimizer's own steps."""

from typing import Any

import torch

from trax_torch._torch_private import foreach

_CLIP = "clip_grad_norm"


def clipping(optimizer: torch.optim.Optimizer, limit: float | None) -> torch.optim.Optimizer:
    """Returns an optimizer whose own steps begin with `clip_`.

    Args:
      optimizer: keeps the limit among its defaults, which copies and pickles of it have, too.
      limit: the norm; None never clips.
    """
    if limit is not None:
        optimizer.defaults[_CLIP] = limit
    return optimizer


def limit_of(optimizer: torch.optim.Optimizer) -> float | None:
    """Returns the norm to which an optimizer's own steps clip, or None."""
    limit: float | None = optimizer.defaults.get(_CLIP)
    return limit


@torch.no_grad()
def clip_(optimizer: torch.optim.Optimizer) -> None:
    """Scales all gradients down to the norm that an optimizer clips to, if there is one."""
    limit = limit_of(optimizer)
    if limit is None:
        return
    held = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in held if p.grad is not None]
    if grads:
        norm = torch.nn.utils.get_total_norm(grads)
        factor = torch.where(norm >= limit, limit / norm, 1.0)
        foreach.mul_(grads, factor)


def loss_and_clip_(optimizer: torch.optim.Optimizer, closure: Any) -> Any:
    """Begins a step: returns the loss of a closure, or None without one, and then clips."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    clip_(optimizer)
    return loss
