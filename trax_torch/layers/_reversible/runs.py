"""Runs of reversible layers whose backward pass computes activations again from the outputs.

Gomez et al. 2017, arXiv:1707.04585. This room knows when a run of layers may go without keeping
its activations, and how gradients flow then; what a layer computes, it does not know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trax_torch import _torch_private
from trax_torch.layers import base
from trax_torch.layers._protocol import has_hooks
from trax_torch.layers._protocol import stack as _stack
from trax_torch.layers._reversible import rematerialization
from trax_torch.layers.base import Layer

Params = Sequence[torch.Tensor]
Grads = list[torch.Tensor | None]


class ReversibleLayer(Layer):
    """A layer that can run backwards; a subclass overrides `forward` and `reverse`.

    Source: Trax `layers/reversible.py::ReversibleLayer`.
    """

    # Whether it computes: False where it only moves items, and a run of it needs no Replay.
    _computes = True

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        first = {
            name: next(i for i, owner in enumerate(cls.__mro__) if name in vars(owner))
            for name in ("forward", "reverse", "reverse_and_grad")
        }
        if first["reverse_and_grad"] > min(first["forward"], first["reverse"]):
            # An inherited one may know of another forward.
            cls._computes = True
            cls.reverse_and_grad = ReversibleLayer.reverse_and_grad  # type: ignore[method-assign]

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

    def reverse_and_grad(
        self,
        output: Any,
        grad: Any,
        replay: rematerialization.Replay | None,
        params: Params = (),
        *,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Any, Any, Grads]:
        """Returns the inputs that gave `output`, and gradients of them and of weights.

        It changes nothing, no `grad` and no buffer.

        Args:
          output: what the layer returned.
          grad: gradients of these outputs, packed like them; None where there is none.
          replay: made before the layer ran; None runs it as it is now.
          params: weights to give gradients of.
          tensors: weights to use instead of the layer's own, by name; `params` are among them.

        Returns:
          `(inputs, input_grads, param_grads)`, the first two packed as the layer takes them, the
          last a list; a gradient is None where the outputs do not depend on the input or weight.
        """
        replay = replay or rematerialization.Replay(self, _device_of(items_of(output)))
        with torch.no_grad():
            inputs = items_of(replay.reverse(output, tensors))
            inputs = tuple(map(leaf, replay.as_taken(inputs)))
        with torch.enable_grad():
            outputs = items_of(replay(packed(inputs), tensors))
        input_grads, param_grads = gradients(outputs, items_of(grad), inputs, params)
        return packed(map(detached, inputs)), packed(input_grads), param_grads


def find_runs(layers: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Returns where runs of reversible layers begin and end in a series of layers.

    A run has two layers at least, one of which computes. A series of its own is no part of one.
    """
    runs, start = [], 0
    for end in range(len(layers) + 1):
        if end < len(layers) and can_reverse(layers[end]) and not _has_runs(layers[end]):
            continue
        if end - start >= 2 and any(layer._computes for layer in layers[start:end]):
            runs.append((start, end))
        start = end + 1
    return tuple(runs)


def in_series(layers: Sequence[Any], runs: Sequence[tuple[int, int]], stack: Any) -> Any:
    """Runs layers over a stack; the runs among them keep no activations where that can be."""
    done = 0
    for start, end in runs:
        stack = _one_by_one(layers[done:start], stack)
        stack = _run(layers[start:end], stack)
        done = end
    return _one_by_one(layers[done:], stack)


class _Run(torch.autograd.Function):
    """Reversible layers in series as one node of the graph, which keeps outputs and weights."""

    @staticmethod
    def forward(ctx: Any, layers: Sequence[Any], n_items: int, *tensors: Any) -> tuple[Any, ...]:
        items, params = tensors[:n_items], tensors[n_items:]
        stack, ctx.replays = packed(items), []
        for layer in layers:
            inputs = _stack.take(stack, layer.n_in)
            replay = (
                rematerialization.Replay(layer, _device_of(items), inputs)
                if layer._computes
                else None
            )
            outputs = base.call(layer, inputs) if replay is None else replay.first(inputs)
            stack = _stack.put(outputs, stack, layer.n_in)
            ctx.replays.append(replay)
        outputs = items_of(stack)
        unmoved = {id(x) for x, w in zip(items, ctx.needs_input_grad[2:], strict=False) if not w}
        ctx.mark_non_differentiable(*(y for y in outputs if id(y) in unmoved and y is not None))
        places = {id(p): i for i, p in enumerate(params)}
        ctx.layers = layers
        ctx.names = [
            {k: places[id(p)] for k, p in rematerialization.parameters_of(x)} for x in layers
        ]
        ctx.n_items = n_items
        ctx.is_tensor = [isinstance(y, torch.Tensor) for y in outputs]
        ctx.save_for_backward(*(y for y in outputs if isinstance(y, torch.Tensor)), *params)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Any
    ) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        stack = packed(
            [detached(next(saved)) if is_tensor else None for is_tensor in ctx.is_tensor]
        )
        wanted = ctx.needs_input_grad[2 + ctx.n_items :]
        params = [p.detach().requires_grad_(w) for p, w in zip(saved, wanted, strict=True)]
        above: Any = packed(grads)
        sums: Grads = [None] * len(params)
        for layer, replay, names in zip(
            reversed(ctx.layers), reversed(ctx.replays), reversed(ctx.names), strict=True
        ):
            own = sorted({i for i in names.values() if wanted[i]})
            inputs, input_grads, param_grads = layer.reverse_and_grad(
                _stack.take(stack, layer.n_out),
                _stack.take(above, layer.n_out),
                replay,
                [params[i] for i in own],
                tensors={name: params[i] for name, i in names.items()},
            )
            stack = _stack.put(inputs, stack, layer.n_out)
            above = _stack.put(input_grads, above, layer.n_out)
            for i, g in zip(own, param_grads, strict=True):
                sums[i] = add(sums[i], g)
        return None, None, *items_of(above), *sums


