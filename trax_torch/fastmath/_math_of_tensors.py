"""numpy's functions on tensors: names, arguments and meaning are numpy's, the work is torch's.

Each takes at least one tensor among its arguments; arrays have become tensors before, numbers are
as they came. All is done by public functions of torch, so that gradients, `torch.compile`,
`torch.func`, bfloat16 and every device go as in torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trax_torch.fastmath._operands import (
    Table,
    axes_of,
    entering,
    kind_of,
    of_one_type,
    pair,
    real,
    tensor,
    together,
)

FUNCTIONS: Table = {}
_known = entering(FUNCTIONS)

# What torch calls by the same name, or by another, and does likewise.
_OF_ONE = """
    abs absolute arccos arccosh arcsin arcsinh arctan arctanh acos acosh asin asinh atan atanh
    ceil conj cos cosh deg2rad exp exp2 expm1 fix:trunc floor i0 imag invert:bitwise_not
    bitwise_not bitwise_invert:bitwise_not isfinite isinf isnan isneginf isposinf log log10 log1p
    log2 logical_not negative positive rad2deg degrees:rad2deg radians:deg2rad real reciprocal
    rint:round sign signbit sin sinc sinh sqrt square tan tanh trunc angle fabs:abs
    iscomplexobj:is_complex argwhere isreal
"""
_OF_TWO = """
    add arctan2 atan2:arctan2 bitwise_and bitwise_or bitwise_xor copysign divide equal:eq
    float_power floor_divide fmax fmin fmod gcd greater greater_equal heaviside hypot lcm ldexp
    less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor maximum minimum
    mod:remainder multiply nextafter not_equal power:pow pow remainder subtract true_divide
    left_shift:bitwise_left_shift right_shift:bitwise_right_shift bitwise_left_shift
    bitwise_right_shift
