"""Whether an optimizer updates parts of weights as it would update whole ones.

It is tried on small weights of the same numbers of axes, cut over the same ranks; the weights in
training are not touched.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, optimizers

_N_STEPS = 3  # the first may be one of a kind
_AXES = (7, 6, 3, 2, 2)


def check(optimizer: Any, params: Sequence[nn.Parameter], world: _distributed.World) -> None:
    """Raises ValueError on all ranks if an optimizer cannot be had with these weights.

    Args:
      optimizer: as `Trainer` takes it; a recipe of ours is known to fit.
      params: the weights, some of which are in parts.
      world: the ranks.
    """
    maker = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    kind = maker if isinstance(maker, type) else type(maker)
    if kind.__module__.startswith(optimizers.__name__):
        return
    cut = [p for p in params if _distributed.is_shard(p) and 0 < p.ndim <= len(_AXES)]
    like = {_form(p): p for p in cut if p.requires_grad}
    values = [_uneven(form, seed=0) for form in like]
    try:
        wanted = _trained(optimizer, [nn.Parameter(v.clone()) for v in values])
    except Exception:
        return  # it says what it needs when it is given the weights themselves
    error, what = None, "comes to other weights than for whole ones"
    try:
        parts = [
            nn.Parameter(_distributed.shard_like(v.clone(), p))
            for v, p in zip(values, like.values(), strict=False)
        ]
        found = [_distributed.whole(p).cpu() for p in _trained(optimizer, parts)]
        is_good = all(map(_are_alike, values, found, wanted))
    except Exception as raised:
        error, is_good = raised, False
        what = f"fails on: {' '.join(str(raised).split())[:200]}"
    if not world.all_agree(is_good):
        raise ValueError(
            f"strategy='fsdp' gives each rank parts of weights, which {kind.__name__} of "
            f"{kind.__module__} {what}. Give an optimizer that updates each number by itself, such "
            f"as torch.optim.AdamW, or one of trax_torch.optimizers, Adafactor among them."
        ) from error


def _trained(optimizer: Any, params: list[nn.Parameter]) -> list[torch.Tensor]:
    """Returns weights after a few steps with gradients of their own."""
    bound = optimizers.bind(optimizer, params)
    for step in range(_N_STEPS):
        for i, p in enumerate(params):
            p.grad = _distributed.shard_like(_uneven(p.shape, seed=1 + step + 10 * i), p)
        bound.step()
    return [p.detach() for p in params]


def _are_alike(start: torch.Tensor, found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Tells whether weights went to the same place, up to rounding in bfloat16, as Muon's."""
    way = (wanted - start).abs().max()
    return bool(((found - wanted).abs().max() <= 0.1 * way).item())


def _form(p: torch.Tensor) -> torch.Size:
    """Returns a small shape like a weight's; of few rows some ranks have none."""
    return torch.Size([min(p.shape[0], _AXES[0]), *_AXES[1 : p.ndim]])


def _uneven(shape: torch.Size, seed: int) -> torch.Tensor:
    """Returns numbers of which each rank's have another size."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values * torch.linspace(0.5, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
