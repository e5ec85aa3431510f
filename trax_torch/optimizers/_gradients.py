"""Gradients between the backward pass and the update: their norm, and clipping by norm or value.

This room never computes a gradient, and never moves a weight.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _distributed
from trax_torch._torch_private import foreach
from trax_torch.optimizers import base


@dataclass(frozen=True)
class Gradients:
    """Measures and clips the gradients of some weights.

    Attributes:
      device: of the numbers.
      on_cpu: whether all weights are on a CPU, where nothing is waited for when a number is read.
      is_sharded: whether ranks hold parts of weights.
      max_norm: when the global norm reaches this, all gradients are scaled to it; None for never.
      max_value: each gradient is brought into [-max_value, max_value], after that; None for never.
    """

    device: torch.device
    on_cpu: bool
    is_sharded: bool
    max_norm: float | None = None
    max_value: float | None = None

    def norm(self, tensors: list[Any]) -> Any:
        """Returns the L2 norm of all tensors together: a float on a CPU, else a scalar."""
        tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
        shards = [t for t in tensors if _distributed.is_shard(t)] if self.is_sharded else []
        if shards:
            norms = foreach.norm(shards)
            total = _distributed.whole(torch.linalg.vector_norm(torch.stack(norms)))
            whole = [t for t in tensors if not _distributed.is_shard(t)]
            if whole:
                rest = torch.linalg.vector_norm(torch.stack(foreach.norm(whole)))
                total = torch.hypot(total, rest.to(total))
            return total.item() if self.on_cpu else total
        norms = foreach.norm(tensors) if tensors else ()
        if self.on_cpu:
            return math.hypot(*[n.item() for n in norms])
        if not norms:
            return torch.zeros((), device=self.device)
        return torch.linalg.vector_norm(torch.stack([n.float() for n in norms]))

    def clip_(self, grads: list[torch.Tensor], norm: Any) -> None:
        """Clips gradients by their global norm, then by value, as far as that is wanted.

        Args:
          grads: the gradients.
          norm: what `norm` gave of them.
        """
        if self.max_norm is not None and not (self.on_cpu and norm < self.max_norm):
            if self.on_cpu or self.is_sharded:
                factor: Any = self.max_norm / max(float(norm), self.max_norm)
            else:
                factor = torch.where(norm >= self.max_norm, self.max_norm / norm, 1.0)
            foreach.mul_([_distributed.local(g) for g in grads], factor)
        if self.max_value is not None:
            self.clip_values_(grads)

    def clip_values_(self, grads: list[torch.Tensor]) -> None:
        """Brings each gradient into the range, if there is one."""
        if self.max_value is None:
            return
        for sparse in (g for g in grads if g.is_sparse):
            whole = sparse.coalesce()  # what several rows of it say of one is added up first
            self._into_range_([whole.values()])
            sparse.copy_(whole)
        self._into_range_([_distributed.local(g) for g in grads if not g.is_sparse])

    def _into_range_(self, tensors: list[torch.Tensor]) -> None:
        if tensors:
            foreach.clamp_min_(tensors, -self.max_value)  # type: ignore[operator]
            foreach.clamp_max_(tensors, self.max_value)


def norm_to_clip_to(optimizer: Any, clip_grad_norm: float | None) -> float | None:
    """Returns the norm to which a trainer clips before its optimizer's step, or None.

    Args:
      optimizer: as `base.bind` takes it; it may have a limit of its own.
      clip_grad_norm: the limit that the trainer was asked for.

    Raises:
      ValueError: if both have one, and not the same.
    """
    own = base.clip_norm_of(optimizer)
    if None not in (own, clip_grad_norm) and own != clip_grad_norm:
        raise ValueError(
            f"clip_grad_norm is given twice: {clip_grad_norm}, and {own} by the optimizer. Give "
            f"it in one place."
        )
    if isinstance(optimizer, torch.optim.Optimizer) and own is not None:
        return None  # its own step does
    return clip_grad_norm if own is None else own


def has_own_zero_grad(optimizer: torch.optim.Optimizer) -> bool:
    """Tells whether an optimizer does more, or else, to free gradients than torch's own do.

    Wrappers that keep gradients of their own do, such as those of each row of a batch.
    """
    own = getattr(optimizer.zero_grad, "__func__", None)
    return own is not torch.optim.Optimizer.zero_grad


def check_can_unscale(params: list[torch.nn.Parameter]) -> None:
    """Raises ValueError if a weight's gradients would vanish when they are divided again."""
    half = [p for p in params if p.dtype == torch.float16]
    if half:
        raise ValueError(
            f"precision='fp16' keeps weights in float32 and computes in float16; {len(half)} "
            f"weights are in float16, the first of shape {tuple(half[0].shape)}. Give the model "
            f"as model.float()."
        )
