"""Layers that move, join or combine items of the data stack; `combinators` shows them."""

from typing import Any

import torch

from trax_torch import _nest
from trax_torch.layers.base import Fn, Layer, PureLayer


def Select(indices: Any, n_in: int | None = None, name: str | None = None) -> PureLayer:
    """Returns a layer that copies, reorders or drops items of the stack.

    Args:
      indices: positions from the top, 0 first; one for each output.
      n_in: how many items it takes; by default `max(indices) + 1`.
      name: what it prints as; by default the indices.

    Raises:
      ValueError: if an index is not below `n_in`.

    Example:
      >>> Select([1, 1, 0])(('a', 'b'))
      ('b', 'b', 'a')

    Source: Trax `layers/combinators.py::Select`.
    """
    indices = tuple(indices)
    n_in = int(max(indices) + 1 if n_in is None else n_in)
    if any(not 0 <= i < n_in for i in indices):
        raise ValueError(f"Select takes {n_in} items, so indices are below that; got {indices}.")
    name = name or f"Select{list(indices)}".replace(" ", "")
    return PureLayer(_Pick(indices), n_in=n_in, n_out=len(indices), name=name)


class _Pick:
    def __init__(self, indices: tuple[int, ...]):
        self.indices = indices

    def __call__(self, xs: Any) -> Any:
        xs = xs if isinstance(xs, (tuple, list)) else (xs,)
        picked = tuple(xs[i] for i in self.indices)
        return picked[0] if len(picked) == 1 else picked


def Drop() -> PureLayer:
    """Returns a layer that drops the top item."""
    return Fn("Drop", _nothing, n_out=0)


def Dup() -> PureLayer:
    """Returns a layer that copies the top item."""
    return Select([0, 0], name="Dup")


def Swap() -> PureLayer:
    """Returns a layer that swaps the two top items."""
    return Select([1, 0], name="Swap")


class Concatenate(Layer):
    """Joins `n_items` tensors along an axis.

    Args:
      n_items: how many.
      axis: along which; the last by default.
    """

    def __init__(self, n_items: int = 2, axis: int = -1):
        name = "Concatenate" if axis == -1 else f"Concatenate_axis{axis}"
        super().__init__(n_in=n_items, name=name)
        self._axis = axis

    def forward(self, x: Any) -> torch.Tensor:
        """Returns the joined tensor."""
        return torch.cat((x,) if self._n_in == 1 else x, dim=self._axis)


class Split(Layer):
    """Splits a tensor into `n_items` equal parts along an axis.

    Args:
      n_items: how many.
      axis: along which; the last by default.

    Raises:
      LayerError: if the axis cannot be divided evenly.
    """

    def __init__(self, n_items: int = 2, axis: int = -1):
        super().__init__(n_out=n_items)
        self._axis = axis

    def forward(self, x: torch.Tensor) -> Any:
        """Returns the parts, first to last."""
        size = x.shape[self._axis]
        if size % self._n_out:
            raise ValueError(
                f"Split needs an axis that {self._n_out} divides; axis {self._axis} has {size}."
            )
        parts = torch.chunk(x, self._n_out, dim=self._axis)
        return parts[0] if self._n_out == 1 else tuple(parts)


def Add() -> PureLayer:
    """Returns a layer that adds two tensors."""
    return Fn("Add", _add)


def SubtractTop() -> PureLayer:
    """Returns a layer that subtracts the top item from the second."""
    return Fn("SubtractTop", _subtract_top)


def Multiply() -> PureLayer:
    """Returns a layer that multiplies two tensors."""
    return Fn("Multiply", _multiply)


def Gate() -> PureLayer:
    """Returns a layer that mixes two tensors: gate * memory + (1 - gate) * candidate.

    Its inputs are memory, gate and candidate, in this order.

    Example:
      >>> Gate()((torch.tensor(4.), torch.tensor(.75), torch.tensor(8.)))
      tensor(5.)

    Source: Trax `layers/combinators.py::Gate`; Srivastava et al. 2015, arXiv:1505.00387.
    """
    return Fn("Gate", _gate)


def FlattenList() -> PureLayer:
    """Returns a layer that turns nested lists and tuples into one flat tuple.

    Example:
      >>> FlattenList()(['a', ('b', ['c'])])
      ('a', 'b', 'c')
    """
    return PureLayer(_flat, name="FlattenList")


# Named functions, so that layers pickle.


def _nothing(x: Any) -> tuple[()]:
    return ()


def _add(x0: Any, x1: Any) -> Any:
    return x0 + x1


def _subtract_top(x0: Any, x1: Any) -> Any:
    return x1 - x0


def _multiply(x0: Any, x1: Any) -> Any:
    return x0 * x1


def _gate(memory: Any, gate: Any, candidate: Any) -> Any:
    return gate * memory + (1.0 - gate) * candidate


def _flat(nest: Any) -> tuple[Any, ...]:
    return tuple(_nest.leaves(nest))
