"""What functions on tensors have in common: how operands, axes, shapes and types are read."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trax_torch.fastmath import _arrays

Table = dict[str, Callable[..., Any]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def entering(table: Table) -> Callable[..., Callable[[_Function], _Function]]:
    """Returns a decorator that enters a function into a table, under names or its own."""

    def known(*names: str) -> Callable[[_Function], _Function]:
        def enter(function: _Function) -> _Function:
            table.update(dict.fromkeys(names or (function.__name__.rstrip("_"),), function))
            return function

        return enter

    return known


def tensor(x: Any) -> Tensor:
    """Returns a number, or a nest of numbers and tensors, as one tensor; tensors as they are."""
    if isinstance(x, Tensor):
        return x
    like = _arrays.first_tensor(x) if isinstance(x, (tuple, list)) else None
    if like is None:
        return torch.as_tensor(x)
    items = [tensor(item) for item in x]
    dtype = items[0].dtype
    for item in items:
        dtype = torch.promote_types(dtype, item.dtype)
    return torch.stack([item.to(like.device, dtype) for item in items])


def pair(x1: Any, x2: Any) -> tuple[Tensor, Tensor]:
    """Returns two operands as tensors; a number takes its type from the other, as in numpy."""
    if not isinstance(x1, (Tensor, tuple, list)):
        x2 = tensor(x2)
        return torch.as_tensor(x1, dtype=_type_beside(x2, x1)), x2
    x1 = tensor(x1)
    if not isinstance(x2, (Tensor, tuple, list)):
        return x1, torch.as_tensor(x2, dtype=_type_beside(x1, x2))
    return x1, tensor(x2)


def _type_beside(x: Tensor, number: Any) -> torch.dtype:
    """Returns `torch.result_type`, which no compiler follows, of a tensor and a number."""
    if isinstance(number, complex):
        return torch.promote_types(x.dtype, torch.complex64)
    if isinstance(number, float) and not (x.is_floating_point() or x.is_complex()):
        return torch.get_default_dtype()
    of_truth = x.dtype == torch.bool and not isinstance(number, (bool, float))
    return torch.int64 if of_truth else x.dtype


def real(x: Any) -> Tensor:
    """Returns a tensor of numbers that have fractions: integers in the default float type."""
    values = tensor(x)
    exact = not (values.is_floating_point() or values.is_complex())
    return values.to(torch.get_default_dtype()) if exact else values


def axes_of(x: Tensor, axis: Any) -> tuple[int, ...]:
    """Returns the axes that are meant, none below 0; `None` means all."""
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not -x.ndim <= a < x.ndim:
            raise ValueError(
                f"An axis lies in [-{x.ndim}, {x.ndim}) for {x.ndim} dimensions; got {a}."
            )
    return tuple(a % x.ndim for a in axes)


def shape_of(shape: Any) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)


def kind_of(dtype: Any) -> torch.dtype | None:
    return None if dtype is None else _arrays.torch_dtype(dtype)


def of_one_type(arrays: Sequence[Any]) -> list[Tensor]:
    tensors = [tensor(x) for x in arrays]
    dtype = tensors[0].dtype
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    like = _arrays.first_tensor(arrays)
    device = tensors[0].device if like is None else like.device
    return [x.to(device, dtype) for x in tensors]


def together(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Returns two tensors of one type, which torch's products want."""
    a, b = pair(a, b)
    if a.dtype == b.dtype:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
