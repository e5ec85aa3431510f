"""Weights as they are read: tensors, and for numpy arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _nest, _torch_private
from trax_torch.fastmath import numpy as jnp

_GRAD: Any = torch.Tensor.grad
_REQUIRES_GRAD: Any = torch.Tensor.requires_grad
_OF_SHAPES = (np.shape, np.ndim, np.size)
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")


class _Size(int):
    """How many numbers a tensor has, numpy's `size`; called, it is torch's."""

    def __new__(cls, tensor: torch.Tensor) -> "_Size":
        made = super().__new__(cls, tensor.numel())
        made._of = tensor.size
        return made

    _of: Callable[..., Any]

    def __call__(self, *dim: Any, **named: Any) -> Any:
        return self._of(*dim, **named)

    def __reduce__(self) -> Any:
        return int, (int(self),)


class Readable(torch.Tensor):
    """A tensor that numpy takes for an array, also where a gradient is wanted.

    It is the weight itself, under another class, and where PyTorch keeps the weight in another
    layout, in Trax's: what is written to it is written to the weight, `data` and `grad` too;
    gradients go to the weight, and hooks, and whether one is wanted. What is computed of such
    tensors alone, `w ** 2`, is one too; with others it is a plain tensor. A copy, and what is read
    back from a pickle, is a plain leaf.

    Within a layer or a loss, where numpy would lose a gradient in silence, it is refused to numpy.
    """

    _weight: nn.Parameter | None = None  # the parameter that it shows, if it is one

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
        """The gradient of the weight, as it is shown; its own, if it shows none."""
        weight = self._weight
        if weight is None:
            return _GRAD.__get__(self)
        if weight.grad is not None and not _is_laid_out_like(weight.grad, weight):
            weight.grad = torch.empty_like(weight).copy_(weight.grad)  # what is shown stays live
        return None if weight.grad is None else _shown(self, weight, weight.grad)

    @grad.setter
    def grad(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._weight is None:
            _GRAD.__set__(self, value)
        else:
            self._weight.grad = None if value is None else _kept(self, self._weight, value)

    @property
    def data(self) -> Any:
        """Its numbers, without a gradient; what is assigned is copied into the weight."""
        return plain(self).detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if value.shape != self.shape:
            raise ValueError(
                f"The numbers of a weight of shape {tuple(self.shape)} have that shape; got "
                f"{tuple(value.shape)}. init() makes weights of new shapes."
            )
        plain(self).detach().copy_(value)

    @property
    def requires_grad(self) -> bool:
        """Whether its gradient is wanted; assigned, whether the weight's is."""
        return bool(_REQUIRES_GRAD.__get__(self))

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.requires_grad_(value)

    def requires_grad_(self, mode: bool = True) -> "Readable":
        """Says whether the gradient of the weight is wanted, from the next reading of it on."""
        if self._weight is None:
            super().requires_grad_(mode)
        else:
            self._weight.requires_grad_(mode)
        return self

    def register_hook(self, hook: Callable[[Any], Any]) -> Any:
        """Has `hook` see the gradient of the weight, as it is shown, and maybe return another."""
        weight = self._weight
        if weight is None:
            return super().register_hook(hook)  # type: ignore[no-untyped-call]

        def of_weight(grad: torch.Tensor) -> torch.Tensor | None:
            found = hook(_shown(self, weight, _kept_like(weight, grad)))
            return None if found is None else _kept(self, weight, found)

        return weight.register_hook(of_weight)

    @property
    def size(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many numbers it has, as numpy says; called, its shape, as torch says."""
        return _Size(plain(self))

    def astype(self, dtype: Any) -> torch.Tensor:
        """Returns it in another type, numpy's or torch's."""
        result: torch.Tensor = jnp.astype(self, dtype)
        return result

    def copy(self) -> torch.Tensor:
        """Returns a copy, as numpy's."""
        return self.clone()

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
    weight = tensor if isinstance(tensor, nn.Parameter) else tensor._base
    if isinstance(weight, nn.Parameter) and weight.numel() == tensor.numel():
        shown._weight = weight
    return shown


def _is_laid_out_like(tensor: torch.Tensor, weight: torch.Tensor) -> bool:
    return tensor.is_sparse or tensor.stride() == weight.stride()


def _kept_like(weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Returns a gradient of a weight in the weight's order in memory."""
    return grad if _is_laid_out_like(grad, weight) else torch.empty_like(weight).copy_(grad)


def _shown(shown: Readable, weight: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Returns what is laid out like a weight, seen as the weight is shown."""
    if shown.shape == weight.shape and shown.stride() == weight.stride():
        return tensor
    return tensor.as_strided(shown.shape, shown.stride())


def _kept(shown: Readable, weight: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Returns what has the shape in which a weight is shown, laid out like the weight."""
    if shown.shape == weight.shape and shown.stride() == weight.stride():
        same: torch.Tensor = plain(tensor)
        return same
    kept = torch.empty_like(weight)
    _shown(shown, kept, kept).copy_(tensor)
    return kept


def plain(tensor: Any) -> Any:
    """Returns a tensor without its other class."""
    return tensor.as_subclass(torch.Tensor) if type(tensor) is Readable else tensor
