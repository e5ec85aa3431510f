"""numpy's functions that make, move, join and cut tensors."""

from typing import Any

import torch
from torch import Tensor

from trax_torch.fastmath._operands import (
    Table,
    axes_of,
    entering,
    kind_of,
    of_one_type,
    real,
    shape_of,
    tensor,
)

FUNCTIONS: Table = {}
_known = entering(FUNCTIONS)

# Made anew.


def _float(dtype: Any) -> torch.dtype:
    return kind_of(dtype) or torch.get_default_dtype()


@_known("array", "asarray", "asanyarray", "ascontiguousarray")
def array(object: Any, dtype: Any = None, copy: Any = None, ndmin: int = 0) -> Any:
    x = tensor(object)
    x = x.to(kind_of(dtype)) if dtype is not None else x
    x = x.clone() if copy else x
    return x.reshape((1,) * (ndmin - x.ndim) + x.shape) if ndmin > x.ndim else x


@_known("copy")
def copy_(a: Any) -> Any:
    return tensor(a).clone()


@_known()
def astype(x: Any, dtype: Any) -> Any:
    return tensor(x).to(kind_of(dtype))


@_known()
def zeros(shape: Any, dtype: Any = None) -> Any:
    return torch.zeros(shape_of(shape), dtype=_float(dtype))


@_known()
def ones(shape: Any, dtype: Any = None) -> Any:
    return torch.ones(shape_of(shape), dtype=_float(dtype))


FUNCTIONS["empty"] = zeros


@_known()
def full(shape: Any, fill_value: Any, dtype: Any = None) -> Any:
    if isinstance(fill_value, Tensor):
        return fill_value.to(kind_of(dtype) or fill_value.dtype).expand(shape_of(shape))
    return torch.full(shape_of(shape), fill_value, dtype=kind_of(dtype))


def _like(a: Any, fill_value: Any, dtype: Any, shape: Any) -> Any:
    a = tensor(a)
    shape = a.shape if shape is None else shape_of(shape)
    if isinstance(fill_value, Tensor):
        return fill_value.to(a.device, kind_of(dtype) or a.dtype).expand(shape)
    return torch.full(shape, fill_value, dtype=kind_of(dtype) or a.dtype, device=a.device)


@_known("zeros_like", "empty_like")
def zeros_like(a: Any, dtype: Any = None, shape: Any = None) -> Any:
    return _like(a, 0, dtype, shape)


@_known()
def ones_like(a: Any, dtype: Any = None, shape: Any = None) -> Any:
    return _like(a, 1, dtype, shape)


@_known()
def full_like(a: Any, fill_value: Any, dtype: Any = None, shape: Any = None) -> Any:
    return _like(a, fill_value, dtype, shape)


@_known()
def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Any:
    rows, columns = torch.arange(N)[:, None], torch.arange(N if M is None else M)
    return (columns - rows == k).to(_float(dtype))


@_known()
def identity(n: int, dtype: Any = None) -> Any:
    return eye(n, dtype=dtype)


@_known()
def tri(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Any:
    rows, columns = torch.arange(N)[:, None], torch.arange(N if M is None else M)
    return (columns - rows <= k).to(_float(dtype))


@_known()
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    start, stop = (0, start) if stop is None else (start, stop)
    return torch.arange(start, stop, step, dtype=kind_of(dtype))


@_known()
def linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None) -> Any:
    kind = _float(dtype)
    if endpoint:
        return torch.linspace(start, stop, num, dtype=kind)
    return torch.linspace(start, stop, num + 1, dtype=kind)[:-1]


# Moved.


@_known()
def reshape(a: Any, shape: Any = None, order: str = "C", *, newshape: Any = None) -> Any:
    if order != "C":
        raise ValueError(
            f"A tensor is reshaped in row-major order 'C'; got {order!r}. Transpose it."
        )
    return tensor(a).reshape(shape_of(newshape if shape is None else shape))


@_known()
def ravel(a: Any) -> Any:
    return tensor(a).reshape(-1)


@_known("transpose", "permute_dims")
def transpose(a: Any, axes: Any = None) -> Any:
    a = tensor(a)
    return a.permute(tuple(reversed(range(a.ndim))) if axes is None else tuple(axes))


@_known()
def matrix_transpose(x: Any) -> Any:
    return tensor(x).mT


@_known()
def swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    return torch.swapaxes(tensor(a), axis1, axis2)


@_known()
def moveaxis(a: Any, source: Any, destination: Any) -> Any:
    return torch.moveaxis(tensor(a), source, destination)


@_known()
def squeeze(a: Any, axis: Any = None) -> Any:
    a = tensor(a)
    if axis is None:
        return a.squeeze()
    axes = axes_of(a, axis)
    for each in axes:
        if a.shape[each] != 1:
            raise ValueError(
                f"An axis to squeeze has length 1; axis {each} of {tuple(a.shape)} has "
                f"{a.shape[each]}. Take one entry of it, x[..., 0], or reshape."
            )
    return a.squeeze(axes)


@_known()
def expand_dims(a: Any, axis: Any) -> Any:
    a = tensor(a)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    n = a.ndim + len(axes)
    for each in sorted(each % n for each in axes):
        a = a.unsqueeze(each)
    return a


@_known()
def broadcast_to(array: Any, shape: Any) -> Any:
    return tensor(array).expand(shape_of(shape))


@_known()
def broadcast_arrays(*args: Any) -> Any:
    return torch.broadcast_tensors(*map(tensor, args))


@_known()
def flip(m: Any, axis: Any = None) -> Any:
    m = tensor(m)
    return torch.flip(m, axes_of(m, axis))


@_known()
def fliplr(m: Any) -> Any:
    return torch.fliplr(tensor(m))


