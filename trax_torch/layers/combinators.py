"""Layers made of layers: in series, in parallel, conditionally, in chunks.

The layers that only move items of the data stack, and those that remember, have rooms of their own
and are shown here.
"""

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch

from trax_torch import _nest
from trax_torch.layers import _reversible, base
from trax_torch.layers._combinators import (
    Add,
    Cache,
    Concatenate,
    Drop,
    Dup,
    FlattenList,
    Gate,
    Multiply,
    Scan,
    Select,
    Split,
    SubtractTop,
    Swap,
)
from trax_torch.layers._protocol import stack as _stack
from trax_torch.layers.base import Layer, PureLayer, as_layer

__all__ = [
    "Add",
    "BatchLeadingAxes",
    "Bidirectional",
    "Branch",
    "Cache",
    "Chunk",
    "Concatenate",
    "Cond",
    "Drop",
    "Dup",
    "FlattenList",
    "Gate",
    "Multiply",
    "Parallel",
    "Residual",
    "Scan",
    "Select",
    "Serial",
    "SerialWithSideOutputs",
    "Split",
    "SubtractTop",
    "Swap",
    "ensure_flat",
    "inputs_from_stack",
    "outputs_onto_stack",
]

inputs_from_stack, outputs_onto_stack = _stack.take, _stack.put


class Serial(Layer):
    """Runs layers one after another over one data stack.

    Each sublayer takes its `n_in` items from the top of the stack and puts its `n_out` results
    there. So a Serial may be given more items than it takes: what it does not touch comes out below
    its results. Without sublayers it passes one item on. Reversible layers in a row keep no
    activations for the backward pass; see `layers.reversible`.

    Args:
      *sublayers: layers, or (nested) lists of them; modules that are no layers are wrapped.
        A None alone stands for nothing.
      name: what it prints as.
      sublayers_to_print: what to print instead of the sublayers.

    Example:
      >>> double = base.Fn('Double', lambda x: 2 * x)
      >>> Serial(Add(), double)((torch.tensor(1), torch.tensor(2), 'rest'))
      (tensor(6), 'rest')

    Source: Trax `layers/combinators.py::Serial`.
    """

    _runs: tuple[tuple[int, int], ...] = ()  # where reversible layers stand in a row

    def __init__(self, *sublayers: Any, name: str | None = None, sublayers_to_print: Any = None):
        super().__init__(name=name, sublayers_to_print=sublayers_to_print)
        layers = ensure_flat(sublayers)
        self._set_sublayers(layers)
        if layers:
            self._n_in, self._n_out = _stack.n_inputs_n_outputs([(x.n_in, x.n_out) for x in layers])

    def forward(self, x: Any) -> Any:
        """Returns the stack that the last sublayer leaves."""
        if self._runs:
            return _reversible.in_series(self.sublayers, self._runs, x)
        if self._place.stretches:
            return self._in_blocks(x)
        stack = x
        for name in self._order:
            layer: Any = self._modules[name]
            n_in = layer._n_in
            if n_in == 1 and not isinstance(stack, (tuple, list)):  # most often, and quicker
                stack = base.call(layer, stack)
                if not isinstance(stack, torch.Tensor):
                    stack = _stack.put(stack, (), 0)
            else:
                outputs = base.call(layer, _stack.take(stack, n_in))
                stack = _stack.put(outputs, stack, n_in)
        return stack

    def _in_blocks(self, x: Any) -> Any:
        """Returns the same for a compiler, which is shown which layers are alike."""
        stack, layers = x, self.sublayers
        for start, end, run_block in self._place.stretches:
            block = layers[start:end]
            n_in = block[0]._n_in
            top = _stack.take(stack, n_in)
            outputs = run_block(top, *block) if run_block else base.call(block[0], top)
            stack = _stack.put(outputs, stack, n_in)
        return stack

    def _set_sublayers(self, layers: Any) -> None:
        super()._set_sublayers(layers)
        self._runs = _reversible.find_runs(self.sublayers)


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
            Serial(x) if x is None or isinstance(x, (tuple, list)) else as_layer(x)
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
        result: Layer = layers[0]
        return result
    parallel = Parallel(*layers)
    indices = [i for layer in parallel.sublayers for i in range(layer.n_in)]
    return Serial(Select(indices), parallel, name=name, sublayers_to_print=layers)


def Residual(*layers: Any, shortcut: Any = None) -> Layer:
    """Returns a layer that adds its input, or `shortcut` of it, to what `layers` make of it.

    Example:
      >>> Residual(base.Fn('Double', lambda x: 2 * x))(torch.tensor(3.))
      tensor(9.)

    Source: Trax `layers/combinators.py::Residual`.
    """
    flat = ensure_flat(layers)
    layer = flat[0] if len(flat) == 1 else Serial(flat)
    return Serial(Branch(shortcut, layer), Add())


