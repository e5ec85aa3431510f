"""Optimizers as recipes: a rule and its numbers, bound to a model's parameters later.

This room knows how gradients become updates; it never computes a gradient.
"""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch

from trax_torch import _distributed
from trax_torch.optimizers import _hyperparameters


class Optimizer:
    """A recipe: `bind(params)` makes a `torch.optim.Optimizer` of it.

    A recipe keeps no state, so one can serve several models. Subclasses override `bind` alone.

    Args:
      learning_rate: the rate where no schedule gives another.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled down to
        it; None never does.
      **init_opt_params: the rule's other numbers.

    Raises:
      ValueError: if `clip_grad_norm` is not positive, or the learning rate negative or not finite.

    Source: Trax `optimizers/base.py::Optimizer`.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        clip_grad_norm: float | None = None,
        **init_opt_params: Any,
    ):
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm is a positive norm or None; got {clip_grad_norm}.")
        self.learning_rate = learning_rate
        self.clip_grad_norm = clip_grad_norm
        self.opt_params = {"learning_rate": learning_rate, **init_opt_params}
        _hyperparameters.check(self, learning_rate="[0, inf)")

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer of these parameters that follows the rule, its slots fresh."""
        raise TypeError(f"{type(self).__name__} has no rule; a recipe must override bind(params).")

    def __repr__(self) -> str:
        numbers = {**self.opt_params, "clip_grad_norm": self.clip_grad_norm}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class SGD(Optimizer):
    """Stochastic gradient descent: w -= lr g.

    Source: Trax `optimizers/base.py::SGD`.
    """

    def __init__(self, learning_rate: float = 0.01, clip_grad_norm: float | None = None):
        super().__init__(learning_rate, clip_grad_norm)

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns `torch.optim.SGD` on fused kernels where there are any."""
        params = list(params)
        fused = can_fuse(params) and not is_sharded(params)
        return torch.optim.SGD(params, lr=self.learning_rate, fused=fused)


def bind(
    optimizer: Any,
    params: Iterable[torch.nn.Parameter],
    all_params: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Returns the `torch.optim.Optimizer` that `optimizer` stands for.

    Args:
      optimizer: a recipe such as `Adam(0.01)`, or its class; a `torch.optim` class or a
        `functools.partial` of one; or an instance, made for parameters of this model.
      params: the model's parameters that are trained.
      all_params: those that are not trained too, which an instance may hold.

    Raises:
      TypeError: if it is none of these, or asks for a closure, as LBFGS does.
      ValueError: if an instance holds a parameter that the model has not.
    """
    params = list(params)
    if inspect.isclass(optimizer) and issubclass(optimizer, Optimizer):
        optimizer = optimizer()
    if isinstance(optimizer, Optimizer):
        return optimizer.bind(params)
    maker = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    if isinstance(maker, torch.optim.LBFGS) or maker is torch.optim.LBFGS:
        raise TypeError(
            "LBFGS evaluates the loss several times a step, and a training step here does so once. "
            "Take another optimizer, such as optimizers.Adam."
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        known = {id(p) for p in (*params, *all_params)}
        foreign = [
            p for group in optimizer.param_groups for p in group["params"] if id(p) not in known
        ]
        if foreign:
            raise ValueError(
                f"The optimizer holds {len(foreign)} parameters that are not the model's, the "
                f"first of shape {tuple(foreign[0].shape)}. Make it of model.parameters(), after "
                f"the model got its weights, or give a recipe such as optimizers.Adam(0.001)."
            )
        return optimizer
    if inspect.isclass(maker) and issubclass(maker, torch.optim.Optimizer):
        return optimizer(params)
    raise TypeError(
        f"An optimizer is a recipe such as optimizers.Adam(0.001), a torch.optim.Optimizer made "
        f"of the model's parameters, or a torch.optim class; got {optimizer!r}."
    )


def clip_norm_of(optimizer: Any) -> float | None:
    """Returns the global norm that a recipe clips gradients to, or None."""
    return optimizer.clip_grad_norm if isinstance(optimizer, Optimizer) else None


def can_fuse(params: list[Any]) -> bool:
    """Tells whether torch's fused kernels take these parameters."""
    params = [p for g in params for p in (g["params"] if isinstance(g, dict) else (g,))]
    return bool(params) and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params
    )


def is_sharded(params: Iterable[Any]) -> bool:
    """Tells whether ranks hold parts of parameters, which torch's fused SGD does not take."""
    return any(map(_distributed.is_shard, params))