@_known()
def flipud(m: Any) -> Any:
    return torch.flipud(tensor(m))


@_known()
def roll(a: Any, shift: Any, axis: Any = None) -> Any:
    return torch.roll(tensor(a), shift, axis)


@_known()
def rot90(m: Any, k: int = 1, axes: Any = (0, 1)) -> Any:
    return torch.rot90(tensor(m), k, axes)


@_known()
def atleast_1d(x: Any) -> Any:
    return torch.atleast_1d(tensor(x))


@_known()
def atleast_2d(x: Any) -> Any:
    return torch.atleast_2d(tensor(x))


@_known()
def repeat(a: Any, repeats: Any, axis: int | None = None) -> Any:
    if isinstance(repeats, (tuple, list)):
        repeats = torch.as_tensor(repeats)
    return torch.repeat_interleave(tensor(a), repeats, dim=axis)


@_known()
def tile(A: Any, reps: Any) -> Any:
    return torch.tile(tensor(A), shape_of(reps))


@_known()
def diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    return torch.diagonal(tensor(a), offset, axis1, axis2)


@_known()
def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    return diagonal(a, offset, axis1, axis2).sum(-1)


@_known()
def diag(v: Any, k: int = 0) -> Any:
    return torch.diag(tensor(v), k)


@_known()
def tril(m: Any, k: int = 0) -> Any:
    return torch.tril(tensor(m), k)


@_known()
def triu(m: Any, k: int = 0) -> Any:
    return torch.triu(tensor(m), k)


# Joined and cut.


@_known("concatenate", "concat")
def concatenate(arrays: Any, axis: int | None = 0, dtype: Any = None) -> Any:
    tensors = of_one_type(arrays)
    if axis is None:
        tensors, axis = [x.reshape(-1) for x in tensors], 0
    joined = torch.cat(tensors, axis)
    return joined if dtype is None else joined.to(kind_of(dtype))


@_known()
def append(arr: Any, values: Any, axis: int | None = None) -> Any:
    return concatenate((arr, values), axis)


@_known()
def stack(arrays: Any, axis: int = 0) -> Any:
    return torch.stack(of_one_type(arrays), axis)


@_known()
def vstack(tup: Any) -> Any:
    return torch.vstack(of_one_type(tup))


@_known()
def hstack(tup: Any) -> Any:
    return torch.hstack(of_one_type(tup))


@_known()
def dstack(tup: Any) -> Any:
    return torch.dstack(of_one_type(tup))


@_known()
def column_stack(tup: Any) -> Any:
    return torch.column_stack(of_one_type(tup))


@_known()
def split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    ary = tensor(ary)
    if isinstance(indices_or_sections, int) and ary.shape[axis] % indices_or_sections:
        raise ValueError(
            f"split makes parts of one size; {ary.shape[axis]} does not divide by "
            f"{indices_or_sections}. Use array_split."
        )
    return array_split(ary, indices_or_sections, axis)


@_known()
def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    if not isinstance(indices_or_sections, int):
        indices_or_sections = [int(i) for i in indices_or_sections]
    return list(torch.tensor_split(tensor(ary), indices_or_sections, axis))


@_known()
def meshgrid(*xi: Any, indexing: str = "xy") -> Any:
    return torch.meshgrid(*of_one_type(xi), indexing=indexing)


@_known()
def pad(array: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> Any:
    array = tensor(array)
    widths = _widths(pad_width, array.ndim)
    if mode == "constant":
        flat = [n for pair in reversed(widths) for n in pair]
        return torch.nn.functional.pad(array, flat, value=constant_values)
    for axis, (before, after) in enumerate(widths):
        if before or after:
            place = torch.arange(-before, array.shape[axis] + after, device=array.device)
            array = torch.index_select(array, axis, _mirrored(place, array.shape[axis], mode))
    return array


def _widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    if isinstance(pad_width, int):
        return [(pad_width, pad_width)] * ndim
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in pad_width]
    if all(isinstance(p, int) for p in pad_width) and len(pairs) == 2:
        pairs = [tuple(pad_width)]
    pairs = [p * 2 if len(p) == 1 else p for p in pairs]
    pairs = pairs * ndim if len(pairs) == 1 else pairs
    return [(int(p[0]), int(p[1])) for p in pairs]


def _mirrored(place: Tensor, n: int, mode: str) -> Any:
    """Returns which of `n` entries stands at places before 0 and from n on."""
    if mode == "edge":
        return place.clamp(0, n - 1)
    if mode == "wrap":
        return place % n
    if mode == "symmetric":
        place = place % (2 * n)
        return torch.minimum(place, 2 * n - 1 - place)
    if mode == "reflect":
        place = place % max(2 * n - 2, 1)
        return torch.minimum(place, 2 * n - 2 - place)
    raise ValueError(
        f"A tensor is padded by 'constant', 'edge', 'wrap', 'symmetric' or 'reflect'; got "
        f"{mode!r}. Join it with what stands at its edges: concatenate."
    )


@_known()
def interp(x: Any, xp: Any, fp: Any) -> Any:
    x, xp, fp = (real(v) for v in (x, xp, fp))
    right = torch.searchsorted(xp, x.contiguous()).clamp(1, len(xp) - 1)
    share = ((x - xp[right - 1]) / (xp[right] - xp[right - 1])).clamp(0, 1)
    return fp[right - 1] + share * (fp[right] - fp[right - 1])


@_known()
def shape(a: Any) -> tuple[int, ...]:
    return tuple(tensor(a).shape)


@_known()
def ndim(a: Any) -> Any:
    return tensor(a).ndim


@_known()
def size(a: Any, axis: int | None = None) -> Any:
    a = tensor(a)
    return a.numel() if axis is None else a.shape[axis]
