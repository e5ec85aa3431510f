"""What models and losses take, by their signatures, and in words for messages."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop.outputs import N_ITEMS

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a function takes.

    Attributes:
      positions: the names of positional arguments, in order.
      required: of all arguments that it cannot do without.
      named: of all that may be given by name.
      takes_more: whether any other name may be given, too.
      text: name and arguments, for messages.
    """

    positions: tuple[str, ...]
    required: tuple[str, ...]
    named: tuple[str, ...]
    takes_more: bool
    text: str


def of_function(function: Callable[..., Any], name: str) -> Signature:
    """Returns what a function takes; one that does not tell is taken to want (input, target)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        both = ("input", "target")
        return Signature(both, both, (), False, f"{name}(input, target)")
    plain = [p for p in parameters if p.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
    words = [p.name if p.default is p.empty else f"{p.name}={str(p.default)[:20]}" for p in plain]
    words += ["..."] if len(plain) < len(parameters) else []
    return Signature(
        tuple(p.name for p in plain if p.kind in _POSITIONAL),
        tuple(p.name for p in plain if p.default is p.empty),
        tuple(p.name for p in plain if p.kind is not inspect.Parameter.POSITIONAL_ONLY),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
        f"{name}({', '.join(words[:8])}{', ...' if len(words) > 8 else ''})",
    )


def of_model(layer: tl.Layer) -> Signature:
    """Returns what a model takes; of a layer it is a stack, whose items have no names."""
    if not isinstance(layer, tl.Wrapped):
        items = tuple(f"item {i}" for i in range(layer.n_in))
        return Signature(items, items, (), False, f"{layer.name}({', '.join(items)})")
    module: Any = layer.module
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps has the names
    return of_function(module.forward, f"{type(module).__name__}.forward")


def of_loss(loss: tl.Layer) -> Signature:
    """Returns what a loss takes; of a layer it is outputs, targets, weights."""
    if isinstance(loss, tl.Wrapped):
        return of_function(loss.module.forward, loss.name)
    if isinstance(loss, _tasks.FunctionLoss) and loss.fn is not None:
        return of_function(loss.fn, loss.name)
    names = ("outputs", "targets", "weights", *(f"item {i}" for i in range(3, loss.n_in)))
    names = names[: loss.n_in]
    return Signature(names, names, (), False, f"{loss.name}({', '.join(names)})")


def arguments_of(loss: tl.Layer) -> list[str]:
    """Returns the names of what a loss takes, outputs first: as many as its `n_in`."""
    if isinstance(loss, _tasks.FunctionLoss) and loss.fn is not None:
        return _tasks.required_of(loss.fn)
    return list(of_loss(loss).positions[: loss.n_in])


def is_of_torch(loss: tl.Layer) -> bool:
    """Tells whether a loss is torch's own, which compares one tensor with targets."""
    function: Any = loss.module if isinstance(loss, tl.Wrapped) else getattr(loss, "fn", None)
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, torch.nn.Module):
        function = type(function)
    module = getattr(function, "__module__", None) or ""
    return module.split(".")[0] == "torch"


def is_of_trax(loss: tl.Layer) -> bool:
    """Tells whether a loss is a layer: it takes a stack."""
    return not isinstance(loss, (tl.Wrapped, _tasks.FunctionLoss))


def wants_tensor(loss: tl.Layer, names: tuple[str, ...]) -> bool:
    """Tells whether a loss compares one tensor: by who wrote it, or its first argument.

    Args:
      loss: the loss.
      names: what such an argument is called.
    """
    if is_of_torch(loss) or is_of_trax(loss):
        return True
    function: Any = loss.module.forward if isinstance(loss, tl.Wrapped) else getattr(loss, "fn", 0)
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (ValueError, TypeError):
        return True
    is_tensor = first is not None and first.annotation in (torch.Tensor, "torch.Tensor", "Tensor")
    return first is not None and (is_tensor or first.name in names)


def takes_n_items(layer: tl.Layer) -> bool:
    """Tells whether a model may take how many items the loss of a whole batch is a mean over.

    As those of transformers do, by this name or among any others; their trainer asks such a model
    for `accepts_loss_kwargs`, too.
    """
    signature = of_model(layer)
    is_named = N_ITEMS in signature.named or signature.takes_more
    module = layer.module if isinstance(layer, tl.Wrapped) else None
    return is_named and getattr(module, "accepts_loss_kwargs", True) is not False