def items_of(x: Any) -> tuple[Any, ...]:
    """Returns inputs or outputs as a tuple, however they are packed."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def packed(items: Any) -> Any:
    """Returns items packed as a layer takes them: one bare, several as a tuple."""
    items = tuple(items)
    return items[0] if len(items) == 1 else items


def detached(x: Any) -> Any:
    """Returns a tensor without its past; what is none is returned as it came."""
    return x.detach() if isinstance(x, torch.Tensor) else x


def leaf(x: Any) -> Any:
    """Returns a tensor without its past that gradients are recorded of, if it can have any."""
    x = detached(x)
    return x.requires_grad_() if can_have_grad(x) else x


def can_have_grad(x: Any) -> bool:
    """Tells whether something is a tensor of a type that gradients exist of."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def add(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """Returns the sum of two gradients, of which each may be missing."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def gradients(
    outputs: Sequence[Any], grads: Sequence[Any], inputs: Sequence[Any], params: Params
) -> tuple[Grads, Grads]:
    """Returns the gradients of inputs and of weights, given those of outputs; None for none."""
    pairs = [
        (y, g)
        for y, g in zip(outputs, grads, strict=True)
        if g is not None and isinstance(y, torch.Tensor) and y.requires_grad
    ]
    wanted = [*inputs, *params]
    places = [i for i, x in enumerate(wanted) if isinstance(x, torch.Tensor) and x.requires_grad]
    found: Grads = [None] * len(wanted)
    if pairs and places:
        ys, gs = zip(*pairs, strict=True)
        xs = [wanted[i] for i in places]
        for i, g in zip(places, torch.autograd.grad(ys, xs, gs, allow_unused=True), strict=True):
            found[i] = g
    return found[: len(inputs)], found[len(inputs) :]


def _one_by_one(layers: Sequence[Any], stack: Any) -> Any:
    for layer in layers:
        outputs = base.call(layer, _stack.take(stack, layer.n_in))
        stack = _stack.put(outputs, stack, layer.n_in)
    return stack


def _run(layers: Sequence[Any], stack: Any) -> Any:
    n_in, _ = _stack.n_inputs_n_outputs([(layer.n_in, layer.n_out) for layer in layers])
    items = items_of(_stack.take(stack, n_in))
    if not _keeps_nothing(layers, items):
        return _one_by_one(layers, stack)
    params = list(
        {id(p): p for layer in layers for _, p in rematerialization.parameters_of(layer)}.values()
    )
    apply: Any = _Run.apply  # torch says nothing of its types
    outputs = apply(layers, len(items), *items, *params)
    return _stack.put(outputs, stack, n_in)


def can_reverse(layer: Any) -> bool:
    """Tells whether a layer is reversible and has a `reverse`."""
    return isinstance(layer, ReversibleLayer) and type(layer).reverse is not ReversibleLayer.reverse


def _has_runs(layer: Any) -> bool:
    return bool(getattr(layer, "_runs", ()))


def _keeps_nothing(layers: Sequence[Any], items: Sequence[Any]) -> bool:
    """Tells whether gradients are recorded, and nothing stands in the way of computing again."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if _torch_private.is_transformed() or _torch_private.is_forward_mode():
        return False
    if not all(x is None or isinstance(x, torch.Tensor) for x in items):
        return False
    if not all(map(can_reverse, layers)):
        return False
    if any(map(has_hooks, layers)):  # which may do what `reverse` knows nothing of
        return False
    modules = {m for layer in layers for m in layer.modules()}
    if any(getattr(m, "_memory", None) is not None for m in modules):  # which would be written
        return False
    params = [p for m in modules for p in m._parameters.values() if p is not None]
    # Weights in parts come together in hooks of their own.
    if any(type(p) not in (torch.Tensor, torch.nn.Parameter) for p in params):
        return False
    return any(x is not None and x.requires_grad for x in (*items, *params))


def _device_of(items: Sequence[Any]) -> torch.device:
    devices = (x.device for x in items if isinstance(x, torch.Tensor))
    return next(devices, torch.device("cpu"))
