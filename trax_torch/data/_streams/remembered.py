"""What samplers and datasets remember by themselves, which nobody can put back.

A random generator of numpy's or Python's, a count of passes: where it is not what it was, going on
from a later batch would not be right, and is better not tried.
"""

import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from trax_torch._digest import digest

_MOST_ITEMS, _MOST_OBJECTS = 32, 1000
_PLAIN = (bool, int, float, str, bytes, type(None))
_CLOSED = (torch.Tensor, torch.Generator, np.ndarray, type, types.ModuleType)


def remembered(things: list[Any], beside: Any = None, numbers: bool = False) -> str:
    """Returns a digest of the generators that things keep, and what they are made of keeps.

    torch's generators are not counted, which a stream puts back itself, nor what large collections
    hold.

    Args:
      things: samplers, or a dataset.
      beside: is not looked into.
      numbers: whether plain numbers and texts count, too.

    Example:
      >>> augment = types.SimpleNamespace(rng=np.random.default_rng(0), n=3)
      >>> before = remembered([augment])
      >>> number = augment.rng.random()
      >>> remembered([augment]) == before
      False
    """
    found: list[Any] = []
    for thing in _reached(things, beside):
        if isinstance(thing, _PLAIN):
            found += [thing] if numbers else []
        elif (state := _state_of(thing)) is not None:
            found.append(state)
    return digest(found)


def kept_generator(thing: Any) -> Any:
    """Returns the first generator of numpy's or Python's that is found in a thing; else None."""
    return next((x for x in _reached([thing]) if _is_generator(x)), None)


def _reached(things: list[Any], beside: Any = None) -> Iterator[Any]:
    """Yields things and what they are made of, as far as it is small."""
    seen = {id(beside)}
    waiting = list(things)
    while waiting and len(seen) < _MOST_OBJECTS:
        thing = waiting.pop(0)
        if isinstance(thing, _PLAIN):
            yield thing
        elif id(thing) not in seen and not isinstance(thing, _CLOSED):
            seen.add(id(thing))
            yield thing
            waiting += [] if _is_generator(thing) else _inside(thing)


def _is_generator(thing: Any) -> bool:
    return isinstance(thing, (np.random.Generator, np.random.RandomState, random.Random))


def _state_of(thing: Any) -> Any:
    """Returns where a generator is; None of what is none."""
    if isinstance(thing, np.random.Generator):
        return dict(thing.bit_generator.state)
    if isinstance(thing, np.random.RandomState):
        return thing.get_state()
    return repr(thing.getstate()) if isinstance(thing, random.Random) else None


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, (list, tuple)):
        return list(thing) if len(thing) <= _MOST_ITEMS else []
    if isinstance(thing, dict):
        return list(thing.values()) if len(thing) <= _MOST_ITEMS else []
    if isinstance(thing, types.FunctionType):
        try:
            return [cell.cell_contents for cell in thing.__closure__ or ()]
        except ValueError:  # of a cell that is not filled yet
            return []
    if isinstance(thing, (types.MethodType, types.BuiltinMethodType)):
        return [thing.__self__]
    return list(getattr(thing, "__dict__", {}).values())
