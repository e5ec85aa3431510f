"""Arrays that give way to tensors, dtypes of numpy and torch, and the way between both."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from trax_torch import _nest


class Array(np.ndarray):
    """A numpy array that gives way to tensors: what `fastmath` makes outside of any tensor.

    It is numpy's in all: its scalars hash, it prints, it is written to in place. Where it meets a
    tensor, in arithmetic or in a function of torch, it becomes one: on that tensor's device, and
    float64 in torch's default float type. So a mask or a constant made inside a layer need not know
    where the layer runs, and gradients go past it.

    Example:
      >>> import torch
      >>> from trax_torch.fastmath import numpy as jnp
      >>> mask = jnp.tril(jnp.ones((2, 2)))
      >>> mask
      Array([[1., 0.],
             [1., 1.]], dtype=float32)
      >>> mask * torch.full((2, 2), 3.0)
      tensor([[3., 0.],
              [3., 3.]])
    """

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Lets what has no dimension left be numpy's scalar, as with plain arrays."""
        return array[()] if return_scalar or not array.ndim else array.view(Array)

    def __reduce__(self) -> Any:
        """Is pickled as a plain array, that whoever reads it needs numpy alone."""
        return self.view(np.ndarray).__reduce__()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Computes with tensors in the place of arrays."""
        kwargs = kwargs or {}
        like = first_tensor((args, kwargs))
        return func(*as_tensors(args, like), **as_tensors(kwargs, like))


class DType:
    """A number type, such as `jnp.float32`: equal to numpy's and to torch's, and good for both.

    Example:
      >>> import torch
      >>> from trax_torch.fastmath import numpy as jnp
      >>> np.zeros(2, jnp.float32).dtype == jnp.float32, torch.zeros(2).dtype == jnp.float32
      (True, True)
    """

    def __init__(self, name: str):
        self.__name__ = name
        self.of_torch: torch.dtype = getattr(torch, name.rstrip("_"))
        if name != "bfloat16":  # which numpy alone does not know
            self.dtype = np.dtype(name.rstrip("_"))

    def __call__(self, x: Any) -> Any:
        """Returns a number, an array or a tensor in this type."""
        of_numpy_alone = hasattr(self, "dtype") and not torch.compiler.is_compiling()
        if isinstance(x, torch.Tensor) or not of_numpy_alone:
            return torch.as_tensor(x).to(self.of_torch)
        return of_numpy(np.asarray(x).astype(self.dtype)[()])

    def __eq__(self, other: object) -> bool:
        try:
            return torch_dtype(other) == self.of_torch
        except TypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.of_torch)

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self) -> Any:
        return DType, (self.__name__,)


def torch_dtype(dtype: Any) -> torch.dtype:
    """Returns a type of numpy's, Python's or ours as torch's.

    Raises:
      TypeError: if torch has none such.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, DType):
        return dtype.of_torch
    name = "bfloat16" if str(dtype) == "bfloat16" else np.dtype(dtype).name
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{dtype!r} names no torch type; give one such as jnp.float32.")
    return found


def numpy_dtype(dtype: Any) -> Any:
    """Returns a type as numpy knows it; torch's bfloat16, which it does not, as it came."""
    if isinstance(dtype, torch.dtype) and dtype != torch.bfloat16:
        return np.dtype(str(dtype).removeprefix("torch."))
    return dtype


def is_dtype(x: Any) -> bool:
    """Tells whether an argument is a number type."""
    return isinstance(x, (DType, torch.dtype, np.dtype)) or (
        isinstance(x, type) and (issubclass(x, np.generic) or x in (float, int, bool, complex))
    )


def first_tensor(nest: Any) -> torch.Tensor | None:
    """Returns the first tensor in lists, tuples and dicts of arguments; None if there is none."""
    if isinstance(nest, torch.Tensor):
        return nest
    items: Iterable[Any] = nest.values() if isinstance(nest, dict) else nest
    if isinstance(nest, (tuple, list, dict)):
        for item in items:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def as_tensors(nest: Any, like: torch.Tensor | None) -> Any:
    """Returns arguments with each array as a tensor where `like` is, and numbers as they are."""
    if isinstance(nest, (tuple, list)) and not isinstance(nest, torch.Size):
        return type(nest)([as_tensors(item, like) for item in nest])
    if isinstance(nest, dict):
        return {key: as_tensors(item, like) for key, item in nest.items()}
    if isinstance(nest, np.generic):
        return nest.item()
    if not isinstance(nest, np.ndarray) and not hasattr(nest, "__array__"):
        return nest
    if isinstance(nest, (torch.Tensor, type)):
        return nest
    device = None if like is None else like.device
    if torch.compiler.is_compiling():  # which follows less of numpy
        made = torch.as_tensor(nest, device=device)
        wide = made.dtype == torch.float64 and (like is None or like.dtype != torch.float64)
        return made.to(torch.get_default_dtype()) if wide else made
    if like is not None and like.dtype == torch.float64:  # nothing of a constant is lost
        return torch.as_tensor(np.array(nest), device=device)
    return _nest.to_tensor(np.asarray(nest), device)


def of_numpy(result: Any) -> Any:
    """Returns what numpy answered with its arrays as `Array`s."""
    if isinstance(result, np.ndarray):
        return result.view(Array)
    if isinstance(result, (tuple, list)):
        items = [of_numpy(item) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    return result


def of_torch(x: torch.Tensor) -> Any:
    """Returns a tensor as an `Array`, or as a number of numpy's."""
    array = x.detach().cpu().numpy()
    return array.view(Array) if array.ndim else array[()]


def in_default_float(result: Any) -> Any:
    """Returns float64 arrays and scalars in torch's default float type, complex ones likewise."""
    if isinstance(result, (tuple, list)):
        items = [in_default_float(item) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    if torch.get_default_dtype() == torch.float64 or not hasattr(result, "dtype"):
        return result
    if result.dtype == np.float64:
        return result.astype(str(torch.get_default_dtype()).removeprefix("torch."))
    return result.astype(np.complex64) if result.dtype == np.complex128 else result
