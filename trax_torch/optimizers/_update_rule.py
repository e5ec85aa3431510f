"""Recipes whose rule is written as Trax's are, for one weight: bound to parameters."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from trax_torch import _nest
from trax_torch.optimizers._foreach import BoundRule, Member, Tensors


class BoundByUpdate(BoundRule):
    """Follows `recipe.init` and `recipe.update`, weight by weight.

    Args:
      recipe: has them, and `opt_params`.
      params: the parameters.
    """

    looks_across = True

    def __init__(self, recipe: Any, params: Iterable[torch.nn.Parameter]):
        self._recipe = recipe
        self._nests: dict[tuple[int, ...], Any] = {}  # how slots are packed, by a weight's shape
        super().__init__(params, **recipe.opt_params)

    def make_slots(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Returns the slots that `init` gives, by their ways in its nest, and `step`."""
        nest = _nest.to_tensors(self._recipe.init(p.detach()), p.device)
        self._nests[tuple(p.shape)] = nest
        named = _nest.named_leaves(nest)
        return {"step": 0} | {f"slot.{way}": x for way, x in named.items() if x is not None}

    def update_(
        self,
        group: dict[str, Any],
        weights: Tensors,
        grads: Tensors,
        slots: dict[str, Tensors],
        step: int,
    ) -> None:
        """Puts what `update` returns in the place of the weight and its slots."""
        (weight,), (grad,) = weights, grads
        numbers = {name: group[name] for name in self._recipe.opt_params if name in group}
        numbers["learning_rate"] = group["lr"]
        held = [tensors[0] for tensors in slots.values()]
        nest, old = self._nests[tuple(weight.shape)], iter(held)
        packed = _nest.map_leaves(lambda x: None if x is None else next(old), nest)

        result = self._recipe.update(step, grad, weight.detach(), packed, numbers)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"{type(self._recipe).__name__}.update returns (new weights, new slots); got "
                f"{type(result).__name__}. Return slots that are None where there are none."
            )
        new_weight, new_slots = _nest.to_tensors(result, weight.device)
        came = [x for x in _nest.leaves(new_slots) if x is not None]
        self._check([weight, *held], [new_weight, *came])
        weight.copy_(new_weight)
        for slot, new in zip(held, came, strict=True):
            slot.copy_(new)

    def _bundles(self, params: list[torch.Tensor]) -> Iterator[list[Member]]:
        for bundle in super()._bundles(params):
            yield from ([member] for member in bundle)

    def _check(self, held: list[torch.Tensor], came: list[Any]) -> None:
        """Raises ValueError if what came does not fit what it shall replace."""
        needed, shapes = [tuple(x.shape) for x in held], [tuple(x.shape) for x in came]
        if shapes != needed:
            raise ValueError(
                f"{type(self._recipe).__name__}.update returns a weight and slots of the shapes "
                f"that they had, {needed[0]} and {needed[1:]}; got {shapes[0]} and {shapes[1:]}. "
                f"Keep what is summed over an axis apart from what becomes of a weight."
            )
