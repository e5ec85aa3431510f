"""Data about data: the shape and type of tensors that need not exist."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trax_torch import _nest


@dataclass(frozen=True)
class ShapeDtype:
    """The shape and type of a tensor, without the tensor.

    Args:
      shape: a tuple or list of ints, or one int for a vector.
      dtype: a torch type, or anything numpy takes for a type (`np.int32`, `'float32'`); as with
        tensors, numpy's float64 stands for torch's default float type.

    Raises:
      TypeError: if `dtype` names no torch type.

    Example:
      >>> ShapeDtype((2, 3), np.int32)
      ShapeDtype{shape:(2, 3), dtype:int32}

    Source: Trax `shapes.py::ShapeDtype`, whose dtype is numpy's; here it is torch's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", _torch_dtype(self.dtype))

    def as_tuple(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Returns `(shape, dtype)`."""
        return self.shape, self.dtype

    def replace(self, **changes: Any) -> "ShapeDtype":
        """Returns a copy with another `shape` or `dtype`."""
        return ShapeDtype(changes.get("shape", self.shape), changes.get("dtype", self.dtype))

    def __len__(self) -> int:
        """Returns 1: a signature of one tensor is the `ShapeDtype`, of several a tuple."""
        return 1

    def __repr__(self) -> str:
        return f"ShapeDtype{{shape:{self.shape}, dtype:{str(self.dtype).removeprefix('torch.')}}}"


def signature(nest: Any) -> Any:
    """Returns a nest of arrays or tensors with each leaf as its `ShapeDtype`.

    `ShapeDtype`s stand for themselves, and `None` stays `None`. A batch's signature is what
    `Layer.init` asks for.

    Example:
      >>> signature((np.zeros((2, 3)), torch.zeros(5, dtype=torch.int64)))
      (ShapeDtype{shape:(2, 3), dtype:float32}, ShapeDtype{shape:(5,), dtype:int64})

    Source: Trax `shapes.py::signature`.
    """

    def of_leaf(x: Any) -> Any:
        if x is None or isinstance(x, ShapeDtype):
            return x
        if isinstance(x, torch.Tensor):
            return ShapeDtype(tuple(x.shape), x.dtype)
        if _nest.is_foreign(x):
            return ShapeDtype(np.shape(x), _torch_dtype(np.asarray(x).dtype))
        raise TypeError(
            f"A signature is made of arrays, tensors or ShapeDtypes; got {type(x).__name__}."
        )

    return _nest.map_leaves(of_leaf, nest)


def splice_signatures(*sigs: Any) -> Any:
    """Returns one signature of what several stand for, in order.

    Args:
      *sigs: `ShapeDtype`s, or tuples or lists of them, which may be empty.

    Returns:
      The `ShapeDtype` if there is one in all, else a tuple of them.

    Example:
      >>> a, b = ShapeDtype((2,)), ShapeDtype((3,))
      >>> splice_signatures(a, (), (b, a)) == (a, b, a), splice_signatures((), (b,)) == b
      (True, True)

    Source: Trax `shapes.py::splice_signatures`.
    """
    spliced: list[Any] = []
    for sig in sigs:
        spliced.extend(sig if isinstance(sig, (tuple, list)) else [sig])
    return spliced[0] if len(spliced) == 1 else tuple(spliced)


def assert_shape_equals(array: Any, shape: Any) -> None:
    """Raises ValueError, with both shapes, if an array has not the shape that it should have.

    Source: Trax `shapes.py::assert_shape_equals`, which raises AssertionError.
    """
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"Two shapes must be equal; got {tuple(array.shape)} and {tuple(shape)}. "
            f"Check the order of the batch's items and the layer's arguments."
        )


def assert_same_shape(x: Any, y: Any) -> None:
    """Raises ValueError, with both shapes, if two arrays differ in shape."""
    assert_shape_equals(x, y.shape)


def _torch_dtype(dtype: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if str(dtype) == "bfloat16":  # ml_dtypes' type, which numpy alone does not know
        return torch.bfloat16
    try:
        name = np.dtype(dtype).name
        result = getattr(torch, name)
    except (TypeError, AttributeError):
        result = None
    if not isinstance(result, torch.dtype):
        raise TypeError(f"{dtype!r} names no torch type; give one such as torch.float32.")
    return torch.get_default_dtype() if result == torch.float64 else result
