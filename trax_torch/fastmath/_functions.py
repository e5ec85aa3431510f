"""Functions of Trax's `fastmath` that numpy has under no name: alike on arrays and on tensors."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from trax_torch import _nest
from trax_torch.fastmath import _arrays
from trax_torch.fastmath import numpy as jnp

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _types_out_as_in(function: _Function) -> _Function:
    """Lets a function on tensors take arrays and numbers too, and answer arrays for them."""

    @functools.wraps(function)
    def on_either(*args: Any, **kwargs: Any) -> Any:
        like = _arrays.first_tensor((args, kwargs))
        result = function(*_arrays.as_tensors(args, like), **_arrays.as_tensors(kwargs, like))
        if like is not None or torch.compiler.is_compiling():
            return result
        return _nest.map_leaves(_to_array, result)

    return cast(_Function, on_either)


def _to_array(x: Any) -> Any:
    return _arrays.of_torch(x) if isinstance(x, Tensor) else x


# Of one number, or over an axis.


@_types_out_as_in
def logsumexp(
    a: Any, axis: Any = None, b: Any = None, keepdims: bool = False, return_sign: bool = False
) -> Any:
    """Returns log(sum(b * exp(a))) over axes, without overflow.

    Args:
      a: numbers.
      axis: one axis, or several; all by default.
      b: weights, which fit `a`; 1 by default.
      keepdims: whether the axes stay, with length 1.
      return_sign: whether to answer a pair, with the sign of the sum; needed where it is below 0.

    Example:
      >>> [round(float(x), 2) for x in logsumexp(np.float32([[1000, 1000], [0, 0]]), axis=-1)]
      [1000.69, 0.69]

    Source: JAX `scipy.special.logsumexp`.
    """
    a = jnp.asarray(torch.as_tensor(a)) + 0.0
    axes = tuple(range(a.ndim)) if axis is None else axis
    if b is None and not return_sign:
        return torch.logsumexp(a, axes, keepdims) if a.ndim else a
    top = torch.amax(a, axes, keepdim=True).detach()
    top = torch.where(torch.isfinite(top), top, 0.0)
    total = torch.sum((1.0 if b is None else b) * torch.exp(a - top), axes, keepdim=True)
    logs = top + torch.log(torch.abs(total) if return_sign else total)
    logs, signs = (x if keepdims else jnp.squeeze(x, axes) for x in (logs, torch.sign(total)))
    return (logs, signs) if return_sign else logs


@_types_out_as_in
def expit(x: Any) -> Any:
    """Returns 1 / (1 + exp(-x)).

    Example:
      >>> expit(np.float32([0, 100]))
      Array([0.5, 1. ], dtype=float32)
    """
    return torch.sigmoid(torch.as_tensor(x))


def sigmoid(x: Any) -> Any:
    """Returns 1 / (1 + exp(-x)); the same as `expit`."""
    return expit(x)


@_types_out_as_in
def erf(x: Any) -> Any:
    """Returns the error function of x.

    Example:
      >>> float(erf(0.0))
      0.0
    """
    return torch.erf(torch.as_tensor(x))


def lt(x: Any, y: Any) -> Any:
    """Returns where x is less than y."""
    return jnp.less(x, y)


def stop_gradient(x: Any) -> Any:
    """Returns a nest with its tensors cut off from what they were computed of.

    Example:
      >>> w = torch.ones(1, requires_grad=True)
      >>> stop_gradient({'w': w})['w'].requires_grad
      False
    """
    return _nest.map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, x)


# In order.


@_types_out_as_in
def top_k(operand: Any, k: int) -> Any:
    """Returns the k greatest entries of the last axis, greatest first, and where they are.

    Ties go to the lower place.

    Example:
      >>> top_k(np.float32([1, 5, 3, 5]), 3)
      (Array([5., 5., 3.], dtype=float32), Array([1, 3, 2]))
    """
    values, places = torch.sort(torch.as_tensor(operand), dim=-1, descending=True, stable=True)
    return values[..., :k], places[..., :k]


@_types_out_as_in
def sort_key_val(keys: Any, values: Any, dimension: int = -1) -> Any:
    """Returns keys in order along an axis, and values in the order of their keys.

    Example:
      >>> sort_key_val(np.array([3, 1, 2]), np.array([30, 10, 20]))
      (Array([1, 2, 3]), Array([10, 20, 30]))
    """
    keys, order = torch.sort(keys, dim=dimension, stable=True)
    return keys, torch.take_along_dim(values, order, dimension)


# Other values at some places of a copy.


def index_update(x: Any, idx: Any, y: Any) -> Any:
    """Returns a copy of x with y at the places of an index, `x[idx] = y`.

    Example:
      >>> index_update(np.zeros(3), jnp.index_exp[1:], 7)
      Array([0., 7., 7.], dtype=float32)
    """
    return _changed(x, idx, y, None)


def index_add(x: Any, idx: Any, y: Any) -> Any:
    """Returns a copy of x with y added at the places of an index, as often as each occurs.

    Example:
      >>> index_add(np.zeros(3), np.array([1, 1, 2]), 1)
      Array([0., 2., 1.], dtype=float32)
    """
    return _changed(x, idx, y, "sum")


def index_min(x: Any, idx: Any, y: Any) -> Any:
    """Returns a copy of x with the least of it and y at the places of an index."""
    return _changed(x, idx, y, "amin")


def index_max(x: Any, idx: Any, y: Any) -> Any:
    """Returns a copy of x with the greatest of it and y at the places of an index."""
    return _changed(x, idx, y, "amax")


@_types_out_as_in
def _changed(x: Any, idx: Any, y: Any, by: str | None) -> Any:
    x = torch.as_tensor(x)
    idx = tuple(idx) if isinstance(idx, list) else idx
    y = torch.as_tensor(y, dtype=x.dtype, device=x.device)
    if by is None:
        x = x.clone()
        x[idx] = y
        return x
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)[idx]
    y = y.expand(places.shape).reshape(-1)
    return x.reshape(-1).scatter_reduce(0, places.reshape(-1), y, by).reshape(x.shape)


# Slices whose begin is known only when they are taken.


@_types_out_as_in
def dynamic_slice(operand: Any, start_indices: Any, slice_sizes: Any) -> Any:
    """Returns a slice of given sizes; a begin too far out is drawn in, so that it fits.

    Example:
      >>> dynamic_slice(np.arange(5), (4,), (2,))
      Array([3, 4])

    Source: JAX `lax.dynamic_slice`.
    """
    for axis, size in enumerate(slice_sizes):
        places = _begin(operand, start_indices[axis], size, axis) + torch.arange(
            size, device=operand.device
        )
        operand = torch.index_select(operand, axis, places)
    return operand


def dynamic_slice_in_dim(operand: Any, start_index: Any, slice_size: int, axis: int = 0) -> Any:
    """Returns a slice of one axis; see `dynamic_slice`."""
    starts: list[Any] = [0] * operand.ndim
    sizes = list(operand.shape)
    starts[axis], sizes[axis] = start_index, slice_size
    return dynamic_slice(operand, starts, sizes)


@_types_out_as_in
def dynamic_update_slice(operand: Any, update: Any, start_indices: Any) -> Any:
    """Returns a copy with another part from a begin on; one too far out is drawn in.

    Example:
      >>> dynamic_update_slice(np.zeros(4), np.ones(2), (9,))
      Array([0., 0., 1., 1.], dtype=float32)

    Source: JAX `lax.dynamic_update_slice`.
    """
    update = torch.as_tensor(update, dtype=operand.dtype, device=operand.device)
    grids = [
        _begin(operand, start_indices[axis], size, axis) + torch.arange(size, device=operand.device)
        for axis, size in enumerate(update.shape)
    ]
    return operand.index_put(torch.meshgrid(*grids, indexing="ij"), update)


def dynamic_update_slice_in_dim(operand: Any, update: Any, start_index: Any, axis: int) -> Any:
    """Returns a copy with another part in one axis; see `dynamic_update_slice`."""
    starts: list[Any] = [0] * operand.ndim
    starts[axis] = start_index
    return dynamic_update_slice(operand, update, starts)


def _begin(operand: Tensor, start: Any, size: int, axis: int) -> Tensor:
    return torch.as_tensor(start, device=operand.device).clamp(0, operand.shape[axis] - size)


def dataset_as_numpy(ds: Any, batch_size: int | None = None) -> Any:
    """Yields the examples of a data set with arrays of numpy in the place of tensors.

    Args:
      ds: any iterable of nests: a `DataLoader`, a set of Hugging Face's, a `tf.data.Dataset`.
      batch_size: Trax's; it read as many examples at once. It has no effect here.

    Example:
      >>> list(dataset_as_numpy([{'x': torch.ones(1)}]))
      [{'x': array([1.], dtype=float32)}]
    """
    for example in ds:
        yield _nest.map_leaves(_as_numpy, example)


def _as_numpy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return _nest.to_arrays(x)
    return x.numpy() if callable(getattr(x, "numpy", None)) else x
