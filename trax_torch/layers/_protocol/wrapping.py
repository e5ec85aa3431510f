"""How functions and modules that nobody wrote as layers take a layer's inputs."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _nest

# Losses that torch computes item by item, whatever the shapes; type by type, for subclasses differ.
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)

# What other libraries have words for.
_BY_WORD = {
    **dict.fromkeys(("mse", "mean_squared_error", "l2"), "nn.MSELoss()"),
    **dict.fromkeys(("mae", "mean_absolute_error", "l1"), "nn.L1Loss()"),
    **dict.fromkeys(("ce", "cross_entropy", "crossentropy"), "nn.CrossEntropyLoss()"),
    **dict.fromkeys(("sparse_categorical_crossentropy", "categorical"), "nn.CrossEntropyLoss()"),
    **dict.fromkeys(("bce", "binary_crossentropy"), "nn.BCEWithLogitsLoss()"),
    **dict.fromkeys(("accuracy", "acc"), "layers.CategoryAccuracy()"),
    "relu": "layers.Relu()",
}

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Spread:
    """Calls `f` with the items of a tuple as its arguments. A class, so that layers pickle."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f

    def __call__(self, xs: Any) -> Any:
        return self.f(*xs) if isinstance(xs, (tuple, list)) else self.f(xs)


def without_arrays(y: Any, x: Any) -> Any:
    """Returns what a function gave for `x`, with arrays of numpy's as tensors where `x` is.

    A mask, say, that numpy computed: what wants no gradient goes through numpy unseen.
    """
    if isinstance(y, torch.Tensor) or torch.compiler.is_compiling() or not _holds_array(y):
        return y
    like = next((t for t in _nest.leaves(x) if isinstance(t, torch.Tensor)), None)
    device = None if like is None else like.device
    return _nest.map_leaves(lambda a: _nest.to_tensor(a, device) if _holds_array(a) else a, y)


def _holds_array(y: Any) -> bool:
    if isinstance(y, (tuple, list)):
        return any(map(_holds_array, y))
    return isinstance(y, (np.ndarray, np.generic))


def n_arguments(name: str, f: Callable[..., Any]) -> int:
    """Returns how many arguments a function takes, for `Fn`.

    Those that can only be given by name, and need not be, are no inputs: `functools.partial` makes
    such ones.

    Raises:
      ValueError: if it has others than these and plain positional ones.
    """
    try:
        parameters = [
            p
            for p in inspect.signature(f).parameters.values()
            if p.kind is not p.KEYWORD_ONLY or p.default is p.empty
        ]
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


def not_a_module(thing: Any) -> str:
    """Returns what to write for what is no module and was to be a layer."""
    kind = type(thing).__name__
    if isinstance(thing, str):
        module = _BY_WORD.get(thing.lower(), "the module itself, such as nn.MSELoss()")
        return f"A layer is made of an nn.Module; got {thing!r}. Write {module}."
    if inspect.isclass(thing):
        name = thing.__name__
        return f"A layer is made of an nn.Module; got the class {name}. Make one: {name}(...)."
    if isinstance(thing, (list, tuple)):
        return (
            f"A layer is made of an nn.Module; got a {kind} of {len(thing)}. Put modules in a row: "
            f"layers.Serial(...), or nn.Sequential(...)."
        )
    if callable(thing):
        return (
            f"A layer is made of an nn.Module; got {kind}. For a function f(x), use "
            f"layers.Fn('Name', f)."
        )
    advice = "Give the module itself."
    if hasattr(thing, "keys"):
        advice = "Build the model, and fill it: model.load_state_dict(weights)."
    elif hasattr(thing, "loss_layer"):
        advice = "Give the model first: Loop(model, task)."
    elif hasattr(thing, "metrics"):
        advice = "Give it by name: Loop(model, task, eval_tasks=EvalTask(...))."
    return f"A layer is made of an nn.Module; got {kind}. {advice}"


def refuse_if_expanded(output: Any, targets: Any, *others: Any) -> None:
    """Raises ValueError if a loss would repeat outputs to fit targets: (N, 1) and (N,), say.

    Torch warns of it, computes all pairs, and such a model learns nothing.
    """
    if not isinstance(output, torch.Tensor) or not isinstance(targets, torch.Tensor):
        return
    ours, theirs = tuple(output.shape), tuple(targets.shape)
    if ours == theirs:
        return
    try:
        both = tuple(torch.broadcast_shapes(ours, theirs))
    except RuntimeError:
        both = ()
    if both != ours:
        raise ValueError(
            f"Outputs and targets have one shape; got {ours} and {theirs}. Write "
            f"targets.view_as(outputs) or unsqueeze(-1) for targets, or squeeze(-1) for outputs."
        )
