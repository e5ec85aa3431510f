"""Layers whose inputs can be computed from their outputs.

Gomez et al. 2017, arXiv:1707.04585, and Kitaev et al. 2020, arXiv:2001.04451, train deep networks
without keeping what these layers take in. In a `Serial`, two or more of them in a row keep their
outputs alone: the backward pass computes the rest again, layer by layer, with the same random
numbers; hooks inside a layer fire again, too. Called one by one, compiled, under `torch.func`, or
with hooks of their own, they keep activations as any layer. A row has no second derivatives, except
under `torch.func`.

What is computed again is as exact as the sums: to rounding in float32. Sums in bfloat16 are coarse;
under autocast, a stack that begins with an Embedding is in float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from trax_torch import _nest
from trax_torch.layers import _reversible, base
from trax_torch.layers._protocol import stack as _stack
from trax_torch.layers._reversible import Replay, ReversibleLayer
from trax_torch.layers.base import Layer, as_layer
from trax_torch.layers.combinators import Serial
from trax_torch.layers.core import PrintShape

__all__ = [
    "ReversibleConcatenatePair",
    "ReversibleHalfResidual",
    "ReversibleLayer",
    "ReversiblePrintShape",
    "ReversibleReshape",
    "ReversibleSelect",
    "ReversibleSerial",
    "ReversibleSwap",
]


class ReversibleSelect(ReversibleLayer):
    """Copies or reorders items of the stack, and loses none.

    Args:
      indices: positions from the top, 0 first; one for each output.
      n_in: how many items it takes; by default `max(indices) + 1`.
      name: what it prints as; by default the indices.

    Raises:
      ValueError: if an item is in no output, or an index is not below `n_in`.

    Source: Trax `layers/reversible.py::ReversibleSelect`.
    """

    _computes = False

    def __init__(self, indices: Any, n_in: int | None = None, name: str | None = None):
        indices = tuple(indices)
        n_in = int(max(indices) + 1 if n_in is None else n_in)
        if set(indices) != set(range(n_in)):
            raise ValueError(
                f"A reversible Select of {n_in} items has each of 0 to {n_in - 1} among its "
                f"indices, and no others; got {indices}. Select may drop items."
            )
        name = name or f"ReversibleSelect{list(indices)}".replace(" ", "")
        super().__init__(n_in=n_in, n_out=len(indices), name=name)
        self._indices = indices

    def forward(self, x: Any) -> Any:
        """Returns the chosen items."""
        return _pick(x, self._indices)

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns the items in their first order."""
        return _pick(output, [self._indices.index(i) for i in range(self._n_in)])

    def reverse_and_grad(
        self,
        output: Any,
        grad: Any,
        replay: Replay | None,
        params: _reversible.Params = (),
        *,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Any, Any, _reversible.Grads]:
        """Returns the items in their first order; the gradients of an item's copies add up."""
        items = map(_reversible.detached, _reversible.items_of(self.reverse(output)))
        sums: _reversible.Grads = [None] * self._n_in
        for i, g in zip(self._indices, _reversible.items_of(grad), strict=True):
            sums[i] = _reversible.add(sums[i], g)
        return _reversible.packed(items), _reversible.packed(sums), [None] * len(params)


def ReversibleSwap() -> ReversibleSelect:
    """Returns a reversible layer that swaps the two top items."""
    return ReversibleSelect([1, 0], name="ReversibleSwap")