"""


def _names(text: str) -> dict[str, str]:
    return {name: other or name for name, _, other in (w.partition(":") for w in text.split())}


def _of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_tensors(x: Any) -> Any:
        return function(tensor(x))

    return on_tensors


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_tensors(x1: Any, x2: Any) -> Any:
        return function(*pair(x1, x2))

    return on_tensors


FUNCTIONS.update({name: _of_one(getattr(torch, own)) for name, own in _names(_OF_ONE).items()})
FUNCTIONS.update({name: _of_two(getattr(torch, own)) for name, own in _names(_OF_TWO).items()})


# Reductions.


@_known("sum")
def sum_(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    a = tensor(a)
    axes = axes_of(a, axis)
    kind = kind_of(dtype)
    if not axes:  # torch takes no axes for all of them
        return a.to(kind) if kind is not None else a
    return torch.sum(a, axes, keepdim=keepdims, dtype=kind)


@_known()
def prod(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    a = tensor(a)
    if axis is None and not keepdims:
        return torch.prod(a, dtype=kind_of(dtype))
    for each in sorted(axes_of(a, axis), reverse=True):
        a = torch.prod(a, each, keepdim=keepdims, dtype=kind_of(dtype))
    return a


@_known()
def mean(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    a = real(a)
    axes = axes_of(a, axis)
    return torch.mean(a, axes, keepdim=keepdims, dtype=kind_of(dtype)) if axes else a


def _extreme(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_tensors(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
        a = tensor(a)
        axes = axes_of(a, axis)
        return function(a, axes, keepdim=keepdims) if axes else a

    return on_tensors


_known("max", "amax")(_extreme(torch.amax))
_known("min", "amin")(_extreme(torch.amin))


def _of_truth(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_tensors(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
        a = tensor(a) != 0
        axes = axes_of(a, axis)
        return function(a, axes, keepdim=keepdims) if axes else a

    return on_tensors


_known("any")(_of_truth(torch.any))
_known("all")(_of_truth(torch.all))


def _spread(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_tensors(
        a: Any, axis: Any = None, dtype: Any = None, ddof: int = 0, keepdims: bool = False
    ) -> Any:
        a = real(a) if dtype is None else tensor(a).to(kind_of(dtype))
        axes = axes_of(a, axis)
        if not axes:
            return torch.zeros_like(a)
        return function(a, axes, correction=ddof, keepdim=keepdims)

    return on_tensors


_known("std")(_spread(torch.std))
_known("var")(_spread(torch.var))


def _where_found(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_tensors(a: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        a = tensor(a)
        if a.dtype == torch.bool:  # torch orders no truth values
            a = a.to(torch.uint8)
        return function(a, dim=axis, keepdim=keepdims)

    return on_tensors


_known("argmax")(_where_found(torch.argmax))
_known("argmin")(_where_found(torch.argmin))


def _running(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_tensors(a: Any, axis: int | None = None, dtype: Any = None) -> Any:
        return function(*_along_one(a, axis), dtype=kind_of(dtype))

    return on_tensors


_known("cumsum")(_running(torch.cumsum))
_known("cumprod")(_running(torch.cumprod))


@_known()
def count_nonzero(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return sum_(tensor(a) != 0, axis, keepdims=keepdims)


@_known()
def nansum(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    a = tensor(a)
    return sum_(torch.where(torch.isnan(a), 0, a), axis, dtype, keepdims)


@_known()
def nanmean(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    a = real(a)
    n = sum_(~torch.isnan(a), axis, keepdims=keepdims)
    return nansum(a, axis, dtype, keepdims) / n


@_known()
def quantile(a: Any, q: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    a = real(a)
    q = torch.as_tensor(q, dtype=a.dtype, device=a.device)
    return torch.quantile(a, q, dim=axis, keepdim=keepdims)


@_known()
def percentile(a: Any, q: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    a = real(a)
    return quantile(a, torch.as_tensor(q, dtype=a.dtype, device=a.device) / 100, axis, keepdims)


@_known()
def median(a: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    return quantile(a, 0.5, axis, keepdims)


@_known()
def average(a: Any, axis: int | None = None, weights: Any = None, keepdims: bool = False) -> Any:
    a = real(a)
    if weights is None:
        return mean(a, axis, keepdims=keepdims)
    weights = tensor(weights)
    if weights.shape != a.shape:  # one weight for each place along the axis
        assert axis is not None, "weights of another shape than the values go along one axis"
        weights = weights.reshape([-1 if i == axis % a.ndim else 1 for i in range(a.ndim)])
    total = sum_(weights.expand_as(a), axis, keepdims=keepdims)
    return sum_(a * weights, axis, keepdims=keepdims) / total


@_known()
def ptp(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return FUNCTIONS["max"](a, axis, keepdims) - FUNCTIONS["min"](a, axis, keepdims)


# Products.


@_known()
def dot(a: Any, b: Any) -> Any:
    a, b = pair(a, b)
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    if b.ndim == 1:
        return matmul(a, b)
    dims: Any = ([a.ndim - 1], [b.ndim - 2])  # torch says int alone
    return torch.tensordot(*together(a, b), dims=dims)


@_known()
def matmul(x1: Any, x2: Any) -> Any:
    return torch.matmul(*together(x1, x2))


@_known()
def vdot(a: Any, b: Any) -> Any:
    a, b = together(a, b)
    return torch.vdot(a.reshape(-1), b.reshape(-1))


@_known()
def inner(a: Any, b: Any) -> Any:
    return torch.inner(*together(a, b))


@_known()
def outer(a: Any, b: Any) -> Any:
    a, b = pair(a, b)
    return a.reshape(-1, 1) * b.reshape(1, -1)


@_known()
def kron(a: Any, b: Any) -> Any:
    return torch.kron(*together(a, b))


@_known()
def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if not isinstance(axes, int):
        axes = [[n] if isinstance(n, int) else list(n) for n in axes]
    return torch.tensordot(*together(a, b), dims=axes)


@_known()
def einsum(subscripts: str, *operands: Any) -> Any:
    return torch.einsum(subscripts, *of_one_type(operands))


@_known()
def cross(a: Any, b: Any, axis: int = -1) -> Any:
    return torch.linalg.cross(*together(a, b), dim=axis)


# Choosing.


@_known()
def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    condition = tensor(condition) != 0
    if x is None and y is None:
        return torch.where(condition)
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return torch.where(
            condition, *(tensor(v) if isinstance(v, (tuple, list)) else v for v in (x, y))
        )
    return torch.where(condition, *pair(x, y))


@_known()
def clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    a = tensor(a)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low = None if low is None else torch.as_tensor(low, device=a.device)
        high = None if high is None else torch.as_tensor(high, device=a.device)
    return a.clone() if low is None and high is None else torch.clamp(a, low, high)


@_known()
def take(a: Any, indices: Any, axis: int | None = None, mode: str = "raise") -> Any:
    a = tensor(a)
    if axis is None:
        a = a.reshape(-1)
    axis = 0 if axis is None else axis
    indices = torch.as_tensor(tensor(indices), device=a.device).long()
    n = a.shape[axis]
    if mode == "clip":
        indices = indices.clamp(0, n - 1)
    indices = torch.where(indices < 0, indices + n, indices) if mode != "wrap" else indices % n
    along = axis % a.ndim
    picked = torch.index_select(a, along, indices.reshape(-1))
    return picked.reshape((*a.shape[:along], *indices.shape, *a.shape[along + 1 :]))


@_known()
def take_along_axis(arr: Any, indices: Any, axis: int | None = -1) -> Any:
    arr, indices = tensor(arr), tensor(indices).long()
    if axis is None:
        arr, axis = arr.reshape(-1), 0
    return torch.take_along_dim(
        arr, torch.where(indices < 0, indices + arr.shape[axis], indices), axis
    )


@_known()
def select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Any:
    result = default
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        result = where(condition, choice, result)
    return tensor(result)


@_known()
def sort(a: Any, axis: int | None = -1) -> Any:
    return _sorted(a, axis).values


@_known()
def argsort(a: Any, axis: int | None = -1, kind: Any = None, stable: bool = True) -> Any:
    return _sorted(a, axis).indices


def _sorted(a: Any, axis: int | None) -> Any:
    """Returns torch's pair of sorted values and where they were; equal ones keep their order."""
    a, dim = _along_one(a, axis)
    return torch.sort(a, dim=dim, stable=True)


