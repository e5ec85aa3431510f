"""Optimizers as recipes: a rule and its numbers, bound to a model's parameters later.

This room knows how gradients become updates; it never computes a gradient.
"""

import copy
import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch

from trax_torch import _distributed
from trax_torch.optimizers import _clipping, _functional, _hyperparameters
from trax_torch.optimizers._clipping import clipping, loss_and_clip_
from trax_torch.optimizers._update_rule import BoundByUpdate


class Optimizer:
    """A recipe: `bind(params)` makes a `torch.optim.Optimizer` of it.

    One recipe can serve several models. A rule of one's own is written in either of two ways:

    - as Trax's are: `init(weights)` gives the slots of one weight, `update(step, grads, weights,
      slots, opt_params)` its new value and slots. Both are functions of tensors that change
      nothing. Slots are tensors or numbers, in tuples, lists and dicts, or None.
    - as PyTorch's: `bind(params)` returns a `torch.optim.Optimizer`, with kernels for many weights
      at once.

    Either has the other: `init`, `update`, `tree_init` and `tree_update` of a recipe that
    overrides `bind` take its step, on copies. They take arrays to give arrays, and tensors.

    Args:
      learning_rate: the rate where no schedule gives another.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled down to
        it; None never does.
      **init_opt_params: the rule's other numbers.

    Attributes:
      opt_params: the rule's numbers by name, the learning rate among them.
      slots: those that `tree_init` or `tree_update` made last; None before.

    Raises:
      ValueError: if `clip_grad_norm` is not positive, or the learning rate negative or not finite.

    Example:
      >>> class SignSGD(Optimizer):
      ...     def init(self, weights):
      ...         return None
      ...     def update(self, step, grads, weights, slots, opt_params):
      ...         return weights - opt_params['learning_rate'] * torch.sign(grads), None
      >>> w = torch.nn.Parameter(torch.tensor([1., 2.]))
      >>> (3 * w).sum().backward()
      >>> SignSGD(0.5).bind([w]).step()
      >>> w.tolist()
      [0.5, 1.5]

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
        self.opt_params: dict[str, Any] = {"learning_rate": learning_rate, **init_opt_params}
        self.slots: Any = None
        _hyperparameters.check(self, learning_rate="[0, inf)")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if {"init", "update"} & vars(cls).keys() and "bind" not in vars(cls):
            if cls.bind is not Optimizer.bind:
                cls.bind_kernels = cls.bind  # type: ignore[method-assign]  # for super().update
            cls.bind = Optimizer.bind  # type: ignore[method-assign]  # its parent's has another rule

    def bind(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns an optimizer of these parameters that follows the rule, its slots fresh."""
        kind = type(self)
        is_written = kind.update is not Optimizer.update and kind.init is not Optimizer.init
        if not is_written and kind.bind_kernels is Optimizer.bind_kernels:
            raise TypeError(
                f"{kind.__name__} has no rule; a recipe must override bind(params), or "
                f"init(weights) and update(step, grads, weights, slots, opt_params)."
            )
        return clipping(BoundByUpdate(self, params), self.clip_grad_norm)

    def bind_kernels(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns what `bind` of the class returns whose `init` and `update` a subclass calls."""
        return self.bind(params)

    def init(self, weights: Any) -> Any:
        """Returns the slots of one weight as they are before the first step."""
        return _functional.init(self, weights)

    def update(self, step: int, grads: Any, weights: Any, slots: Any, opt_params: Any) -> Any:
        """Returns one weight's new value and its new slots, and changes nothing.

        Args:
          step: the number of this step, from 1.
          grads: the loss's gradient by the weight.
          weights: the weight.
          slots: what `init` gave, or the last step.
          opt_params: the rule's numbers by name.
        """
        return _functional.update(self, step, grads, weights, slots, opt_params)

    def pack_slots(self, slots: dict[str, Any]) -> Any:
        """Returns named slots in Trax's form: None, the only one, or a tuple."""
        packed = tuple(slots.values())
        return packed if len(packed) > 1 else packed[0] if packed else None

    def tree_init(self, weight_tree: Any) -> tuple[Any, dict[str, Any]]:
        """Returns `(slots, opt_params)` for all weights of a model, whose slots are a tuple."""
        self.slots = tuple(self.init(w) for w in _functional.leaves(weight_tree))
        return self.slots, self.opt_params

    def tree_update(
        self,
        step: int,
        grad_tree: Any,
        weight_tree: Any,
        slots: Any,
        opt_params: Any,
        store_slots: bool = True,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Takes a step of all weights of a model, and changes none of them in place.

        Args:
          step: its number, from 1.
          grad_tree: the gradients, in a tree like the weights'.
          weight_tree: the weights, such as `layer.weights`.
          slots: a tuple, a weight's slots each.
          opt_params: the rule's numbers by name.
          store_slots: keeps the new slots as `slots` of this recipe, too.

        Returns:
          `(weights, slots, stats)`: stats holds `gradients_l2` before clipping, and `weights_l2`
          before the update.

        Raises:
          ValueError: if there are not as many gradients, weights and slots.
        """
        new_weights, new_slots, stats = _functional.tree_update(
            self, step, grad_tree, weight_tree, slots, opt_params
        )
        if store_slots:
            self.slots = new_slots
        return new_weights, new_slots, stats

    def __repr__(self) -> str:
        numbers = {**self.opt_params, "clip_grad_norm": self.clip_grad_norm}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})"

    def __eq__(self, other: object) -> bool:
        def settings(recipe: object) -> dict[str, Any]:
            return {k: v for k, v in vars(recipe).items() if k != "slots"}

        return type(self) is type(other) and settings(self) == settings(other)

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
        if self.clip_grad_norm is None:
            return torch.optim.SGD(params, lr=self.learning_rate, fused=fused)
        return clipping(ClippedSGD(params, lr=self.learning_rate, fused=fused), self.clip_grad_norm)


class ClippedSGD(torch.optim.SGD):
    """torch's SGD, which clips first."""

    def step(self, closure: Any = None) -> Any:
        """Takes one step."""
        loss = loss_and_clip_(self, closure)
        super().step()
        return loss


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
    params, all_params = list(params), list(all_params)
    if not params and not isinstance(optimizer, torch.optim.Optimizer):  # whose weights may thaw
        raise ValueError(
            f"There is nothing to train: of the model's {len(all_params)} parameters none requires "
            f"gradients. Thaw some: model.requires_grad_(True)."
        )
    if inspect.isclass(optimizer) and issubclass(optimizer, Optimizer):
        optimizer = optimizer()
    if isinstance(optimizer, Optimizer):
        unclipped = copy.copy(optimizer)  # the trainer clips, and has the norm already
        unclipped.clip_grad_norm = None
        return unclipped.bind(params)
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
        make: Any = optimizer
        result: torch.optim.Optimizer = make(params)
        return result
    raise TypeError(
        f"An optimizer is a recipe such as optimizers.Adam(0.001), a torch.optim.Optimizer made "
        f"of the model's parameters, or a torch.optim class; got {optimizer!r}."
    )


def is_recipe(optimizer: Any) -> bool:
    """Tells whether `optimizer` is a recipe, or its class."""
    return isinstance(optimizer, Optimizer) or (
        inspect.isclass(optimizer) and issubclass(optimizer, Optimizer)
    )


def clip_norm_of(optimizer: Any) -> float | None:
    """Returns the global norm to which a recipe, or what it was bound to, clips, or None."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return _clipping.limit_of(optimizer)
    if is_recipe(optimizer) and inspect.isclass(optimizer):
        optimizer = optimizer()
    return optimizer.clip_grad_norm if isinstance(optimizer, Optimizer) else None


def advice_of(optimizer: Any, clip_grad_norm: float | None = None) -> str:
    """Returns what may help an optimizer, as `Trainer` takes it, against steps not finite."""
    limit = clip_norm_of(optimizer) if clip_grad_norm is None else clip_grad_norm
    if limit is not None:
        return f"or lower the learning rate, or clip_grad_norm={limit}"
    if is_recipe(optimizer):
        return "lower the learning rate, or clip: clip_grad_norm=1.0"
    return "lower the learning rate, or clip: Loop(clip_grad_norm=1.0)"


def can_fuse(params: list[Any]) -> bool:
    """Tells whether torch's fused kernels take these parameters."""
    params = [p for g in params for p in (g["params"] if isinstance(g, dict) else (g,))]
    if len({_distributed.is_shard(p) for p in params}) > 1:  # they take one kind or the other
        return False
    return bool(params) and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params
    )


def is_sharded(params: Iterable[Any]) -> bool:
    """Tells whether ranks hold parts of parameters, which torch's fused SGD does not take."""
    return any(map(_distributed.is_shard, params))


def l2_norm(tree: Any) -> Any:
    """Returns the L2 norm of all numbers in a tree of tensors or arrays, as if in one vector.

    Example:
      >>> float(l2_norm((torch.tensor([3.]), (torch.tensor(4.), ()))))
      5.0

    Source: Trax `optimizers/base.py::l2_norm`.
    """
    return _functional.l2_norm(_functional.leaves(tree))


def clip_grads(grad_tree: Any, max_norm: float) -> Any:
    """Returns a tree of gradients, scaled down to a global norm where theirs reaches it.

    Args:
      grad_tree: tensors or arrays.
      max_norm: the norm.

    Source: Trax `optimizers/base.py::clip_grads`.
    """
    return _functional.clipped(grad_tree, max_norm, l2_norm(grad_tree))