def SerialWithSideOutputs(layers: Any, n_side_outputs: Any = 1) -> Serial:
    """Returns a layer that runs layers in series and sets some outputs of each aside.

    What is set aside is the end of a layer's outputs. It waits below the stack, the first layer's
    first, and comes out after the last layer's outputs.

    Args:
      layers: a list of layers.
      n_side_outputs: how many outputs of each layer are set aside: an int, or one for each layer.

    Raises:
      ValueError: if there are not as many numbers as layers, or a layer has fewer outputs.

    Example:
      >>> halve = base.Fn('DivMod', lambda x: (x // 2, x % 2), n_out=2)
      >>> SerialWithSideOutputs([halve, halve])(torch.tensor(6))
      (tensor(1), tensor(0), tensor(1))

    Source: Trax `layers/combinators.py::SerialWithSideOutputs`.
    """
    layers = [as_layer(layer) for layer in layers]
    aside = [n_side_outputs] * len(layers) if isinstance(n_side_outputs, int) else n_side_outputs
    if len(aside) != len(layers) or any(
        not 0 <= n <= layer.n_out for n, layer in zip(aside, layers, strict=True)
    ):
        raise ValueError(
            f"SerialWithSideOutputs sets aside at most all outputs of each layer; got "
            f"n_side_outputs={n_side_outputs} for layers with {[x.n_out for x in layers]} outputs."
        )
    arities = [(x.n_in, x.n_out - n) for x, n in zip(layers, aside, strict=True)]
    size, _ = _stack.n_inputs_n_outputs(arities)
    series: list[Layer] = []
    for layer, n in zip(layers, aside, strict=True):
        size += layer.n_out - layer.n_in
        first = layer.n_out - n
        order = [*range(first), *range(layer.n_out, size), *range(first, layer.n_out)]
        series += [layer, Select(order, n_in=size)]
    return Serial(series)


class Cond(Layer):
    """Runs one of two layers, as a third one says.

    `cond` takes the first items and gives one Boolean; the layer that is chosen takes the items
    after them. The other is not run, and its state stays as it is.

    Args:
      cond: a layer with one output, a single Boolean.
      true: the layer for True.
      false: the layer for False, with the same numbers of inputs and outputs; by default it passes
        one item on.
      name: what it prints as.

    Raises:
      ValueError: if the numbers of inputs and outputs do not fit.

    Example:
      >>> negative = base.Fn('IsNegative', lambda x: x < 0)
      >>> Serial(Dup(), Cond(negative, base.Fn('Negate', lambda x: -x)))(torch.tensor(-3))
      tensor(3)

    Source: Trax `layers/combinators.py::Cond`.
    """

    def __init__(self, cond: Any, true: Any, false: Any = None, name: str | None = None):
        super().__init__(name=name)
        cond, true = as_layer(cond), as_layer(true)
        false = Serial() if false is None else as_layer(false)
        if cond.n_out != 1:
            raise ValueError(f"Cond needs a cond with one output, a Boolean; got {cond!r}.")
        if (true.n_in, true.n_out) != (false.n_in, false.n_out):
            raise ValueError(
                f"Cond's two branches need as many inputs, and as many outputs; got true with "
                f"n_in={true.n_in}, n_out={true.n_out} and false with n_in={false.n_in}, n_out="
                f"{false.n_out}. A false branch left out takes and gives one item."
            )
        self._set_sublayers([cond, true, false])
        self._n_in = cond.n_in + true.n_in
        self._n_out = true.n_out

    def forward(self, x: Any) -> Any:
        """Returns the outputs of the branch that `cond` chooses."""
        cond, true, false = self.sublayers
        n_came = len(x) if isinstance(x, (tuple, list)) else 1
        if n_came != self._n_in:
            raise ValueError(
                f"Cond takes {self._n_in} items, {cond.n_in} to choose by and {true.n_in} for the "
                f"branch; got {n_came}."
            )
        choice = base.call(cond, _stack.take(x, cond.n_in))
        items = _stack.put((), x, cond.n_in) if cond.n_in else x
        items = _stack.take(items, true.n_in)
        if self._pass is not None:  # both branches have weights to make
            base.call(false, items)
            return base.call(true, items)
        if isinstance(choice, torch.Tensor) and choice.numel() != 1:
            raise ValueError(
                f"Cond chooses once for all rows, by a single Boolean; got one of shape "
                f"{tuple(choice.shape)}. To choose row by row, use torch.where."
            )
        return base.call(true if bool(choice) else false, items)


def Chunk(layer: Any, chunk_size: int, pass_unchunkable: bool = True) -> Layer:
    """Returns a layer that runs `layer` on chunks of the batch, to save memory.

    A chunk's activations are not kept for the backward pass, but computed again there. In predict
    mode, where there is none, a batch is one chunk.

    Args:
      layer: works row by row, along axis 0.
      chunk_size: rows in a chunk; below 1, `layer` itself is returned.
      pass_unchunkable: a batch that cannot be cut evenly is passed whole; if False, it is refused.

    Source: Trax `layers/combinators.py::Chunk`; Chen et al. 2016, arXiv:1604.06174.
    """
    layer = as_layer(layer)
    if chunk_size < 1:
        result: Layer = layer
        return result
    return Serial(
        _ToChunks(layer.n_in, chunk_size, pass_unchunkable),
        Scan(layer, axis=0, n_carry=0, remat=True),
        PureLayer(_from_chunks, n_in=layer.n_out, n_out=layer.n_out, name="ReshapeFromChunks"),
    )


