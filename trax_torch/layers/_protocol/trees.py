"""Weights and state as nested tuples in Trax's order, and the tensors behind them.

`()` stands for none. Where a layer occurs again, a marker stands for its tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import nn

from trax_torch import _distributed, _nest, _torch_private

EMPTY_WEIGHTS = ()
EMPTY_STATE = ()
GET_WEIGHTS_FROM_CACHE: dict[str, tuple[()]] = {"__marker_for_cached_weights_": ()}
GET_STATE_FROM_CACHE: dict[str, tuple[()]] = {"__marker_for_cached_state_": ()}

MARKERS = {"weights": GET_WEIGHTS_FROM_CACHE, "state": GET_STATE_FROM_CACHE}


def is_marker(tree: Any) -> bool:
    """Tells whether a tree stands for the tensors of a layer that occurred before."""
    return isinstance(tree, dict) and any(tree.keys() == m.keys() for m in MARKERS.values())


def flatten_weights_and_state(weights: Any, state: Any) -> tuple[list[Any], list[Any]]:
    """Returns the flat lists of tensors that Trax stores, without empty and repeated entries."""

    def flat(tree: Any) -> list[Any]:
        if is_marker(tree):
            return []
        if isinstance(tree, dict):
            tree = tuple(tree.values())
        if isinstance(tree, (tuple, list)):
            return [leaf for item in tree for leaf in flat(item)]
        return [tree]

    return flat(weights), flat(state)


def unflatten_weights_and_state(
    flat_weights: Any, flat_state: Any, weights_and_state_signature: Any, weights_only: bool = False
) -> tuple[Any, Any]:
    """Returns trees shaped like the two signatures, filled with the items of two flat lists.

    Raises:
      ValueError: if a list does not have as many items as its tree has places.
    """

    def fill(signature: Any, items: Iterator[Any]) -> Any:
        if is_marker(signature):
            return signature
        if isinstance(signature, dict):
            return {key: fill(s, items) for key, s in signature.items()}
        if isinstance(signature, (tuple, list)):
            return tuple(fill(s, items) for s in signature)
        return next(items)

    results: list[Any] = []
    for flat, signature in zip(
        (flat_weights, flat_state), weights_and_state_signature, strict=True
    ):
        if weights_only and results:
            results.append(None)
            continue
        places = len(flatten_weights_and_state(signature, ())[0])
        if len(flat) != places:
            raise ValueError(
                f"The tree has {places} places, but {len(flat)} items came to fill it."
            )
        results.append(fill(signature, iter(flat)))
    return results[0], results[1]


def expect_tensors(layer: Any, tree: Any, names: tuple[str, ...], form: str) -> dict[str, Any]:
    """Returns the leaves of `tree` by name; ValueError if there are more or fewer than names."""
    values = list(_nest.leaves(tree))
    if len(values) != len(names):
        raise ValueError(
            f"{layer.name} wants {form}; the tree brings {len(values)} tensors. "
            f"Printing the layer's own tree shows the form."
        )
    return dict(zip(names, map(_nest.to_tensor, values), strict=True))


def tensors_of(module: nn.Module, kind: str) -> Mapping[str, torch.Tensor]:
    """Returns all parameters, or all buffers but the memory of predict mode, by name."""
    if kind == "weights":
        return dict(module.named_parameters())
    return {k: v for k, v in module.named_buffers() if "_memory." not in k}


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module that a dotted name leads to, and the attribute there."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def places_of(module: nn.Module, name: str) -> list[str]:
    """Returns every name below a module that leads to the tensor of a name: tied ones have more.

    Each layer counts once, under the first path to it.
    """
    owner, attribute = owner_of(module, name)
    wanted = getattr(owner, attribute)
    return [
        f"{path}.{key}" if path else key
        for path, m in module.named_modules()
        for store in (m._parameters, m._buffers)
        for key, tensor in store.items()
        if tensor is wanted
    ]


def check_fits(module: nn.Module, attribute: str, value: torch.Tensor) -> None:
    """Raises ValueError if a weight is there already in another shape, and none is being made."""
    present = getattr(module, attribute, None)
    making = getattr(module, "_pass", None) is not None
    if present is not None and not making and present.shape != value.shape:
        raise ValueError(
            f"{getattr(module, 'name', type(module).__name__)}.{attribute} has shape "
            f"{tuple(present.shape)}; got {tuple(value.shape)}. init() makes weights of new shapes."
        )


@torch.no_grad()
def adopt(module: nn.Module, attribute: str, value: torch.Tensor) -> None:
    """Copies `value` into a parameter, or makes the parameter of it where there is none."""
    present = module._parameters.get(attribute)
    value = _at_home(module, value.detach())
    if _takes(present, value):
        _distributed.fill_(present, value)
    else:
        own = value.clone(memory_format=torch.contiguous_format)
        parameter = nn.Parameter(own, requires_grad=own.is_floating_point())
        module.__dict__.pop(attribute, None)
        module.register_parameter(attribute, parameter)
    settle = getattr(module, "_settle", None)
    if callable(settle):
        settle()


@torch.no_grad()
def set_buffer(module: nn.Module, attribute: str, value: torch.Tensor) -> None:
    """Copies `value` into a buffer, or makes the buffer where there is none of its shape."""
    present = module._buffers.get(attribute)
    value = _at_home(module, value.detach())
    if _takes(present, value):
        present.copy_(value)
    else:
        module.__dict__.pop(attribute, None)
        module.register_buffer(attribute, value.clone())


def _takes(present: torch.Tensor | None, value: torch.Tensor) -> TypeGuard[torch.Tensor]:
    """Tells whether a value can be copied into what is there; into a shape alone, nothing can."""
    if present is None or present.shape != value.shape:
        return False
    return value.is_meta or not present.is_meta


def _at_home(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor for a layer where torch's default device says that it belongs.

    First weights are drawn on the CPU, for the same numbers everywhere, and go there; those that
    are assigned or read later stay where they are.
    """
    shape_pass: Any = getattr(module, "_pass", None)
    if shape_pass is None or tensor.device.type != "cpu":
        return tensor
    moved: torch.Tensor = tensor.to(shape_pass.device)
    return moved


def map_tree(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Returns a tree with `fn` applied to its tensors; markers of shared layers stay themselves."""
    if is_marker(tree):
        return tree
    if isinstance(tree, dict):
        return {key: map_tree(fn, item) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(map_tree(fn, item) for item in tree)
    return fn(tree)


def lasting_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields `(path, owner, name)` of the buffers that a state_dict holds: statistics, say.

    Args:
      module: is searched with all in it; a module that occurs again counts once.
    """
    for path, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and _torch_private.is_lasting(owner, name):
                yield f"{path}.{name}" if path else name, owner, name
