"""Recipes as functions of weights and slots, which change nothing, as Trax has them.

For trying out, for tests, and for loops of one's own: each call binds the recipe anew. Training
steps many weights at once, and in place.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from trax_torch import _nest


def leaves(tree: Any) -> list[Any]:
    """Returns the tensors or arrays in a tree of weights; marks of shared ones are none."""
    return list(_nest.leaves(tree))


def init(recipe: Any, weights: Any) -> Any:
    """Returns the slots of one weight, packed as in Trax, of a recipe that overrides `bind`."""
    param, bound = _bound(recipe, weights, recipe.opt_params)
    return _like(weights, recipe.pack_slots(_named_slots(bound.state[param])))


def update(
    recipe: Any, step: int, grads: Any, weights: Any, slots: Any, opt_params: Any
) -> tuple[Any, Any]:
    """Returns one weight after a step, and its slots, of a recipe that overrides `bind`."""
    param, bound = _bound(recipe, weights, opt_params)
    state = bound.state[param]
    named, given = _named_slots(state), [x for x in leaves(slots) if x is not None]
    if len(given) != len(named):
        raise ValueError(
            f"{type(recipe).__name__} keeps the slots {', '.join(named) or 'none'} for a weight of "
            f"shape {tuple(param.shape)}; got {len(given)}. Give what init or the last update gave."
        )
    for name, slot in zip(named, given, strict=True):
        state[name].copy_(torch.as_tensor(slot))
    if isinstance(state.get("step"), torch.Tensor):
        state["step"].fill_(step)
    elif "step" in state:
        state["step"] = step - 1  # it counts those taken
    param.grad = torch.as_tensor(grads).detach().to(param).clone()
    bound.step()
    new_slots = recipe.pack_slots(_named_slots(bound.state[param]))
    return _like(weights, param.detach()), _like(weights, new_slots)


def tree_update(
    recipe: Any, step: int, grad_tree: Any, weight_tree: Any, slots: Sequence[Any], opt_params: Any
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Returns `(weights, slots, stats)` as `Optimizer.tree_update` says."""
    grads, weights = leaves(grad_tree), leaves(weight_tree)
    if not len(grads) == len(weights) == len(slots):
        raise ValueError(
            f"A step needs a gradient and slots for each weight; got {len(grads)} gradients, "
            f"{len(weights)} weights and slots for {len(slots)}. Give trees that are alike."
        )
    stats = {"gradients_l2": l2_norm(grads), "weights_l2": l2_norm(weights)}
    if recipe.clip_grad_norm is not None:
        grads = clipped(grads, recipe.clip_grad_norm, stats["gradients_l2"])
    pairs = [
        recipe.update(step, g, w, slot, opt_params)
        for g, w, slot in zip(grads, weights, slots, strict=True)
    ]
    new_weights = _nest.rebuild(weight_tree, [w for w, _ in pairs])
    return new_weights, tuple(slot for _, slot in pairs), stats


def l2_norm(tensors: Sequence[Any]) -> Any:
    """Returns the norm of all tensors together; arrays give a number of numpy's."""
    squares = [torch.as_tensor(x).detach().double().square().sum() for x in tensors]
    norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
    return _like(tensors[0] if tensors else norm, norm.to(torch.get_default_dtype()))


def clipped(tree: Any, max_norm: float, norm: Any) -> Any:
    """Returns a tree scaled down to `max_norm` if its norm reaches that."""
    if not norm >= max_norm:
        return tree
    return _nest.map_leaves(lambda g: g * (max_norm / float(norm)), tree)


def _bound(recipe: Any, weights: Any, opt_params: Any) -> tuple[Any, torch.optim.Optimizer]:
    """Returns a copy of a weight, and a recipe with these numbers bound to it."""
    twin = copy.copy(recipe)
    twin.opt_params = {
        name: x.item() if hasattr(x, "item") else x
        for name, x in {**recipe.opt_params, **opt_params}.items()
    }
    twin.learning_rate = twin.opt_params["learning_rate"]
    twin.clip_grad_norm = None  # that is a matter of all gradients together
    param = torch.nn.Parameter(torch.as_tensor(weights).detach().clone())
    return param, twin.bind_kernels([param])


def _named_slots(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and k != "step"}


def _like(given: Any, nest: Any) -> Any:
    """Returns a nest of tensors, as arrays if an array was given."""
    return nest if isinstance(given, torch.Tensor) else _nest.to_arrays(nest)