class ReversibleConcatenatePair(ReversibleLayer):
    """Maps (x, y) to twice the two side by side on the last axis, and back.

    Example:
      >>> xy = ReversibleConcatenatePair()((torch.tensor([1.]), torch.tensor([2.])))
      >>> xy
      (tensor([1., 2.]), tensor([1., 2.]))
      >>> ReversibleConcatenatePair().reverse(xy)
      (tensor([1.]), tensor([2.]))

    Source: Trax `layers/reversible.py::ReversibleConcatenatePair`.
    """

    def __init__(self) -> None:
        super().__init__(n_in=2, n_out=2)

    def forward(self, x: Any) -> Any:
        """Returns the pair side by side, twice."""
        both = torch.cat(tuple(x), dim=-1)
        return both, both

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns the pair; both are as wide."""
        return tuple(torch.chunk(output[0], 2, dim=-1))


class ReversibleReshape(ReversibleLayer):
    """Gives the first axes of its inputs another shape, and leaves the others.

    Args:
      shape1: the first sizes of the inputs, which lose them.
      shape2: the sizes that come in their place, of as many entries.
      n_in: how many inputs.

    Raises:
      ValueError: if the two shapes have not as many entries.

    Example:
      >>> ReversibleReshape((2, 3), (6,))(torch.zeros(2, 3, 4)).shape
      torch.Size([6, 4])

    Source: Trax `layers/reversible.py::ReversibleReshape`.
    """

    def __init__(self, shape1: Any, shape2: Any, n_in: int = 1):
        self._shapes = tuple(shape1), tuple(shape2)
        if math.prod(self._shapes[0]) != math.prod(self._shapes[1]):
            raise ValueError(
                f"ReversibleReshape takes two shapes of as many entries; got {self._shapes[0]} and "
                f"{self._shapes[1]}."
            )
        name = f"ReversibleReshape_{list(shape1)}_{list(shape2)}"
        super().__init__(n_in=n_in, n_out=n_in, name=name)

    def forward(self, x: Any) -> Any:
        """Returns the inputs in the second shape."""
        return self._reshaped(x, *self._shapes)

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns them in the first."""
        return self._reshaped(output, *reversed(self._shapes))

    def _reshaped(self, xs: Any, old: tuple[int, ...], new: tuple[int, ...]) -> Any:
        items = _reversible.items_of(xs)
        return _reversible.packed([x.reshape(new + tuple(x.shape[len(old) :])) for x in items])


class ReversiblePrintShape(ReversibleLayer):
    """Prints the shapes and types of its inputs, and passes them on.

    Args:
      n_in: how many inputs.
      msg: stands before them.

    Source: Trax `layers/reversible.py::ReversiblePrintShape`.
    """

    def __init__(self, n_in: int = 1, msg: str = ""):
        super().__init__(n_in=n_in, n_out=n_in)
        self._print = PrintShape(n_in, msg).forward

    def forward(self, x: Any) -> Any:
        """Returns what came."""
        return self._print(x)

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns what it passed on, and prints nothing."""
        return output

    def reverse_and_grad(
        self,
        output: Any,
        grad: Any,
        replay: Replay | None,
        params: _reversible.Params = (),
        *,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Any, Any, _reversible.Grads]:
        """Returns what it passed on, and the gradients as they came; prints nothing."""
        items = map(_reversible.detached, _reversible.items_of(output))
        return _reversible.packed(items), grad, [None] * len(params)


class ReversibleHalfResidual(ReversibleLayer):
    """Adds to the top item what layers in series make of the others, which it passes on.

    It maps (x, *context) to (x + f(*context), *context), and back.

    Args:
      *residual_layers: f, layers in series; they take the context and need not use all of it.
      attention_layer: comes after them, on the same stack.
      name: what it prints as.

    Weights in Trax's order: those of the layers in series as one Serial, then the attention
    layer's.

    Source: Trax `layers/reversible.py::ReversibleHalfResidual`.
    """

    def __init__(self, *residual_layers: Any, attention_layer: Any = None, name: str | None = None):
        super().__init__(name=name)
        layers: list[Layer] = [Serial(*residual_layers)]
        if attention_layer is not None:
            layers.append(as_layer(attention_layer))
        self._set_sublayers(layers)
        n_in, _ = _stack.n_inputs_n_outputs([(x.n_in, x.n_out) for x in layers])
        self._n_in = self._n_out = n_in + 1

    def forward(self, x: Any) -> Any:
        """Returns (x + f(*context), *context)."""
        accumulator, *context = x
        stack: Any = tuple(context)
        for name in self._order:
            layer: Any = self._modules[name]
            outputs = base.call(layer, _stack.take(stack, layer._n_in))
            stack = _stack.put(outputs, stack, layer._n_in)
        total = accumulator + _stack.take(stack, 1)
        if total.shape != accumulator.shape:
            raise ValueError(
                f"{self._name} adds to x what its layers make of the context, which must not be "
                f"larger: x has shape {tuple(accumulator.shape)}, and the sum "
                f"{tuple(total.shape)}. Give x the shape of the sum."
            )
        return total, *context

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns (x, *context), x up to rounding; f runs once more, on the same context."""
        accumulator, *context = output
        weights = self.weights if isinstance(weights, tuple) and not weights else weights
        state = self.state if isinstance(state, tuple) and not state else state
        nothing = torch.zeros_like(_nest.to_tensor(accumulator))
        residual, *_ = self.pure_fn((nothing, *context), weights, state, rng)[0]
        return accumulator - residual, *context

    def reverse_and_grad(
        self,
        output: Any,
        grad: Any,
        replay: Replay | None,
        params: _reversible.Params = (),
        *,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Any, Any, _reversible.Grads]:
        """Returns inputs and gradients as `ReversibleLayer` says; f runs once for both."""
        accumulator, *context = map(_reversible.detached, output)
        of_sum, *of_context = grad
        replay = replay or Replay(self, accumulator.device)
        leaves = [_reversible.leaf(x) for x in context]
        nothing = accumulator.new_zeros(()).expand_as(accumulator)
        with torch.set_grad_enabled(of_sum is not None):
            residual, *_ = replay((nothing, *leaves), tensors)
        through, param_grads = _reversible.gradients([residual], [of_sum], leaves, params)
        x = accumulator - residual.detach()
        grads = [_reversible.add(a, b) for a, b in zip(of_context, through, strict=True)]
        inputs = tuple(replay.as_taken((x, *context)))
        return inputs, tuple(replay.as_taken((of_sum, *grads))), param_grads


