"""Layers made of layers: in series, in parallel, and the moves of the data stack between them."""

from collections.abc import Iterator
from typing import Any

import torch

from trax_torch.layers import _stack, base
from trax_torch.layers.base import Fn, Layer, PureLayer


class Serial(Layer):
    """Runs layers one after another over one data stack.

    Each sublayer takes its `n_in` items from the top of the stack and puts its `n_out` results
    there. So a Serial may be given more items than it takes: what it does not touch comes out below
    its results. Without sublayers it passes one item on.

    Args:
      *sublayers: layers, or (nested) lists of them; modules that are no layers are wrapped.
        A None alone stands for nothing.
      name: what it prints as.
      sublayers_to_print: what to print instead of the sublayers.

    Example:
      >>> Serial(Add(), Fn('Double', lambda x: 2 * x))((torch.tensor(1), torch.tensor(2), 'rest'))
      (tensor(6), 'rest')

    Source: Trax `layers/combinators.py::Serial`.
    """

    def __init__(self, *sublayers: Any, name: str | None = None, sublayers_to_print: Any = None):
        super().__init__(name=name, sublayers_to_print=sublayers_to_print)
        layers = ensure_flat(sublayers)
        self._set_sublayers(layers)
        if layers:
            self._n_in, self._n_out = _stack.n_inputs_n_outputs([(x.n_in, x.n_out) for x in layers])

    def forward(self, x: Any) -> Any:
        """Returns the stack that the last sublayer leaves."""
        stack = x
        for name in self._order:
            layer: Any = self._modules[name]
            n_in = layer._n_in
            outputs = base.call(layer, _stack.take(stack, n_in))
            stack = _stack.put(outputs, stack, n_in)
        return stack


class Parallel(Layer):
    """Runs layers side by side, each on the next `n_in` of the inputs.

    Args:
      *sublayers: at least two; None or an empty list passes one input on.
      name: what it prints as.

    Raises:
      ValueError: if there are fewer than two, or one takes no input.

    Example:
      >>> Parallel(None, Add())((torch.tensor(1), torch.tensor(2), torch.tensor(3)))
      (tensor(1), tensor(5))

    Source: Trax `layers/combinators.py::Parallel`.
    """

    def __init__(self, *sublayers: Any, name: str | None = None):
        super().__init__(name=name)
        if len(sublayers) < 2:
            raise ValueError(f"Parallel needs at least two layers; got {len(sublayers)}.")
        layers = [
            Serial(x) if x is None or isinstance(x, (tuple, list)) else base.as_layer(x)
            for x in sublayers
        ]
        for layer in layers:
            if layer.n_in == 0:
                raise ValueError(f"Each layer of Parallel takes an input, but {layer} takes none.")
        self._set_sublayers(layers)
        self._n_in = sum(layer.n_in for layer in layers)
        self._n_out = sum(layer.n_out for layer in layers)

    def forward(self, x: Any) -> Any:
        """Returns the outputs of all sublayers, the first one's first."""
        outputs: list[Any] = []
        start = 0
        for name in self._order:
            layer: Any = self._modules[name]
            result = base.call(layer, _stack.take(x[start:], layer._n_in))
            if layer._n_out == 1:
                outputs.append(result)
            else:
                outputs.extend(result)
            start += layer._n_in
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def Branch(*layers: Any, name: str = "Branch") -> Layer:
    """Returns a layer that runs several layers on copies of the same inputs.

    Args:
      *layers: each takes as many items from the top of the stack as it needs, all from the same
        top; None or an empty list passes the top item on. One layer alone is returned as it is.
      name: what it prints as.

    Example:
      >>> Branch(None, Add())((torch.tensor(1), torch.tensor(2)))
      (tensor(1), tensor(3))

    Source: Trax `layers/combinators.py::Branch`.
    """
    if len(layers) == 1:
        return layers[0]
    parallel = Parallel(*layers)
    indices = [i for layer in parallel.sublayers for i in range(layer.n_in)]
    return Serial(Select(indices), parallel, name=name, sublayers_to_print=layers)


def Residual(*layers: Any, shortcut: Any = None) -> Layer:
    """Returns a layer that adds its input, or `shortcut` of it, to what layers in series make of it.

    Example:
      >>> Residual(Fn('Double', lambda x: 2 * x))(torch.tensor(3.))
      tensor(9.)

    Source: Trax `layers/combinators.py::Residual`.
    """
    flat = ensure_flat(layers)
    layer = flat[0] if len(flat) == 1 else Serial(flat)
    return Serial(Branch(shortcut, layer), Add())


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
    if n_in is None:
        n_in = max(indices) + 1
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
        return torch.cat(x, dim=self._axis)


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


def ensure_flat(layers: Any) -> list[Layer]:
    """Returns nested lists of layers as one flat list, each item a layer; None alone is nothing.

    Raises:
      TypeError: if an item is neither a layer nor a module.
    """
    if len(layers) == 1 and layers[0] is None:
        return []

    def flat(items: Any) -> Iterator[Any]:
        for item in items:
            if isinstance(item, (tuple, list)):
                yield from flat(item)
            else:
                yield item

    return [base.as_layer(layer) for layer in flat(layers)]


# Named functions, so that layers pickle.


def _nothing(x: Any) -> tuple[()]:
    return ()


def _add(x0: Any, x1: Any) -> Any:
    return x0 + x1


def _subtract_top(x0: Any, x1: Any) -> Any:
    return x1 - x0


def _multiply(x0: Any, x1: Any) -> Any:
    return x0 * x1
