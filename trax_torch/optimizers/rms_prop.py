"""The RMSProp optimizer."""

from collections.abc import Iterable
from typing import Any

import torch

from trax_torch._torch_private import foreach
from trax_torch.optimizers import _hyperparameters
from trax_torch.optimizers._clipping import clipping
from trax_torch.optimizers._foreach import BoundRule, Tensors
from trax_torch.optimizers.base import Optimizer


class RMSProp(Optimizer):
    """RMSProp: gradients over the root of their squares' moving average.

    a = gamma a + (1 - gamma) g^2, from a = 1;
    w = w - lr g / (sqrt(a) + eps).

    Because the average starts at 1, small gradients make small first steps.

    Args:
      learning_rate: lr, where no schedule gives another.
      gamma: decay of the squares' average at each step, in [0, 1).
      eps: keeps the divisor from 0; positive.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled to it.

    Raises:
      ValueError: if a number is out of its range.

    Source: Trax `optimizers/rms_prop.py::RMSProp`; Tieleman and Hinton 2012, "Neural Networks for
      Machine Learning", lecture 6.5.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        gamma: float = 0.9,
        eps: float = 1e-8,
        clip_grad_norm: float | None = None,
    ):
        super().__init__(learning_rate, clip_grad_norm, gamma=gamma, eps=eps)
        _hyperparameters.check(self, gamma="[0, 1)", eps="(0, inf)")

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer of these parameters, its averages at 1."""
        return clipping(BoundRMSProp(params, **self.opt_params), self.clip_grad_norm)


class BoundRMSProp(BoundRule):
    """RMSProp of given parameters; their type is the averages' too."""

    def make_slots(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Returns the average of squares, 1 everywhere."""
        return {"avg_sq_grad": torch.ones_like(p)}

    def update_(
        self,
        group: dict[str, Any],
        weights: Tensors,
        grads: Tensors,
        slots: dict[str, Tensors],
        step: int,
    ) -> None:
        """Averages the squares, then moves the weights."""
        averages = slots["avg_sq_grad"]
        foreach.mul_(averages, group["gamma"])
        foreach.addcmul_(averages, grads, grads, 1 - group["gamma"])
        roots = foreach.sqrt(averages)
        foreach.add_(roots, group["eps"])
        foreach.addcdiv_(weights, grads, roots, -group["lr"])