class ReversibleSerial(ReversibleLayer, Serial):
    """Runs reversible layers in series; like a `Serial` of them, it keeps their outputs alone.

    Args:
      *layers: they are all reversible; nested lists count as if flat.

    Raises:
      ValueError: if a layer is not reversible.

    Example:
      >>> half = ReversibleHalfResidual(base.Fn('Double', lambda x: 2 * x))
      >>> layer = ReversibleSerial(half, ReversibleSwap())
      >>> y = layer((torch.tensor(1.), torch.tensor(2.)))
      >>> y, layer.reverse(y)
      ((tensor(2.), tensor(5.)), (tensor(1.), tensor(2.)))

    Source: Trax `layers/reversible.py::ReversibleSerial`.
    """

    def __init__(self, *layers: Any):
        super().__init__(*layers)
        for i, layer in enumerate(self.sublayers):
            if not isinstance(layer, ReversibleLayer):
                raise ValueError(
                    f"ReversibleSerial takes reversible layers, such as ReversibleHalfResidual; "
                    f"its layer {i} is {layer}. Serial takes any."
                )

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns the inputs that gave `output`, up to rounding; layers run from the last back.

        Raises:
          ValueError: if there is an rng, since layers draw from it one after another.
        """
        if rng is not None:
            raise ValueError(
                "ReversibleSerial is reversed without an rng, whose numbers its layers drew in "
                "turn; got one. Reverse in eval mode, or layer by layer."
            )
        n = len(self.sublayers)
        trees = [
            t if isinstance(t, (tuple, list)) and len(t) == n else n * ((),)
            for t in (weights, state, new_state)
        ]
        stack = output
        for layer, *own in reversed(list(zip(self.sublayers, *trees, strict=True))):
            inputs = layer.reverse(_stack.take(stack, layer.n_out), *own)
            stack = _stack.put(inputs, stack, layer.n_out)
        return stack


def _pick(xs: Any, indices: Any) -> Any:
    xs = xs if isinstance(xs, (tuple, list)) else (xs,)
    picked = tuple(xs[i] for i in indices)
    return picked[0] if len(picked) == 1 else picked
