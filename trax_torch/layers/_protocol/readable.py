"""Weights as they are read: tensors, and for numpy arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _nest, _torch_private
from trax_torch.fastmath import numpy as jnp

_GRAD: Any = torch.Tensor.grad
_OF_SHAPES = (np.shape, np.ndim, np.size)
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")


class Readable(torch.Tensor):
    """A tensor that numpy takes for an array, also where a gradient is wanted.

    It is the weight itself, under another class: what is written to it is written to the weight,
    and gradients go to the weight. What is computed of such tensors alone, `w ** 2`, is one too;
    with others it is a plain tensor. A copy, and what is read back from a pickle, is a plain leaf.

    Within a layer or a loss, where numpy would lose a gradient in silence, it is refused to numpy.
    """

    _weight: torch.Tensor | None = None  # the parameter that it shows, if it is one

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(t, torch.Tensor) for t in types):
            return NotImplemented  # an array that gives way to tensors will make itself one
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        given = _nest.leaves((args, kwargs or {}))
        alone = all(type(x) is cls for x in given if isinstance(x, torch.Tensor))
        return result if alone else _nest.map_leaves(plain, result)

    @property
    def grad(self) -> Any:
        """The gradient of the weight; its own, if it shows none."""
        shown = self._weight
        return _GRAD.__get__(self) if shown is None else shown.grad

    @grad.setter
    def grad(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._weight is None:
            _GRAD.__set__(self, value)
        else:
            self._weight.grad = value

    def astype(self, dtype: Any) -> torch.Tensor:
        """Returns it in another type, numpy's or torch's."""
        result: torch.Tensor = jnp.astype(self, dtype)
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        _torch_private.refuse_to_lose_gradient(self)
        array = _nest.to_arrays(plain(self))
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else array

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Lets `np.sum`, `np.stack` and their like compute with arrays."""
        if func not in _OF_SHAPES:
            _torch_private.refuse_to_lose_gradient(self)
        return func(*_nest.to_arrays(args), **_nest.to_arrays(kwargs))

    def __float__(self) -> float:
        return float(plain(self).detach())

    def __format__(self, spec: str) -> str:
        return format(plain(self).detach(), spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(plain(self).detach())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = plain(self).detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


def _with_arrays(name: str) -> Callable[..., Any]:
    """Returns an operator that takes arrays for tensors, so that gradients go past them."""
    operator = getattr(torch.Tensor, name)

    def apply(self: Readable, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            other = readable(_nest.to_tensor(other, self.device))
        return operator(self, other)

    return apply


for _name in _OPERATORS:
    for _side in ("", "r"):
        setattr(Readable, f"__{_side}{_name}__", _with_arrays(f"__{_side}{_name}__"))


def readable(tensor: Any) -> Any:
    """Returns a tensor as it is read from outside.

    In `torch.compile`, which need not follow it, and for classes of others it is returned itself.
    """
    if torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, nn.Parameter):
        return tensor
    shown = tensor.as_subclass(Readable)
    if isinstance(tensor, nn.Parameter):
        shown._weight = tensor
    return shown


def plain(tensor: Any) -> Any:
    """Returns a tensor without its other class."""
    return tensor.as_subclass(torch.Tensor) if type(tensor) is Readable else tensor
