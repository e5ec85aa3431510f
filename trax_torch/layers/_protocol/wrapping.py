"""How functions and modules that nobody wrote as layers take a layer's inputs."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Spread:
    """Calls `f` with the items of a tuple as its arguments. A class, so that layers pickle."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f

    def __call__(self, xs: Any) -> Any:
        return self.f(*xs) if isinstance(xs, (tuple, list)) else self.f(xs)


def n_arguments(name: str, f: Callable[..., Any]) -> int:
    """Returns how many arguments a function takes, for `Fn`.

    Raises:
      ValueError: if it has others than plain positional ones.
    """
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except ValueError:  # some of torch's own functions tell nothing of their arguments
        parameters = None
    if parameters is None or any(
        p.kind not in _POSITIONAL or p.default is not p.empty for p in parameters
    ):
        came = "" if parameters is None else f"({', '.join(map(str, parameters))})"
        raise ValueError(
            f"Fn needs a function of plain positional arguments; got {name}{came}. "
            f"Wrap it: Fn({name!r}, lambda x: f(x, ...)), or use PureLayer."
        )
    return len(parameters)


def n_required(module: nn.Module) -> int:
    """Returns how many positional arguments a module's forward needs, at least 1."""
    parameters = inspect.signature(module.forward).parameters.values()
    return max(1, sum(p.default is p.empty and p.kind in _POSITIONAL for p in parameters))


def check_n_in(x: Any, n_in: int) -> None:
    """Raises ValueError if inputs are not a tuple of `n_in` items, or one alone."""
    if n_in == 1:
        return
    came = len(x) if isinstance(x, (tuple, list)) else type(x).__name__
    if came != n_in:
        raise ValueError(f"{n_in} inputs are needed as one tuple; got {came}.")
