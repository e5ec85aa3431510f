"""The Adam optimizer."""

from collections.abc import Iterable
from typing import Any

import torch

from trax_torch._torch_private import verdict_of
from trax_torch.optimizers import _hyperparameters
from trax_torch.optimizers._clipping import clipping, loss_and_clip_
from trax_torch.optimizers._foreach import shrink_
from trax_torch.optimizers.base import Optimizer, can_fuse


class Adam(Optimizer):
    """Adam, as Trax computes it.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    w = (1 - weight_decay_rate) w - lr mhat / (sqrt(vhat) + eps),
    with mhat = m / (1 - b1^(t + 1)) and vhat = v / (1 - b2^(t + 1)) at step t = 1, 2, ...

    The decay is not scaled by the learning rate, and the bias correction is one step ahead of the
    paper's: the first step divides by 1 - b^2.

    Args:
      learning_rate: lr, where no schedule gives another.
      weight_decay_rate: the share by which every weight shrinks at each step.
      b1: decay of the first moment's average.
      b2: decay of the second moment's average.
      eps: keeps the divisor from 0.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled to it.

    Raises:
      ValueError: if a number is out of its range.

    Source: Trax `optimizers/adam.py::Adam`; Kingma and Ba 2014, arXiv:1412.6980.
    """

    def __init__(
        self,
        learning_rate: float = 0.0001,
        weight_decay_rate: float = 1e-5,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-5,
        clip_grad_norm: float | None = None,
    ):
        super().__init__(
            learning_rate,
            clip_grad_norm,
            weight_decay_rate=weight_decay_rate,
            b1=b1,
            b2=b2,
            eps=eps,
        )
        _hyperparameters.check(
            self, weight_decay_rate="[0, 1)", b1="[0, 1)", b2="[0, 1)", eps="[0, inf)"
        )

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer on fused kernels where there are any."""
        return clipping(BoundAdam(list(params), **self.opt_params), self.clip_grad_norm)


class BoundAdam(torch.optim.AdamW):
    """torch's AdamW, brought to Trax's rule: counts from 1, and decays whatever the rate.

    Args:
      params: the parameters.
      learning_rate, weight_decay_rate, b1, b2, eps: as `Adam`'s.
    """

    def __init__(
        self,
        params: list[Any],
        learning_rate: float,
        weight_decay_rate: float,
        b1: float,
        b2: float,
        eps: float,
    ):
        self._weight_decay_rate = weight_decay_rate  # for groups, which are added by what follows
        fused = can_fuse(params)
        super().__init__(params, lr=learning_rate, betas=(b1, b2), eps=eps, fused=fused)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and allocates their slots."""
        param_group.setdefault("weight_decay_rate", self._weight_decay_rate)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            device = p.device if group["fused"] else "cpu"
            self.state[p] = {
                "step": torch.tensor(1.0, dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }

    def step(self, closure: Any = None) -> Any:
        """Takes one step."""
        loss = loss_and_clip_(self, closure)  # before the decay, which the loss must not see
        for group in self.param_groups:
            rate, decay = float(group["lr"]), group["weight_decay_rate"]
            group["weight_decay"] = decay / rate if rate else 0.0
            if not rate:  # AdamW decays by the product of the two, which is 0 here
                shrink_(group["params"], decay, verdict_of(self))
        super().step()
        return loss
