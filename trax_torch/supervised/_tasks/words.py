"""What a task is, in a line for people."""

import functools
from typing import Any

import torch

from trax_torch import layers as tl


def of_data(data: Any, n_batches: int | None) -> str:
    """Returns what labeled data is: its kind, and how many batches it has where it says so."""
    size = "" if n_batches is None else f" of {n_batches:,} batches"
    return f"{type(data).__name__}{size}"


def of_maker(thing: Any) -> str:
    """Returns what an optimizer or a schedule is: a recipe as it prints, others by their names."""
    if isinstance(thing, functools.partial):
        given = [f"{name}={value!r}" for name, value in thing.keywords.items()]
        return f"{of_maker(thing.func)}({', '.join([*map(repr, thing.args), *given])})"
    if isinstance(thing, torch.optim.Optimizer):
        rates = {f"{group['lr']:g}" for group in thing.param_groups if "lr" in group}
        return f"{type(thing).__name__}(lr={', '.join(sorted(rates))})"
    name = getattr(thing, "__qualname__", None)  # of a class or a function
    return repr(thing) if name is None else str(name)


def of_layers(layers: list[tl.Layer], names: list[str]) -> str:
    """Returns metrics by the names that they have in logs, with what they are if that differs."""
    words = [
        name if name == layer.name else f"{name}={layer.name}"
        for name, layer in zip(names, layers, strict=True)
    ]
    return f"[{', '.join(words)}]"
