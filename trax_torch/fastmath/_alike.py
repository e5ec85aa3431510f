"""Functions that go by what they are given: tensors by torch, all else by numpy."""

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trax_torch.fastmath._arrays import (
    DType,
    as_tensors,
    first_tensor,
    in_default_float,
    is_dtype,
    numpy_dtype,
    of_numpy,
    torch_dtype,
)

# What has gone from numpy, or goes by another name there.
_ON_ARRAYS = {
    "astype": lambda x, dtype: np.asarray(x).astype(dtype),
    "trapz": getattr(np, "trapezoid", None) or getattr(np, "trapz", None),
    "trapezoid": getattr(np, "trapezoid", None) or getattr(np, "trapz", None),
    "concat": np.concatenate,
    "permute_dims": np.transpose,
    "matrix_transpose": lambda x: np.swapaxes(x, -1, -2),
    "pow": np.power,
    "bitwise_invert": np.invert,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
}


def alike(
    name: str, on_arrays: Callable[..., Any], on_tensors: Callable[..., Any] | None
) -> Callable[..., Any]:
    """Returns a function of numpy's that goes by its arguments: tensors, or none."""

    def function(*args: Any, **kwargs: Any) -> Any:
        like = first_tensor(args)
        if like is None and kwargs:
            like = first_tensor(kwargs)
        if like is None and not _wants_torch(args, kwargs):
            return _by_numpy(on_arrays, args, kwargs)
        if on_tensors is None:
            return _through_numpy(name, on_arrays, args, kwargs)
        return on_tensors(*as_tensors(args, like), **as_tensors(kwargs, like))

    function.__name__ = function.__qualname__ = name
    function.__module__ = "trax_torch.fastmath.numpy"
    function.__doc__ = f"Does what `numpy.{name}` does, on arrays or on tensors."
    shown = on_tensors or on_arrays
    if isinstance(shown, types.FunctionType) or hasattr(shown, "__wrapped__"):
        function.__wrapped__ = shown  # type: ignore[attr-defined]  # read when someone asks
    else:
        with contextlib.suppress(ValueError, TypeError):  # some of numpy's own tell nothing
            function.__signature__ = inspect.signature(shown)  # type: ignore[attr-defined]
    return function


def _wants_torch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tells whether torch must compute although no tensor came."""
    if torch.compiler.is_compiling():  # which follows tensors, and knows numpy's plain arrays alone
        return True
    asked = [x for x in (*args, *kwargs.values()) if isinstance(x, (DType, torch.dtype))]
    return any(torch_dtype(x) == torch.bfloat16 for x in asked)


def _by_numpy(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    args = [numpy_dtype(x) for x in args]
    kwargs = {key: numpy_dtype(x) for key, x in kwargs.items()}
    result = function(*args, **kwargs)
    asked = any(map(is_dtype, args)) or kwargs.get("dtype") is not None
    made = function in (np.array, np.asarray)  # data that comes in, in float64 as numpy makes it
    if asked or (_holds_float64(args) and not made):
        return of_numpy(result)
    return of_numpy(in_default_float(result))


def _holds_float64(args: Any) -> bool:
    """Tells whether an array of float64 is among arguments; Python's own floats are of any type."""
    if isinstance(args, (tuple, list)):
        return any(map(_holds_float64, args))
    return isinstance(args, np.ndarray) and args.dtype in (np.float64, np.complex128)


def _through_numpy(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Computes in numpy what torch has no function for, and answers tensors."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if torch.compiler.is_compiling() or any(x.requires_grad or x.is_meta for x in tensors):
        raise TypeError(
            f"jnp.{name} is numpy's alone and passes no gradient on; it got a tensor that "
            f"wants one, or is only a shape. Give it x.detach(), or use functions that torch has."
        )

    def back(x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(map(back, x))
        is_array = isinstance(x, (np.ndarray, np.generic))
        return torch.as_tensor(np.asarray(x), device=device) if is_array else x

    device = tensors[0].device if tensors else None
    args = [x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in args]
    kwargs = {k: x.cpu().numpy() if isinstance(x, torch.Tensor) else x for k, x in kwargs.items()}
    return back(_by_numpy(function, args, kwargs))


def issubdtype(arg1: Any, arg2: Any) -> bool:
    """Tells whether a number type, numpy's or torch's, is of a kind, such as `jnp.floating`.

    Example:
      >>> issubdtype(torch.float32, np.floating), issubdtype(torch.bfloat16, np.integer)
      (True, False)
    """
    if isinstance(arg1, (torch.dtype, DType)) and torch_dtype(arg1) == torch.bfloat16:
        arg1 = np.float32  # the same kinds
    return bool(np.issubdtype(numpy_dtype(arg1), numpy_dtype(arg2)))


_NOT_HERE = {"random", "test", "ndarray", "issubdtype"}  # the first is fastmath.random


def names(module: Any, on_tensors: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns what a module of numpy's has: functions go both ways, all else is as it is."""
    # Not by dir(), which names modules that numpy loads late: a tenth of a second, for nothing.
    found = {name: x for name, x in vars(module).items() if name[0] != "_"}
    found |= {name: f for name, f in _ON_ARRAYS.items() if name in on_tensors}
    functions = {
        name: alike(prefix + name, f, on_tensors.get(name))
        for name, f in found.items()
        if callable(f) and not isinstance(f, type)
    }
    others = {n: x for n, x in found.items() if not isinstance(x, types.ModuleType)}
    return {n: x for n, x in {**others, **functions}.items() if n not in _NOT_HERE}
