"""Computing again under `torch.func`, whose transforms know nothing of torch's checkpointing.

This room knows how a function's gradients flow when nothing but what it took is kept; what it
computes, and what it depends on besides tensors, it does not know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from trax_torch import _nest, _torch_private


def recomputed(
    first: Callable[[_nest.Nest], _nest.Nest],
    again: Callable[[_nest.Nest], _nest.Nest],
    x: _nest.Nest,
) -> tuple[bool, _nest.Nest]:
    """Returns `(True, first(x))`, whose gradients are computed by `again`; keeps x alone.

    Args:
      first: a function of a nest of tensors.
      again: does the same once more, and changes nothing.
      x: holds all tensors that a transform follows, and `first` depends on.

    Returns:
      `(False, None)` if `first` depends on others that are followed, or if derivatives are taken in
      forward mode: then it is to be run as any other. It may have run in part.
    """
    if _torch_private.is_forward_mode():
        return False, None
    form, tensors = _nest.apart(x)
    gave: list[Any] = []  # the form of what came

    def of_tensors(run: Callable[[Any], Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def flat(*own: torch.Tensor) -> tuple[torch.Tensor, ...]:
            came, outputs = _nest.apart(run(_nest.together(form, own)))
            gave[:] = [came]
            return tuple(outputs)

        return flat

    apply: Any = _Again.apply  # torch says nothing of its types
    try:
        results = apply(of_tensors(first), of_tensors(again), *tensors)
    except _DependsOnMore:
        return False, None
    return True, _nest.together(gave[0], results)


class _DependsOnMore(BaseException):
    """A function met a tensor that is followed, and that it was not given; no error of its own."""


class _Watch(TorchFunctionMode):
    """Stops what computes with tensors of a transform that is set aside meanwhile."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in _nest.leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and _torch_private.is_set_aside(x):
                raise _DependsOnMore
        return func(*args, **kwargs)


class _Again(torch.autograd.Function):
    """A function as one node of the graph, which keeps what it took."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        first: Any, again: Any, *tensors: Any
    ) -> tuple[Any, ...]:
        with _Watch():
            return _named_anew(first(*tensors), tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, ctx.again, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(y for y in output if not _can_have_grad(y)))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        wanted = tuple(
            w and _can_have_grad(x) for w, x in zip(ctx.needs_input_grad[2:], saved, strict=True)
        )
        apply: Any = _Gradients.apply  # has types in torch 2.14 alone
        found = iter(apply(ctx.again, wanted, *saved, *grads))
        return None, None, *(next(found) if w else None for w in wanted)


class _Gradients(torch.autograd.Function):
    """The gradients as a node of their own: a transform would keep all that led to them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        again: Any, wanted: tuple[bool, ...], *tensors: Any
    ) -> tuple[Any, ...]:
        return _named_anew(_gradients(again, wanted, tensors), tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.again, ctx.wanted, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        places = [
            i for i, x in enumerate(saved) if ctx.needs_input_grad[2 + i] and _can_have_grad(x)
        ]

        def of(*own: Any) -> tuple[Any, ...]:
            given = dict(zip(places, own, strict=True))
            tensors = [given.get(i, x) for i, x in enumerate(saved)]
            return _gradients(ctx.again, ctx.wanted, tensors)

        pull = torch.func.vjp(of, *(saved[i] for i in places))[1]
        found = dict(zip(places, pull(grads), strict=True))
        return None, None, *(found.get(i) for i in range(len(saved)))


def _named_anew(outputs: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Returns outputs, of which those that are inputs handed on get a name of their own."""
    known = {id(x) for x in inputs}
    return tuple(y.view_as(y) if id(y) in known else y for y in outputs)


def _gradients(
    again: Callable[..., tuple[Any, ...]], wanted: tuple[bool, ...], tensors: Sequence[Any]
) -> tuple[Any, ...]:
    """Returns gradients of the wanted tensors; after the tensors come the outputs' gradients."""
    own, grads = tensors[: len(wanted)], tensors[len(wanted) :]
    places = [i for i, w in enumerate(wanted) if w]

    def of(*chosen: Any) -> tuple[Any, ...]:
        given = dict(zip(places, chosen, strict=True))
        return again(*(given.get(i, x) for i, x in enumerate(own)))

    pull = torch.func.vjp(of, *(own[i] for i in places))[1]
    results: tuple[Any, ...] = pull(tuple(grads))
    return results


def _can_have_grad(x: torch.Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