def _along_one(a: Any, axis: int | None) -> Any:
    """Returns a tensor and an axis of it; without one, all in a row."""
    a = tensor(a)
    return (a.reshape(-1), 0) if axis is None else (a, axis)


@_known()
def searchsorted(a: Any, v: Any, side: str = "left") -> Any:
    a = tensor(a)
    return torch.searchsorted(
        a.contiguous(), torch.as_tensor(v, device=a.device).contiguous(), side=side
    )


@_known()
def nonzero(a: Any) -> Any:
    return torch.nonzero(tensor(a), as_tuple=True)


@_known()
def nan_to_num(x: Any, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    return torch.nan_to_num(tensor(x), nan, posinf, neginf)


@_known("round", "around")
def round_(a: Any, decimals: int = 0) -> Any:
    return torch.round(tensor(a), decimals=decimals)


@_known()
def isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    return torch.isclose(*together(a, b), rtol=rtol, atol=atol, equal_nan=equal_nan)


@_known()
def allclose(
    a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    return bool(isclose(a, b, rtol, atol, equal_nan).all())


@_known()
def array_equal(a1: Any, a2: Any) -> bool:
    a1, a2 = pair(a1, a2)
    return a1.shape == a2.shape and bool((a1 == a2).all())


@_known()
def diff(a: Any, n: int = 1, axis: int = -1) -> Any:
    return torch.diff(tensor(a), n, axis)


@_known("trapz", "trapezoid")
def trapezoid(y: Any, x: Any = None, dx: float = 1.0, axis: int = -1) -> Any:
    y = real(y)
    return (
        torch.trapezoid(y, dx=dx, dim=axis)
        if x is None
        else torch.trapezoid(y, tensor(x), dim=axis)
    )


# Linear algebra and Fourier transforms.


def _of_real(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_tensors(a: Any, *args: Any, **kwargs: Any) -> Any:
        return function(real(a), *args, **kwargs)

    return on_tensors


def _along(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets what torch calls `dim` be `axis` or `axes`, as in numpy."""

    def on_tensors(a: Any, n: Any = None, axis: Any = None, norm: Any = None, **kwargs: Any) -> Any:
        axis = kwargs.pop("axes", axis)
        settings = {} if axis is None else {"dim": axis}
        return function(real(a), kwargs.pop("s", n), norm=norm, **settings, **kwargs)

    return on_tensors


_LINALG = """
    cholesky det eigh eigvalsh inv matrix_power matrix_rank pinv qr slogdet solve svdvals cond eig
    eigvals
"""
_FFT = "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn"

LINALG: Table = {name: _of_real(getattr(torch.linalg, name)) for name in _LINALG.split()}
FFT: Table = {name: _along(getattr(torch.fft, name)) for name in _FFT.split()}


@entering(LINALG)()
def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    a = real(a)
    return torch.linalg.svd(a, full_matrices) if compute_uv else torch.linalg.svdvals(a)


@entering(LINALG)()
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    x = real(x)
    if axis is None and ord is None:  # of all entries, whatever their shape
        n = torch.linalg.vector_norm(x)
        return n.reshape((1,) * x.ndim) if keepdims else n
    return torch.linalg.norm(x, ord, axis, keepdims)
