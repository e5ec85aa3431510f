"""What samplers and datasets remember by themselves, which nobody can put back.

A random generator of numpy's or Python's, a count of passes: where it is not what it was, going on
from a later batch would not be right, and is better not tried.
"""

import random
import types
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
    seen = {id(beside)}
    waiting = list(things)
    while waiting and len(seen) < _MOST_OBJECTS:
        thing = waiting.pop(0)
        if isinstance(thing, _PLAIN):
            found += [thing] if numbers else []
        elif id(thing) not in seen and not isinstance(thing, _CLOSED):
            seen.add(id(thing))
            state = _state_of(thing)
            found += [] if state is None else [state]
            waiting += [] if state is not None else _inside(thing)
    return digest(found)


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
