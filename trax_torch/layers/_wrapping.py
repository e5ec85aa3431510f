"""The ways to put the Layer protocol on a module that nobody wrote for it."""

import inspect
from typing import Any

from torch import nn

from trax_torch.layers.base import Layer, check_n_in


def as_layer(
    module: nn.Module, n_in: int | None = None, n_out: int = 1, name: str | None = None
) -> Layer:
    """Returns any module as a layer; one that is a layer already is returned as it is.

    Args:
      module: takes its inputs as positional arguments.
      n_in: number of inputs; by default the number of required positional parameters of
        `module.forward`, at least 1.
      n_out: number of outputs.
      name: what it prints as; the module's class name by default.

    Raises:
      TypeError: if `module` is no `nn.Module`.

    Example:
      >>> as_layer(nn.CrossEntropyLoss()), as_layer(nn.Linear(2, 3))
      (CrossEntropyLoss_in2, Linear)
    """
    if isinstance(module, Layer):
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"A layer is made of an nn.Module; got {type(module).__name__}. For a function f(x), "
            f"use layers.Fn('Name', f)."
        )
    return Wrapped(module, n_in, n_out, name)


class Wrapped(Layer):
    """A foreign module in the Layer protocol; made by `as_layer`."""

    def __init__(self, module: nn.Module, n_in: int | None, n_out: int, name: str | None):
        if n_in is None:
            parameters = inspect.signature(module.forward).parameters.values()
            required = [
                p
                for p in parameters
                if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
            n_in = max(1, len(required))
        super().__init__(n_in, n_out, name or type(module).__name__, sublayers_to_print=())
        self.module = module
        self.training = module.training

    def _identity(self) -> int:
        return id(self.module)

    def forward(self, x: Any) -> Any:
        """Returns what the module returns for `x`, spread over its positional arguments."""
        if self._n_in == 1:
            return self.module(x)
        check_n_in(x, self._n_in)
        return self.module(*x)
