"""Choice and repetition as functions: what JAX's programs write for `if` and `for`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trax_torch import _nest
from trax_torch.fastmath import numpy as jnp
from trax_torch.fastmath._nested import nested_map_multiarg

_Fn = Callable[..., Any]


def cond(pred: Any, *args: Any, **named: Any) -> Any:
    """Returns what one of two functions gives.

    Args:
      pred: a truth value; which function.
      args: `true_fun, false_fun, *operands`, or JAX's older
        `true_operand, true_fun, false_operand, false_fun`, also by name.

    Raises:
      TypeError: if it is neither.

    Example:
      >>> cond(True, lambda x: x + 1, lambda x: x - 1, 5)
      6
      >>> cond(False, 5, lambda x: x + 1, 7, lambda x: x - 1)
      6

    Source: Trax `fastmath/ops.py::cond`. Python chooses; in `torch.compile`, `torch.cond`.
    """
    if named.keys() == {"true_operand", "true_fun", "false_operand", "false_fun"} and not args:
        args = tuple(named[k] for k in ("true_operand", "true_fun", "false_operand", "false_fun"))
    elif named:
        args = (named.pop("true_fun", None), named.pop("false_fun", None), *args)
        args = (*args, *named.pop("operands", ()))
    if len(args) == 4 and callable(args[1]) and callable(args[3]) and not callable(args[0]):
        true_operand, true_fun, false_operand, false_fun = args
        return cond(
            pred, lambda a, b: true_fun(a), lambda a, b: false_fun(b), true_operand, false_operand
        )
    if named or len(args) < 2 or not (callable(args[0]) and callable(args[1])):
        raise TypeError(
            f"cond takes (pred, true_fun, false_fun, *operands); got {len(args)} arguments after "
            f"pred{', and ' + ', '.join(named) if named else ''}. Give two functions first."
        )
    true_fun, false_fun, *operands = args
    if isinstance(pred, Tensor) and torch.compiler.is_compiling():
        return torch.cond(pred, true_fun, false_fun, tuple(operands))
    return (true_fun if bool(pred) else false_fun)(*operands)


def scan(
    f: _Fn, init: Any, xs: Any, length: int | None = None, reverse: bool = False
) -> tuple[Any, Any]:
    """Returns `(carry, ys)`: a function goes along the first axis and hands a value on.

    Args:
      f: `f(carry, x)` returns `(carry, y)`.
      init: the first carry, any nest.
      xs: a nest of arrays or tensors, of which `x` are the slices; None for none.
      length: how many times, where there are no `xs`.
      reverse: whether to begin at the end; `ys` are in the order of `xs` all the same.

    Raises:
      ValueError: if neither `xs` nor `length` says how often.

    Example:
      >>> scan(lambda total, x: (total + x, total + x), 0, np.arange(4))[1]
      Array([0, 1, 3, 6])

    Source: Trax `fastmath/ops.py::scan`.
    """
    leaves = [x for x in _nest.leaves(xs) if x is not None]
    n = length if length is not None else len(leaves[0]) if leaves else None
    if n is None:
        raise ValueError("scan goes along xs, or `length` times; got neither. Give one of them.")
    ys: list[Any] = [None] * n
    carry = init
    for i in reversed(range(n)) if reverse else range(n):
        carry, ys[i] = f(carry, _nest.map_leaves(lambda x: None if x is None else x[i], xs))  # noqa: B023
    return carry, _stacked(ys)


def map(f: _Fn, xs: Any) -> Any:
    """Returns what a function gives for each slice of the first axis, stacked.

    Example:
      >>> map(lambda x: x * x, np.arange(3))
      Array([0, 1, 4])

    Source: Trax `fastmath/ops.py::map`.
    """
    return scan(lambda carry, x: (carry, f(x)), None, xs)[1]


def fori_loop(lower: int, upper: int, body_fn: _Fn, init_val: Any) -> Any:
    """Returns what is left of `value = body_fn(i, value)` for i from `lower` up to `upper`.

    Example:
      >>> fori_loop(0, 5, lambda i, total: total + i, 0)
      10

    Source: Trax `fastmath/ops.py::fori_loop`.
    """
    value = init_val
    for i in range(lower, upper):
        value = body_fn(i, value)
    return value


def _stacked(ys: list[Any]) -> Any:
    return nested_map_multiarg(lambda *slices: jnp.stack(slices), *ys) if ys else None
