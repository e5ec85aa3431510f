"""A layer's gradient of its own: Trax's `has_backward` and `backward`, in the place of autograd's.

Classes that say `has_backward` have their forward run as one node of the graph, whose backward pass
is the layer's. All others are as if this room were not there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from trax_torch import _nest


class OwnGradient(nn.Module):
    """What a layer may say of its gradient."""

    @property
    def has_backward(self) -> bool:
        """Whether the layer's gradient is what `backward` gives, and not autograd's."""
        return False

    def backward(
        self,
        inputs: Any,
        output: Any,
        grad: Any,
        weights: Any,
        state: Any,
        new_state: Any,
        rng: torch.Generator,
    ) -> tuple[Any, Any]:
        """Returns the gradients of the inputs and of the weights; is asked if `has_backward`.

        Args:
          inputs: what the layer was called with.
          output: what it gave.
          grad: the gradient of the output, packed like it.
          weights: as they were when it ran, a tree like `layer.weights`.
          state: before it ran, like `layer.state`.
          new_state: after it ran.
          rng: a generator that draws what the layer drew from its `rng` when it ran.

        Returns:
          `(inputs_grad, weights_grad)`, packed like `inputs` and `weights`; None in place of a
          gradient stands for none.
        """
        raise TypeError(
            f"{type(self).__name__} says has_backward and has no backward; a layer with a gradient "
            f"of its own must override it: backward(inputs, output, grad, weights, state, "
            f"new_state, rng)."
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        is_asked = cls.has_backward is not OwnGradient.has_backward
        if is_asked and not hasattr(cls.forward, "_asks_backward"):
            cls.forward = _asking(cls.forward)


def _asking(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a forward that is a node of its own in the graph, where the layer wants that."""

    run: Any = torch.compiler.disable(_as_one_node)  # it looks into generators, say

    @functools.wraps(forward)
    def one_node(self: Any, x: Any = ()) -> Any:
        if not (self.has_backward and torch.is_grad_enabled()):
            return forward(self, x)
        return run(self, forward, x)

    one_node._asks_backward = True  # type: ignore[attr-defined]
    return one_node


def _as_one_node(layer: Any, forward: Callable[..., Any], x: Any) -> Any:
    call = _Call(layer, forward)
    call.x, items = _nest.apart(x)
    params = call.parameters()
    apply: Any = _Node.apply  # torch says nothing of its types
    outputs = apply(call, len(items), *items, *params)
    return _nest.together(call.output, outputs)


class _Call:
    """One run of a layer: what its backward pass wants to know besides tensors.

    Args:
      layer: is run.
      forward: its own, of the class.
    """

    def __init__(self, layer: Any, forward: Callable[..., Any]):
        self.layer, self.forward = layer, forward
        self.x = self.output = self.state = self.new_state = None
        self._generator = layer.rng
        self._drew_from = self._generator.get_state()
        self._places: list[list[str]] = []

    def parameters(self) -> list[torch.Tensor]:
        """Returns each of the layer's parameters once, and notes all its names."""
        places: dict[int, list[str]] = {}
        params: dict[int, torch.Tensor] = {}
        for name, tensor in self.layer.named_parameters(remove_duplicate=False):
            places.setdefault(id(tensor), []).append(name)
            params[id(tensor)] = tensor
        self._places = list(places.values())
        return list(params.values())

    def rng(self) -> torch.Generator:
        """Returns a new generator that draws what the layer drew."""
        return torch.Generator(self._generator.device).set_state(self._drew_from)

    def run(self, items: Sequence[Any], params: Sequence[Any]) -> tuple[Any, ...]:
        """Returns what the layer gives for these inputs and parameters: its tensors alone."""
        self.state = self.layer.state
        outputs = self._with(
            params, lambda: self.forward(self.layer, _nest.together(self.x, items))
        )
        self.new_state = self.layer.state
        self.output, tensors = _nest.apart(outputs)
        known = {id(x) for x in (*items, *params)}  # what is handed on gets a name of its own
        return tuple(y.view_as(y) if id(y) in known else y for y in tensors)

    def gradients(
        self, items: Sequence[Any], params: Sequence[Any], outputs: Sequence[Any], grads: Any
    ) -> tuple[list[Any], list[Any]]:
        """Returns the layer's own gradients of inputs and of parameters; None for none."""
        inputs, output = _nest.together(self.x, items), _nest.together(self.output, outputs)
        weights = self._with(params, lambda: self.layer.weights)
        grad = _nest.together(self.output, grads)
        given = self.layer.backward(
            inputs, output, grad, weights, self.state, self.new_state, self.rng()
        )
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            self._refuse(f"got {_kind_of(given)}")
        own = list(_nest.leaves(given[0]))
        places = list(_nest.leaves(self.x))
        if len(own) != len(places):
            self._refuse(f"got {len(own)} for {len(places)} inputs")
        of_items = [g for g, place in zip(own, places, strict=True) if place is _nest.HERE]
        of_params = self._in_order(given[1])
        for g, x in zip([*of_items, *of_params], [*items, *params], strict=True):
            if g is not None and tuple(g.shape) != tuple(x.shape):
                self._refuse(f"got one of shape {tuple(g.shape)} for {tuple(x.shape)}")
        return of_items, of_params

    def _in_order(self, tree: Any) -> list[Any]:
        """Returns gradients, given in Trax's order, in the order of the parameters."""
        if tree is None:
            return [None] * len(self._places)
        try:
            named = self.layer._named("weights", tree)
        except ValueError as error:
            self._refuse(f"the weights' are none: {error}")
        return [next((named[n] for n in names if n in named), None) for names in self._places]

    def _with(self, params: Sequence[Any], fn: Callable[[], Any]) -> Any:
        """Returns `fn()`, the layer's parameters being others meanwhile."""
        named = {
            f"layer.{name}": tensor
            for names, tensor in zip(self._places, params, strict=True)
            for name in names
        }
        return torch.func.functional_call(_Beside(self.layer, fn), named, (), tie_weights=False)

    def _refuse(self, came: str) -> NoReturn:
        raise ValueError(
            f"{self.layer.name}.backward gives (inputs_grad, weights_grad): gradients of the "
            f"shapes of its inputs and weights, packed like them, or None for none; {came}."
        )


class _Node(torch.autograd.Function):
    """A layer's run as one node of the graph."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        call: _Call, n_items: int, *tensors: Any
    ) -> tuple[Any, ...]:
        return call.run(tensors[:n_items], tensors[n_items:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.call, ctx.n_items, *tensors = inputs
        ctx.n_inputs = len(tensors)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved, n = ctx.saved_tensors, ctx.n_items
        of_items, of_params = ctx.call.gradients(
            saved[:n], saved[n : ctx.n_inputs], saved[ctx.n_inputs :], grads
        )
        wanted = ctx.needs_input_grad[2:]
        found = [g if w else None for g, w in zip([*of_items, *of_params], wanted, strict=True)]
        return None, None, *found


class _Beside(nn.Module):
    """Calls a function while `functional_call`'s tensors are in a layer's place."""

    def __init__(self, layer: nn.Module, fn: Callable[[], Any]):
        super().__init__()
        self.layer, self.fn = layer, fn

    def forward(self) -> Any:
        return self.fn()


def _kind_of(x: Any) -> str:
    n = f" of {len(x)}" if isinstance(x, (tuple, list)) else ""
    return f"a {type(x).__name__}{n}"
