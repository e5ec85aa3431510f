"""Nested tuples, lists and dicts of tensors: map, flatten, rebuild, convert.

This room knows how data is packed, never what it means.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Nest = Any  # a leaf, or a tuple, list or dict of nests


def map_leaves(fn: Callable[[Any], Any], nest: Nest) -> Nest:
    """Returns `nest` with `fn` applied to each leaf; tuples, lists and dicts keep their kind.

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
    return fn(nest)


def leaves(nest: Nest) -> Iterator[Any]:
    """Yields the leaves of `nest`, depth first, in order.

    Example:
      >>> list(leaves((1, [2, {'a': 3}], ())))
      [1, 2, 3]
    """
    if isinstance(nest, dict):
        nest = tuple(nest.values())
    if isinstance(nest, (tuple, list)):
        for item in nest:
            yield from leaves(item)
    else:
        yield nest


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
    moved. A read-only array is copied, so that no write can reach it.
    """
    if isinstance(x, torch.Tensor):
        same = device is None or x.device == device
        return x if same else x.to(device, non_blocking=True)
    if not is_foreign(x):
        return x
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