class BatchLeadingAxes(Layer):
    """Applies a layer to tensors with any number of leading axes, which it makes one batch axis.

    Args:
      layer: takes tensors (batch, ...) and gives one such tensor.
      n_last_axes_to_keep: how many axes after the batch the layer takes; all before are batch.

    Raises:
      ValueError: if the layer has several outputs, or no axis is kept.

    Example:
      >>> count_rows = base.Fn('CountRows', lambda x: x + len(x))
      >>> BatchLeadingAxes(count_rows)(torch.zeros(2, 3, 1, 1)).flatten()
      tensor([6., 6., 6., 6., 6., 6.])

    Source: Trax `layers/combinators.py::BatchLeadingAxes`.
    """

    def __init__(self, layer: Any, n_last_axes_to_keep: int = 1):
        layer = as_layer(layer)
        if layer.n_out != 1 or n_last_axes_to_keep < 1:
            raise ValueError(
                f"BatchLeadingAxes needs a layer with one output and keeps at least one axis; got "
                f"n_out={layer.n_out} and n_last_axes_to_keep={n_last_axes_to_keep}."
            )
        super().__init__(n_in=layer.n_in)
        self._n_last = n_last_axes_to_keep
        self._set_sublayers([layer])

    @property
    def sublayer(self) -> Any:
        """The layer that is applied."""
        return self._modules["0"]

    def forward(self, x: Any) -> torch.Tensor:
        """Returns the layer's output with the leading axes of the inputs."""
        inputs = (x,) if self._n_in == 1 else tuple(x)
        leading = {tuple(t.shape[: -self._n_last]) for t in inputs}
        if len(leading) != 1 or any(t.dim() < self._n_last for t in inputs):
            raise ValueError(
                f"BatchLeadingAxes keeps {self._n_last} axes of its inputs, and those before must "
                f"agree; got shapes {[tuple(t.shape) for t in inputs]}."
            )
        lead = leading.pop()
        batch = math.prod(lead)  # not -1, which an empty tensor leaves open
        flat = tuple(t.reshape(batch, *t.shape[-self._n_last :]) for t in inputs)
        output = base.call(self._modules["0"], flat[0] if self._n_in == 1 else flat)
        result: torch.Tensor = output.reshape(*lead, *output.shape[1:])
        return result


def Bidirectional(forward_layer: Any, axis: int = 1, merge_layer: Any = None) -> Serial:
    """Returns a layer that reads sequences from both ends and joins what it finds.

    The layer for the way back is a copy of `forward_layer`, with weights of its own once they are
    drawn. Predict mode is refused, since the last positions come last: put it in a `Cache`.

    Args:
      forward_layer: such as `GRU(n_units)`.
      axis: the axis of time.
      merge_layer: joins the two outputs; `Concatenate()` by default.

    Source: Trax `layers/combinators.py::Bidirectional`; Schuster and Paliwal 1997.
    """
    forward_layer = as_layer(forward_layer)
    flip = _Flip(axis)
    backward = Serial(flip, copy.deepcopy(forward_layer), flip)
    return Serial(
        Branch(forward_layer, backward),
        Concatenate() if merge_layer is None else merge_layer,
    )


class _Flip(Layer):
    def __init__(self, axis: int):
        super().__init__(name="_FlipAlongTimeAxis")
        self._axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._memory is not None:
            raise ValueError(
                "A Bidirectional layer reads sequences from their end, so it cannot go on where it "
                "left off. Decode in eval mode, or put it in a Cache if its input is known whole."
            )
        return x.flip(self._axis)


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

    return [as_layer(layer) for layer in flat(layers)]


class _ToChunks(Layer):
    def __init__(self, n_items: int, size: int, pass_unchunkable: bool):
        super().__init__(n_in=n_items, n_out=n_items, name="ReshapeToChunks")
        self._size = size
        self._pass_unchunkable = pass_unchunkable

    def forward(self, x: Any) -> Any:
        return _nest.map_leaves(self._cut, x)

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        if self._memory is not None:  # what a layer remembers is of all rows
            return x.unsqueeze(0)
        if batch % self._size == 0:
            result: torch.Tensor = x.unflatten(0, (batch // self._size, self._size))
            return result
        if self._pass_unchunkable:
            return x.unsqueeze(0)
        raise ValueError(
            f"Chunk cuts batches into chunks of {self._size} rows, and this one has {batch}. "
            f"Choose a size that divides it, or pass_unchunkable=True."
        )


def _from_chunks(xs: Any) -> Any:
    return _nest.map_leaves(functools.partial(torch.flatten, start_dim=0, end_dim=1), xs)
