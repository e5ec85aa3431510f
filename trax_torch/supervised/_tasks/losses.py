"""Losses and metrics as users give them, made into layers: modules, functions, the model's own.

How such a layer meets a model and its batches, `_loop.meeting` decides.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch.layers._protocol import Spread, not_a_module, refuse_if_expanded

OWN = ("model", "loss")  # what stands for the loss that a model computes itself, as None does

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


# Functions that torch computes item by item, whatever the shapes.
_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


class OwnLoss(tl.Layer):
    """Stands for the loss that the model computes itself, and passes it on."""

    def __init__(self) -> None:
        super().__init__(name="loss")

    def forward(self, x: Any) -> Any:
        """Returns the loss that came."""
        return x


class FunctionLoss(tl.PureLayer):
    """A loss or metric that was given as a function; it takes its required arguments alone.

    Args:
      function: takes outputs first, or the names that `_loop.meeting` knows.
      name: what it prints as.
    """

    def __init__(self, function: Callable[..., Any], name: str):
        super().__init__(Spread(function), n_in=len(required_of(function)), name=name)
        self._is_elementwise = any(_inner(function) is known for known in _ELEMENTWISE)

    def forward(self, x: Any) -> Any:
        """Returns the function's value; outputs and targets of torch's losses have one shape."""
        if self._is_elementwise and isinstance(x, tuple):
            refuse_if_expanded(*x)
        return super().forward(x)


def as_loss(given: Any, what: str = "loss") -> tl.Layer:
    """Returns a loss or metric as a layer.

    Args:
      given: a layer, a module, a function; or None, 'model' or 'loss' for the model's own loss.
      what: how messages call it, and what a function without a name is called.

    Raises:
      TypeError: if it is none of these.
      ValueError: if it is a function that takes nothing.
    """
    if given is None or (isinstance(given, str) and given in OWN):
        return OwnLoss()
    if isinstance(given, nn.Module):
        return tl.as_layer(given)
    forms = (
        f"A {what} is a layer or module such as nn.CrossEntropyLoss(), a function such as "
        f"F.cross_entropy or lambda outputs, batch: ..., or 'model' for the model's own loss"
    )
    if isinstance(given, torch.optim.Optimizer):
        raise TypeError(
            f"{forms}; got the optimizer {type(given).__name__}. The order is TrainTask(data, "
            f"loss, optimizer); with the model's own loss, TrainTask(data, None, optimizer)."
        )
    if inspect.isclass(given) or not callable(given):
        raise TypeError(f"{forms}. {not_a_module(given)}")
    name = getattr(given, "__name__", type(given).__name__)
    if "num_items_in_batch" in required_of(given):
        raise ValueError(
            f"num_items_in_batch is given to models that compute their own loss, and {name} asks "
            f"for it. Give it a default of None, and take a mean over what counts then: parts of a "
            f"batch, and ranks, are weighed by what that is found to be."
        )
    if not required_of(given):
        raise ValueError(
            f"{forms}; got {name}, which takes no outputs. If it makes a {what}, call it: {name}()."
        )
    return FunctionLoss(given, _name_of(given, what))


def required_of(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the positional arguments that a function cannot do without.

    One that tells nothing of its arguments is taken to want two, outputs and targets.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some of torch's own functions
        return ["input", "target"]
    names = [p.name for p in parameters if p.kind in _POSITIONAL and p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return names or (["input", "target"] if takes_any else [])


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name_of(function: Any, what: str) -> str:
    function = _inner(function)
    name = getattr(function, "__name__", type(function).__name__)
    return what if name == "<lambda>" else str(name)
