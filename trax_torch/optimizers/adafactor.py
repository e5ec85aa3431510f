"""The Adafactor optimizer."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from trax_torch._torch_private import foreach
from trax_torch.optimizers import _hyperparameters
from trax_torch.optimizers._clipping import clipping
from trax_torch.optimizers._foreach import BoundRule, Tensors
from trax_torch.optimizers.base import Optimizer


class Adafactor(Optimizer):
    """Adafactor: Adam's second moment in the memory of its row and column means.

    At step t = 1, 2, ... with d = 1 - (t + 1)^-decay_rate, a weight of two axes or more keeps
    r = d r + (1 - d) mean_columns(g^2);  c = d c + (1 - d) mean_rows(g^2);
    y = g sqrt(mean(r) / (r + epsilon1)) / sqrt(c + epsilon1),
    over its last two axes; any other, or each where not factored, keeps
    v = d v + (1 - d) g^2;  y = g / sqrt(v + epsilon1).
    Then, with RMS(x) = sqrt(mean(x^2)),
    y = y / max(1, RMS(y) / clipping_threshold);
    s = lr max(RMS(w), epsilon2) y with multiply_by_parameter_scale, else lr y;
    m = beta1 m + (1 - beta1) s with do_momentum, else s;
    w = (1 - weight_decay_rate) w - m.

    The decay is not scaled by the learning rate, and t is one step ahead of the paper's.

    Args:
      learning_rate: lr, where no schedule gives another: relative to each weight's RMS with
        multiply_by_parameter_scale, absolute without.
      factored: keeps row and column means; False keeps v for every weight.
      multiply_by_parameter_scale: scales steps by each weight's RMS.
      do_clipping: limits the RMS of y to clipping_threshold.
      do_momentum: averages the steps, in one more slot of each weight's size.
      momentum_in_bfloat16: stores that average in bfloat16.
      beta1: decay of the steps' average, in [0, 1).
      decay_rate: how fast the second moment's memory grows with t; not negative.
      clipping_threshold: positive; None clips nothing.
      weight_decay_rate: the share by which every weight shrinks at each step, in [0, 1).
      weight_decay_n_steps: the decay falls to 0 over so many steps: at step t it is
        weight_decay_rate max(0, 1 - t / n). 0 keeps it constant.
      epsilon1: keeps the second moment from 0; positive.
      epsilon2: the least scale of a weight; not negative.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled to it
        (Trax's Adafactor has no such argument).

    Raises:
      ValueError: if a number is out of its range, or if `beta1` or `momentum_in_bfloat16` asks for
        momentum that `do_momentum` does not (Trax drops both in silence).

    Source: Trax `optimizers/adafactor.py::Adafactor`; Shazeer and Stern 2018, arXiv:1804.04235.
    """

    def __init__(
        self,
        learning_rate: float = 0.05,
        factored: bool = True,
        multiply_by_parameter_scale: bool = True,
        do_clipping: bool = True,
        do_momentum: bool = False,
        momentum_in_bfloat16: bool = False,
        beta1: float = 0.0,
        decay_rate: float = 0.8,
        clipping_threshold: float | None = 1.0,
        weight_decay_rate: float = 1e-5,
        weight_decay_n_steps: int = 0,
        epsilon1: float = 1e-16,
        epsilon2: float = 1e-3,
        *,
        clip_grad_norm: float | None = None,
    ):
        super().__init__(
            learning_rate,
            clip_grad_norm,
            factored=factored,
            multiply_by_parameter_scale=multiply_by_parameter_scale,
            do_clipping=do_clipping,
            do_momentum=do_momentum,
            momentum_in_bfloat16=momentum_in_bfloat16,
            beta1=beta1,
            decay_rate=decay_rate,
            clipping_threshold=clipping_threshold,
            weight_decay_rate=weight_decay_rate,
            weight_decay_n_steps=weight_decay_n_steps,
            epsilon1=epsilon1,
            epsilon2=epsilon2,
        )
        _hyperparameters.check(
            self,
            beta1="[0, 1)",
            decay_rate="[0, inf)",
            weight_decay_rate="[0, 1)",
            weight_decay_n_steps="[0, inf)",
            epsilon1="(0, inf)",
            epsilon2="[0, inf)",
        )
        if clipping_threshold is not None:
            _hyperparameters.check(self, clipping_threshold="(0, inf)")
        if not do_momentum and (beta1 or momentum_in_bfloat16):
            raise ValueError(
                f"beta1={beta1} and momentum_in_bfloat16={momentum_in_bfloat16} mean nothing "
                f"without momentum. Add do_momentum=True, or leave them at their defaults."
            )

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer of these parameters, its slots 0."""
        return clipping(BoundAdafactor(params, **self.opt_params), self.clip_grad_norm)

    def pack_slots(self, slots: dict[str, Any]) -> Any:
        """Returns named slots as a list, which is Trax's form."""
        return list(slots.values())


class BoundAdafactor(BoundRule):
    """Adafactor of given parameters.

    Second moments are float32 or wider, whatever the parameter's type; momentum has that type, or
    bfloat16.
    """

    looks_across = True

    def make_slots(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Returns `step`, `v_row` and `v_col` or `v`, and `m` where there is momentum."""
        wide = torch.promote_types(p.dtype, torch.float32)
        slots: dict[str, Any] = {"step": 0}
        if group["factored"] and p.dim() >= 2:
            slots["v_row"] = p.new_zeros(p.shape[:-1], dtype=wide)
            slots["v_col"] = p.new_zeros(p.shape[:-2] + p.shape[-1:], dtype=wide)
        else:
            slots["v"] = torch.zeros_like(p, dtype=wide)
        if group["do_momentum"]:
            kept = torch.bfloat16 if group["momentum_in_bfloat16"] else p.dtype
            slots["m"] = torch.zeros_like(p, dtype=kept)
        return slots

    def update_(
        self,
        group: dict[str, Any],
        weights: Tensors,
        grads: Tensors,
        slots: dict[str, Tensors],
        step: int,
    ) -> None:
        """Takes the second moments, clips, scales, and moves the weights."""
        mixing = (step + 1.0) ** -group["decay_rate"]
        if "v" in slots:
            updates = _full_(grads, slots["v"], mixing, group["epsilon1"])
        else:
            updates = _factored_(grads, slots["v_row"], slots["v_col"], mixing, group["epsilon1"])
        scales = _scales(group, weights, updates)
        decay = _weight_decay_at(step, group["weight_decay_rate"], group["weight_decay_n_steps"])
        if decay:
            foreach.mul_(weights, 1 - decay)
        if "m" in slots:
            foreach.mul_(updates, scales)
            foreach.lerp_(slots["m"], updates, 1 - group["beta1"])
            foreach.sub_(weights, slots["m"])
        else:
            foreach.addcmul_(weights, updates, scales, -1)


def _full_(grads: Tensors, v: Tensors, mixing: float, epsilon: float) -> Tensors:
    """Averages the squares into `v`, and returns the gradients over its root."""
    foreach.mul_(v, 1 - mixing)
    foreach.addcmul_(v, grads, grads, mixing)
    updates = foreach.add(v, epsilon)
    foreach.rsqrt_(updates)
    foreach.mul_(updates, grads)
    result: Tensors = updates
    return result


def _factored_(
    grads: Tensors,
    v_row: Tensors,
    v_col: Tensors,
    mixing: float,
    epsilon: float,
) -> Tensors:
    """Averages the squares' means, and returns the gradients over their outer product's root."""
    squares = foreach.mul(grads, grads)
    foreach.lerp_(v_row, [s.mean(dim=-1) for s in squares], mixing)
    foreach.lerp_(v_col, [s.mean(dim=-2) for s in squares], mixing)
    del squares
    rows = foreach.add(v_row, epsilon)
    foreach.reciprocal_(rows)
    foreach.mul_(rows, [v.mean(dim=-1, keepdim=True) for v in v_row])
    foreach.sqrt_(rows)
    columns = foreach.add(v_col, epsilon)
    foreach.rsqrt_(columns)
    updates = foreach.mul(grads, [r.unsqueeze(-1) for r in rows])
    foreach.mul_(updates, [c.unsqueeze(-2) for c in columns])
    result: Tensors = updates
    return result


def _scales(group: dict[str, Any], weights: Tensors, updates: Tensors) -> Tensors:
    """Returns what each update is multiplied by, of no axes: the rate, relative and clipped."""
    scales: Tensors
    if group["multiply_by_parameter_scale"]:
        scales = _rms(weights)
        foreach.clamp_min_(scales, group["epsilon2"])
        foreach.mul_(scales, group["lr"])
    else:
        scales = [weights[0].new_full((), group["lr"])] * len(weights)
    if group["do_clipping"] and group["clipping_threshold"] is not None:
        excess = _rms(updates)
        foreach.div_(excess, group["clipping_threshold"])
        foreach.clamp_min_(excess, 1.0)
        scales = foreach.div(scales, excess)
    return scales


def _rms(tensors: Tensors) -> Tensors:
    norms = foreach.norm(tensors)
    result: Tensors = foreach.div(norms, [math.sqrt(t.numel()) for t in tensors])
    return result


def _weight_decay_at(step: int, rate: float, n_steps: float) -> float:
    return rate * max(0.0, n_steps - step) / n_steps if n_steps >= 1 else rate
