"""Nested tuples, lists, mappings and dataclasses of tensors: map, flatten, rebuild, convert.

This room knows how data is packed, never what it means.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Nest = Any  # a leaf, or a tuple, list, mapping or dataclass of nests


def map_leaves(fn: Callable[[Any], Any], nest: Nest) -> Nest:
    """Returns `nest` with `fn` applied to each leaf.

    Tuples, lists, mappings and dataclasses keep their kind; dicts of a kind of their own are dicts.

    Example:
      >>> map_leaves(lambda x: x + 1, (1, [2, {'a': 3}], ()))
      (2, [3, {'a': 4}], ())
    """
    if isinstance(nest, dict):
        return {key: map_leaves(fn, value) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):  # a namedtuple
        return type(nest)(*(map_leaves(fn, item) for item in nest))
    if isinstance(nest, (tuple, list)):
        return type(nest)(map_leaves(fn, item) for item in nest)
    named = items_by_name(nest)
    if named is None:
        return fn(nest)
    return _with_items(nest, {name: map_leaves(fn, item) for name, item in named.items()})


def items_by_name(nest: Nest) -> dict[Any, Any] | None:
    """Returns what a mapping or a dataclass holds, by name; None for what is neither.

    What has a shape is one tensor to us, however it is made.

    Example:
      >>> items_by_name({'a': 3}), items_by_name(3)
      ({'a': 3}, None)
    """
    if isinstance(nest, dict):
        return nest
    if isinstance(nest, (torch.Tensor, np.ndarray)) or hasattr(nest, "shape"):
        return None
    if isinstance(nest, Mapping):
        return dict(nest.items())
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return {f.name: getattr(nest, f.name) for f in dataclasses.fields(nest)}
    return None


def _with_items(nest: Nest, items: dict[Any, Any]) -> Nest:
    """Returns a mapping or dataclass like `nest` that holds other items."""
    if dataclasses.is_dataclass(nest):
        result = copy.copy(nest)
        for name, item in items.items():
            object.__setattr__(result, name, item)  # a frozen one, too
        return result
    try:
        result = copy.copy(nest)  # with what it knows besides, as a tokenizer's output does
        for name, item in items.items():
            result[name] = item
    except TypeError:  # one that cannot be written to
        return items
    return result


def leaves(nest: Nest) -> Iterator[Any]:
    """Yields the leaves of `nest`, depth first, in order.

    Example:
      >>> list(leaves((1, [2, {'a': 3}], ())))
      [1, 2, 3]
    """
    if isinstance(nest, (tuple, list)):
        items: Any = nest
    else:
        named = items_by_name(nest)
        items = None if named is None else named.values()
    if items is None:
        yield nest
        return
    for item in items:
        yield from leaves(item)


def rebuild(nest: Nest, flat: list[Any]) -> Nest:
    """Returns a nest shaped like `nest` whose leaves are the items of `flat`, in order.

    Raises:
      ValueError: if `nest` has not as many leaves as `flat` has items.

    Example:
      >>> rebuild((0, [0]), ['a', 'b'])
      ('a', ['b'])
    """
    count = sum(1 for _ in leaves(nest))
    if count != len(flat):
        raise ValueError(f"The nest has {count} leaves, but {len(flat)} items came to fill it.")
    items = iter(flat)
    return map_leaves(lambda _: next(items), nest)


HERE: Any = object()  # where a tensor was, in a nest without them


def apart(nest: Nest) -> tuple[Nest, list[torch.Tensor]]:
    """Returns a nest without its tensors, and them in order.

    Example:
      >>> form, tensors = apart((torch.tensor(1), [2]))
      >>> tensors, together(form, [3])
      ([tensor(1)], (3, [2]))
    """
    tensors = [x for x in leaves(nest) if isinstance(x, torch.Tensor)]
    return map_leaves(lambda x: HERE if isinstance(x, torch.Tensor) else x, nest), tensors


def together(form: Nest, tensors: Sequence[Any]) -> Nest:
    """Returns a nest with tensors put back in their places."""
    items = iter(tensors)
    return map_leaves(lambda x: next(items) if x is HERE else x, form)


def named_leaves(nest: Nest) -> dict[str, Any]:
    """Returns the leaves of `nest` by their way in it, in the order of `leaves`.

    Example:
      >>> named_leaves((1, [2, {'a': 3}], ()))
      {'0': 1, '1.0': 2, '1.1.a': 3}
    """
    named = dict(enumerate(nest)) if isinstance(nest, (tuple, list)) else items_by_name(nest)
    if named is None:
        return {"": nest}
    found = {}
    for key, item in named.items():
        for way, leaf in named_leaves(item).items():
            found[f"{key}.{way}" if way else str(key)] = leaf
    return found


def is_foreign(x: Any) -> bool:
    """Tells whether `x` is a number or an array that is not a tensor (numpy, JAX, ...)."""
    return not isinstance(x, torch.Tensor) and (
        isinstance(x, (int, float)) or hasattr(x, "__array__")
    )


def has_foreign(x: Nest) -> bool:
    """Tells whether the call arguments `x` hold an array that is not a tensor."""
    if isinstance(x, torch.Tensor):
        return False
    if isinstance(x, (tuple, list)):
        return any(map(has_foreign, x))
    return is_foreign(x)


def to_tensor(x: Any, device: torch.device | str | None = None) -> Any:
    """Returns a number or an array as a tensor; what is neither is returned as it came.

    float64 becomes torch's default float type, as in JAX; other types are kept. Tensors are only
    moved, and so is what knows itself how to move `to` a device, such as a batch of graphs. A
    read-only array is copied, so that no write can reach it.
    """
    if isinstance(x, torch.Tensor):
        same = device is None or x.device == device
        return x if same else x.to(device, non_blocking=True)
    if not is_foreign(x):
        moves = device is not None and not isinstance(x, type) and callable(getattr(x, "to", None))
        return x.to(device) if moves else x
    array = np.asarray(x)
    if array.dtype == np.uint16 or array.dtype == np.uint32:
        array = array.astype(np.int64)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    tensor = torch.from_numpy(array) if array.ndim else torch.as_tensor(array[()])
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.get_default_dtype())
    return tensor if device is None else tensor.to(device, non_blocking=True)


def to_tensors(nest: Nest, device: torch.device | str | None = None) -> Nest:
    """Returns `nest` with every number and array as a tensor on `device`."""
    if type(nest) is tuple:  # a batch: this is the way of every training step
        return tuple([to_tensors(x, device) for x in nest])
    if isinstance(nest, torch.Tensor):
        return to_tensor(nest, device)
    return map_leaves(lambda x: to_tensor(x, device), nest)


def to_arrays(nest: Nest) -> Nest:
    """Returns `nest` with every tensor as a numpy array; bfloat16, unknown to numpy, as float32."""

    def to_array(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()

    return map_leaves(to_array, nest)
