"""Methods of tensors that programs call as numpy's: what a `tl.Fn` gets are tensors.

Where torch has none (`x.astype`), or would understand another thing (`x.max(axis=1)` gives a pair,
`x.std(axis=1)` divides by n - 1), numpy's meaning is added for calls that torch's own code does not
make. It holds for the process, as the name `trax` does; calls in torch's manner are as they were.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _nest, _torch_private
from trax_torch.fastmath import numpy as jnp

_BY_AXIS = [
    *("max", "min", "argmax", "argmin", "sum", "mean", "prod", "std", "var", "any", "all"),
    *("sort", "argsort", "cumsum", "cumprod"),
]
_OF_OPERATORS = {
    *(np.add, np.subtract, np.multiply, np.true_divide, np.floor_divide, np.remainder),
    *(np.power, np.matmul),
}


def add() -> Callable[[], None]:
    """Gives `torch.Tensor` the methods; returns what takes them back."""
    methods = {name: _by_axis(name) for name in _BY_AXIS}
    methods |= {"transpose": _transpose(), "dot": _dot(), "__array__": _array}
    methods |= {"__array_wrap__": _array_wrap(), "__array_ufunc__": _array_ufunc}
    methods |= {"astype": _astype, "copy": _copy}
    before = {name: vars(torch.Tensor).get(name) for name in methods}
    for name, method in methods.items():
        setattr(torch.Tensor, name, method)

    def take_back() -> None:
        for name, method in before.items():
            if method is None:  # it is inherited, or there was none
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, method)

    return take_back


def _by_axis(name: str) -> Callable[..., Any]:
    own, numpys = getattr(torch.Tensor, name), getattr(jnp, name)

    @functools.wraps(own)
    def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if "axis" not in kwargs:
            return own(self, *args, **kwargs)
        if kwargs.get("out", self) is None:  # np.sum(x) asks x so
            del kwargs["out"]
        return numpys(self, *args, **kwargs)

    return method


def _transpose() -> Callable[..., Any]:
    own = torch.Tensor.transpose

    @functools.wraps(own)
    def transpose(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) == 2:
            return own(self, *args, **kwargs)
        return jnp.transpose(self, args[0] if len(args) == 1 else args or None)

    return transpose


def _dot() -> Callable[..., Any]:
    own = torch.Tensor.dot

    @functools.wraps(own)
    def dot(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_vectors = self.dim() == 1 and (not args or getattr(args[0], "ndim", 0) == 1)
        return (own if is_vectors else jnp.dot)(self, *args, **kwargs)

    return dot


def _array(self: torch.Tensor, dtype: Any = None, copy: bool | None = None) -> Any:
    """Returns a tensor as numpy asks for it: weights, and what is computed of them, too.

    Not within a layer or a loss, where a gradient would be lost in silence.
    """
    _torch_private.refuse_to_lose_gradient(self)
    array = _nest.to_arrays(self)
    array = array if dtype is None else array.astype(dtype, copy=False)
    return array.copy() if copy else array


def _array_wrap() -> Callable[..., Any]:
    own: Any = torch.Tensor.__array_wrap__  # which numpy 2 calls with more, and warns

    @functools.wraps(own)
    def __array_wrap__(self: torch.Tensor, array: Any, *_: Any, **__: Any) -> Any:
        return own(self, array)

    return __array_wrap__


def _array_ufunc(self: torch.Tensor, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """Computes what numpy does item by item, `array * x` say, so that gradients go past arrays.

    Tensors answer tensors. Weights that were read, which numpy takes for arrays, answer arrays but
    to operators; so does what is more than a plain call, such as one that writes to an array.
    """
    kinds = {type(x) for x in inputs if isinstance(x, torch.Tensor)}
    in_torch = getattr(jnp, ufunc.__name__, None)
    if method == "__call__" and not kwargs and callable(in_torch):
        if not kinds.isdisjoint((torch.Tensor, nn.Parameter)):
            return in_torch(*inputs)
        if ufunc in _OF_OPERATORS:
            return in_torch(*[_of_kind(x, type(self), self.device) for x in inputs])
    arrays = [np.asarray(x) if isinstance(x, torch.Tensor) else x for x in inputs]
    return getattr(ufunc, method)(*arrays, **kwargs)


def _of_kind(x: Any, kind: type, device: torch.device) -> Any:
    is_array = isinstance(x, np.ndarray)
    return _nest.to_tensor(x, device).as_subclass(kind) if is_array else x


def _astype(self: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Returns the numbers in another type, of numpy's or torch's names."""
    result: torch.Tensor = jnp.astype(self, dtype)
    return result


def _copy(self: torch.Tensor) -> torch.Tensor:
    """Returns a copy."""
    return self.clone()
