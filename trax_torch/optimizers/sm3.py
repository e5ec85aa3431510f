"""The SM3 optimizer."""

import enum
from collections.abc import Iterable
from typing import Any

import torch

from trax_torch._torch_private import foreach
from trax_torch.optimizers import _hyperparameters
from trax_torch.optimizers._clipping import clipping
from trax_torch.optimizers._foreach import BoundRule, Tensors
from trax_torch.optimizers.base import Optimizer


class MomentumType(enum.IntEnum):
    """How SM3 remembers earlier steps."""

    EMA = 1
    HEAVY_BALL = 2
    NESTEROV = 3


class SM3(Optimizer):
    """SM3: AdaGrad in the memory of one number per row, column, and so on.

    A weight keeps a vector a_i for each of its axes, from 0. With the position's entries of them,
    b = second_moment_averaging, and p = momentum,
    s = min_i a_i + g^2 if b is 1, else b min_i a_i + (1 - b) g^2;
    a_i = max of s over all axes but i;
    u = g / (sqrt(s) + 1e-16) + weight_decay w;
    m = p m + (1 - p) u and w -= lr m for EMA; m = p m + u and w -= lr m for HEAVY_BALL;
    m = p m + u and w -= lr (p m + u) for NESTEROV; w -= lr u if p is 0.

    Where b is not 1, g / sqrt(s) gets the norm that it has with b = 1, weight by weight, for which
    a second set of vectors is kept. A weight of no axes keeps one number.

    Args:
      learning_rate: lr, where no schedule gives another.
      momentum: p, in [0, 1); 0 keeps no slot for it.
      second_moment_averaging: b, in [0, 1]; 1 adds up from the beginning, as AdaGrad does.
      weight_decay: not negative; the decay is scaled by the learning rate, and averaged.
      momentum_type: a `MomentumType` or its number.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled to it
        (Trax's SM3 has no such argument).

    Raises:
      ValueError: if a number is out of its range, or `momentum_type` is none of the three.

    Source: Trax `optimizers/sm3.py::SM3`, which fails on a weight of no axes; Anil et al. 2019,
      arXiv:1901.11150.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        second_moment_averaging: float = 1.0,
        weight_decay: float = 0.0,
        momentum_type: MomentumType | int = MomentumType.EMA,
        *,
        clip_grad_norm: float | None = None,
    ):
        if momentum_type not in list(MomentumType):
            raise ValueError(
                f"momentum_type is one of {', '.join(f'{t.name} = {t}' for t in MomentumType)}; "
                f"got {momentum_type!r}. The default is EMA."
            )
        super().__init__(
            learning_rate,
            clip_grad_norm,
            momentum=momentum,
            second_moment_averaging=second_moment_averaging,
            weight_decay=weight_decay,
            momentum_type=int(momentum_type),
        )
        _hyperparameters.check(
            self,
            momentum="[0, 1)",
            second_moment_averaging="[0, 1]",
            weight_decay="[0, inf)",
        )

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer of these parameters, its slots 0."""
        return clipping(BoundSM3(params, **self.opt_params), self.clip_grad_norm)

    def pack_slots(self, slots: dict[str, Any]) -> Any:
        """Returns named slots in Trax's form: the momentum or [], then two lists of vectors."""
        vectors = ([x for k, x in slots.items() if k.startswith(v)] for v in ("v1_", "v2_"))
        return (slots.get("m", []), *vectors)


class BoundSM3(BoundRule):
    """SM3 of given parameters; their type is the slots' too."""

    looks_across = True

    def make_slots(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Returns `v1_i`, `v2_i` where averages are grafted, and `m` where there is momentum."""
        slots = {}
        if group["momentum"] > 0:
            slots["m"] = torch.zeros_like(p)
        for kind in ("v1",) if group["second_moment_averaging"] == 1 else ("v1", "v2"):
            for i, n in enumerate(p.shape):
                slots[f"{kind}_{i}"] = p.new_zeros(n)
            if not p.dim():
                slots[f"{kind}_0"] = p.new_zeros(())
        return slots

    def update_(
        self,
        group: dict[str, Any],
        weights: Tensors,
        grads: Tensors,
        slots: dict[str, Tensors],
        step: int,
    ) -> None:
        """Takes the second moments, grafts, adds decay and momentum, and moves the weights."""
        updates = _preconditioned_(grads, slots, "v1", group["second_moment_averaging"])
        if "v2_0" in slots:
            _graft_(updates, _preconditioned_(grads, slots, "v2", 1.0))
        if group["weight_decay"]:
            foreach.add_(updates, weights, alpha=group["weight_decay"])
        if "m" in slots:
            updates = _remember_(slots["m"], updates, group["momentum"], group["momentum_type"])
        foreach.add_(weights, updates, alpha=-group["lr"])


def _preconditioned_(
    grads: Tensors, slots: dict[str, Tensors], kind: str, averaging: float
) -> Tensors:
    """Renews the vectors of a kind, and returns the gradients over the second moments' root."""
    vectors = [tensors for name, tensors in slots.items() if name.startswith(kind)]
    rank = len(vectors)
    moments = vectors[0] if rank == 1 else _least(vectors)
    if averaging != 1:
        foreach.mul_(moments, averaging)
    foreach.addcmul_(moments, grads, grads, 1.0 if averaging == 1 else 1 - averaging)
    if rank > 1:
        for axis, tensors in enumerate(vectors):
            others = [i for i in range(rank) if i != axis]
            for vector, moment in zip(tensors, moments, strict=True):  # no foreach op has axes
                torch.amax(moment, dim=others, out=vector)
        foreach.sqrt_(moments)
    roots = moments if rank > 1 else foreach.sqrt(moments)
    foreach.add_(roots, 1e-16)  # a moment of 0 has a gradient of 0, and so a step of 0
    result: Tensors = foreach.div(grads, roots)
    return result


def _least(vectors: list[Tensors]) -> Tensors:
    """Returns for each weight the least of its vectors' entries at each position."""
    rank = len(vectors)
    spread = [
        [v.view((1,) * axis + (-1,) + (1,) * (rank - axis - 1)) for v in tensors]
        for axis, tensors in enumerate(vectors)
    ]
    least: Tensors = spread[0]
    for others in spread[1:]:
        least = foreach.minimum(least, others)
    return least


def _graft_(updates: Tensors, models: Tensors) -> None:
    """Gives each update the norm of its model."""
    norms = foreach.add(foreach.norm(updates), 1e-16)
    foreach.mul_(updates, foreach.div(foreach.norm(models), norms))


def _remember_(m: Tensors, updates: Tensors, momentum: float, kind: int) -> Tensors:
    """Adds the updates to the memory, and returns what to move by."""
    if kind == MomentumType.EMA:
        foreach.lerp_(m, updates, 1 - momentum)
        return m
    foreach.mul_(m, momentum)
    foreach.add_(m, updates)
    if kind == MomentumType.HEAVY_BALL:
        return m
    result: Tensors = foreach.add(updates, m, alpha=momentum)
    return result
