"""Blocks that are alike and stand in a row, as a transformer's do: compiled once for all of them.

A compiler that is shown them makes one program of a block, which each of them runs with weights and
memory of its own, so that compiling takes no longer for many than for few. Where it finds that two
are not alike after all, it makes a program of each.
"""

import collections
import functools
import inspect
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import nn

from trax_torch.layers._predict.block import Block

# Stretches of a row of layers, in order: from where, to where, and what runs it, if it is a block:
# a function of (x, *layers).
Stretches = tuple[tuple[int, int, Any], ...]


class InBlocks(Block):
    """Shows blocks to the compiler while this context lasts, in this thread.

    Args:
      rows: layers that run others in a row, with the stretches of each; see `stretches`.
    """

    def __init__(self, rows: Sequence[tuple[Any, Stretches]]):
        self._rows = rows

    def _run(self) -> Generator[None, None, None]:
        places = [(row._place, stretches) for row, stretches in self._rows]
        try:
            for place, stretches in places:
                place.stretches = stretches
            yield
        finally:
            try:
                _forget(places)
            except BaseException:  # once more: something may break in here, too
                _forget(places)
                raise


def _forget(places: Sequence[tuple[Any, Stretches]]) -> None:
    for place, _ in places:
        place.stretches = ()


def stretches(layers: Sequence[Any]) -> Stretches:
    """Returns blocks of one or several layers each, and the layers between them, one by one.

    A block takes one tensor and gives one, has weights, and has its like right behind it or, where
    it is a single layer, anywhere in the row. What is in most of them is taken first.
    """
    forms = [_form(layer) if _can_be_in_a_block(layer) else None for layer in layers]
    counts = collections.Counter(forms)
    run = compiled_once()
    found: list[tuple[int, int, Any]] = []
    i = 0
    while i < len(layers):
        length, times = _longest_run(forms, i)
        if times < 2:
            is_block = forms[i] is not None and counts[forms[i]] > 1 and _has_weights(layers[i])
            found.append((i, i + 1, run if is_block else None))
            i += 1
            continue
        one = run if any(map(_has_weights, layers[i : i + length])) else None
        found += [(j, j + length, one) for j in range(i, i + times * length, length)]
        i += times * length
    return tuple(found)


def _longest_run(forms: list[Any], start: int) -> tuple[int, int]:
    """Returns how many layers a block that begins here has, and how often it comes in a row."""
    best = 0, 1
    for length in range(1, (len(forms) - start) // 2 + 1):
        block = forms[start : start + length]
        if None in block:
            break
        times = 1
        while forms[start + times * length : start + (times + 1) * length] == block:
            times += 1
        if times > 1 and times * length > best[0] * best[1]:
            best = length, times
    return best


@functools.cache
def compiled_once() -> Any:
    """Returns `(x, *layers) -> outputs`, of which torch compiles one program for layers alike.

    None where torch traces each call of such a function anew, which takes as long as without.
    """
    region = getattr(torch.compiler, "nested_compile_region", None)
    if region is None or "max_reuse_entries" not in inspect.signature(region).parameters:
        return None
    return region(_in_turn)


def _in_turn(x: Any, *layers: Any) -> Any:
    for layer in layers:
        x = nn.Module.__call__(layer, x)
        if isinstance(x, (tuple, list)):
            (x,) = x
    return x


def _can_be_in_a_block(layer: Any) -> bool:
    return bool(layer.n_in == 1 == layer.n_out)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _form(module: nn.Module) -> Any:
    """Returns what modules that compute the same with other weights have in common."""
    own = [None if p is None else (p.shape, p.dtype) for p in module._parameters.values()]
    inside = [None if m is None else _form(m) for m in module._modules.values()]
    return type(module), tuple(own), tuple(inside)
