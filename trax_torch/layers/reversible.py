"""Layers whose inputs can be computed from their outputs.

Gomez et al. 2017, arXiv:1707.04585, and Kitaev et al. 2020, arXiv:2001.04451, train deep networks
without keeping what these layers take in. Here, so far, gradients flow as in any layer.
"""

from typing import Any

import torch

from trax_torch import _nest
from trax_torch.layers import _stack, base
from trax_torch.layers.base import Layer
from trax_torch.layers.combinators import Serial


class ReversibleLayer(Layer):
    """A layer that can run backwards; a subclass overrides `forward` and `reverse`.

    Source: Trax `layers/reversible.py::ReversibleLayer`.
    """

    def reverse(
        self, output: Any, weights: Any = (), state: Any = (), new_state: Any = (), rng: Any = None
    ) -> Any:
        """Returns the inputs that gave `output`, packed as the layer takes them; changes nothing.

        Args:
          output: what the layer returned.
          weights: a tree to use instead of the layer's own; `()` for its own.
          state: the state before the layer ran, if not its own.
          new_state: the state after it ran; what most layers need not know.
          rng: the seed that the forward call was given, for the same random numbers.
        """
        raise TypeError(f"{self._name} has no reverse(output); a reversible layer overrides it.")


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

    def __init__(self, indices: Any, n_in: int | None = None, name: str | None = None):
        indices = tuple(indices)
        if n_in is None:
            n_in = max(indices) + 1
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


def ReversibleSwap() -> ReversibleSelect:
    """Returns a reversible layer that swaps the two top items."""
    return ReversibleSelect([1, 0], name="ReversibleSwap")


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
            layers.append(base.as_layer(attention_layer))
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
        return accumulator + _stack.take(stack, 1), *context

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


def _pick(xs: Any, indices: Any) -> Any:
    xs = xs if isinstance(xs, (tuple, list)) else (xs,)
    picked = tuple(xs[i] for i in indices)
    return picked[0] if len(picked) == 1 else picked
