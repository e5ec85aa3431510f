"""Which symbols begin, end and pad sequences: a call's, the model's own, or the usual."""

from collections.abc import Sequence
from typing import Any

import torch

from trax_torch import layers as tl


class Default(int):
    """A number for a call that gives none, of a model that says none."""


START, END, PADDING = Default(0), Default(1), Default(0)


def own(layer: tl.Layer, name: str, otherwise: Any = None) -> Any:
    """Returns what a foreign module says of itself, as `decoding.CachedModule` has it."""
    inner = layer.sublayer if isinstance(layer, tl.Accelerate) else layer
    value = getattr(inner.module, name, None) if isinstance(inner, tl.Wrapped) else None
    return otherwise if value is None else value


def symbol(layer: tl.Layer, name: str, given: Any) -> Any:
    """Returns the symbol that a call gives, or the model's own, or the usual one."""
    return own(layer, name, int(given)) if isinstance(given, Default) else given


def end_symbols(eos_id: int | Sequence[int]) -> tuple[int, ...]:
    """Returns end symbols, of which -1 stands for none."""
    several: Any = eos_id if isinstance(eos_id, (tuple, list)) else (eos_id,)
    return tuple(int(i) for i in several if i >= 0)


def ends_and_padding(layer: tl.Layer, eos_id: Any, pad_id: Any) -> tuple[tuple[int, ...], int]:
    """Returns the end symbols, and what pads sequences that have ended."""
    return end_symbols(symbol(layer, "eos_id", eos_id)), int(symbol(layer, "pad_id", pad_id))


def is_end(tokens: torch.Tensor, ends: tuple[int, ...]) -> torch.Tensor:
    """Tells which tokens are end symbols; booleans."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for end in ends:
        found = found | (tokens == end)
    return found
