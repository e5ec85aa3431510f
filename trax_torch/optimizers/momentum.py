"""Gradient descent with momentum, Nesterov's or the classical."""

from collections.abc import Iterable
from typing import Any

import torch

from trax_torch._torch_private import verdict_of
from trax_torch.optimizers import _hyperparameters
from trax_torch.optimizers._clipping import clipping, loss_and_clip_
from trax_torch.optimizers._foreach import shrink_
from trax_torch.optimizers.base import Optimizer, can_fuse, is_sharded


class Momentum(Optimizer):
    """Gradient descent along a velocity.

    v = mass v + g, from v = 0;  u = mass v + g with nesterov, else v;
    w = (1 - weight_decay_rate) w - lr u.

    The decay is not scaled by the learning rate and does not enter the velocity.

    Args:
      learning_rate: lr, where no schedule gives another.
      mass: the share of the velocity that the next step keeps, in [0, 1).
      weight_decay_rate: the share by which every weight shrinks at each step, in [0, 1).
      nesterov: looks one step ahead along the velocity.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled to it
        (Trax's Momentum has no such argument).

    Raises:
      ValueError: if a number is out of its range.

    Source: Trax `optimizers/momentum.py::Momentum`; Sutskever et al. 2013, "On the importance of
      initialization and momentum in deep learning", as Bengio et al. write it in arXiv:1212.0901.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        mass: float = 0.9,
        weight_decay_rate: float = 1e-5,
        nesterov: bool = True,
        *,
        clip_grad_norm: float | None = None,
    ):
        super().__init__(
            learning_rate,
            clip_grad_norm,
            mass=mass,
            weight_decay_rate=weight_decay_rate,
            nesterov=nesterov,
        )
        _hyperparameters.check(self, mass="[0, 1)", weight_decay_rate="[0, 1)")

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer on fused kernels where there are any, its velocities 0."""
        return clipping(BoundMomentum(list(params), **self.opt_params), self.clip_grad_norm)


class BoundMomentum(torch.optim.SGD):
    """torch's SGD, brought to Trax's rule: decays whatever the rate.

    Args:
      params: the parameters.
      learning_rate, mass, weight_decay_rate, nesterov: as `Momentum`'s.
    """

    def __init__(
        self,
        params: list[Any],
        learning_rate: float,
        mass: float,
        weight_decay_rate: float,
        nesterov: bool,
    ):
        self._weight_decay_rate = weight_decay_rate  # for groups, which are added by what follows
        super().__init__(
            params,
            lr=learning_rate,
            momentum=mass,
            nesterov=nesterov and mass > 0,  # torch refuses it without mass, where it does nothing
            fused=can_fuse(params) and not is_sharded(params) and not _is_half(params),
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and allocates their velocities."""
        param_group.setdefault("weight_decay_rate", self._weight_decay_rate)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["momentum"]:
            for p in group["params"]:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}

    def step(self, closure: Any = None) -> Any:
        """Takes one step; parameters without a gradient stay, and so do their velocities."""
        loss = loss_and_clip_(self, closure)
        for group in self.param_groups:
            shrink_(group["params"], group["weight_decay_rate"], verdict_of(self))
        super().step()
        return loss


def _is_half(params: Iterable[Any]) -> bool:
    """Tells whether torch's fused SGD would lose velocities: on a CPU it does so in 16 bits."""
    params = [p for g in params for p in (g["params"] if isinstance(g, dict) else (g,))]
    return any(p.is_cpu and p.dtype.itemsize < 4 for p in params)
