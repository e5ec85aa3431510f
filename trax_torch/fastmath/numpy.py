"""numpy's names for arrays and tensors alike: `from trax_torch.fastmath import numpy as jnp`.

A function that is given a tensor, anywhere among its arguments, computes in torch and answers
tensors: under autograd, `torch.func` and `torch.compile`, in bfloat16, on the tensor's device.
Given none, it is numpy's own and answers an `Array`, which is numpy's in all and turns into a
tensor where it meets one. Names, keywords and meaning are numpy's, with two differences, as in
Trax: floats are in torch's default float type unless a float64 array came or a `dtype` was asked
for; and what has no counterpart in torch (`digitize`) takes only tensors that want no gradient.

Chosen over three others: `torch._numpy`, which was tried (private; knows no bfloat16,
`torch.compile` stops before it, and a sum takes 90 us where torch takes 4),
`torch.compiler.wrap_numpy` (for a whole function, compiled) and `array-api-compat` (a dependency,
without `append`, `dot`, `pad`, `einsum`).

Source: Trax `fastmath/ops.py::NumpyBackend`, whose functions are `jax.numpy`'s.
"""

import types
from typing import Any

import numpy as np
import torch

from trax_torch.fastmath import _alike, _math_of_tensors, _shapes_of_tensors
from trax_torch.fastmath._alike import issubdtype
from trax_torch.fastmath._arrays import Array, DType
from trax_torch.fastmath._nested import (
    nested_map,
    nested_map_multiarg,
    nested_stack,
    nested_zip,
    tree_flatten,
    tree_leaves,
    tree_unflatten,
)

__all__ = [
    "Array",
    "DType",
    "fft",
    "issubdtype",
    "linalg",
    "ndarray",
    "nested_map",
    "nested_map_multiarg",
    "nested_stack",
    "nested_zip",
    "tree_flatten",
    "tree_leaves",
    "tree_unflatten",
]


class _OfBoth(type):
    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, (np.ndarray, torch.Tensor))


class ndarray(metaclass=_OfBoth):
    """What `isinstance(x, jnp.ndarray)` asks for: an array, or a tensor.

    Example:
      >>> isinstance(np.zeros(2), ndarray), isinstance(torch.zeros(2), ndarray)
      (True, True)
    """


_DTYPES = """
    bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 bfloat16
    complex64 complex128
"""

linalg = types.SimpleNamespace(**_alike.names(np.linalg, _math_of_tensors.LINALG, "linalg."))
fft = types.SimpleNamespace(**_alike.names(np.fft, _math_of_tensors.FFT, "fft."))


def __getattr__(name: str) -> Any:
    instead = "Draw by fastmath.random" if name == "random" else "Use numpy or torch itself"
    raise AttributeError(
        f"fastmath.numpy has the names of numpy {np.__version__}; {name!r} is none. {instead}."
    )


def __dir__() -> list[str]:
    return [*__all__, *_ALL, *_DTYPES.split()]


# Last, since numpy's names hide Python's own.
_ALL = _alike.names(np, {**_math_of_tensors.FUNCTIONS, **_shapes_of_tensors.FUNCTIONS})
globals().update(_ALL, **{name: DType(name) for name in _DTYPES.split()})
