"""What stands for a module of Trax, and which names Trax has.

`trax_names.json` lists, by module, the public names of Trax 1.4.1, and those of older releases that
programs still use.
"""

import functools
import importlib
import importlib.util
import json
from importlib import resources

_ELSEWHERE = {  # other places of old releases, and of what this library keeps together
    "trax.lr": ["trax_torch.supervised.lr_schedules"],
    "trax.math": ["trax_torch.fastmath"],
    "trax.math.numpy": ["trax_torch.fastmath.numpy"],
    "trax.math.random": ["trax_torch.fastmath.random"],
    "trax.layers.shapes": ["trax_torch.shapes"],
    "trax.supervised.inputs": ["trax_torch.data.inputs", "trax_torch.data"],
    "trax.supervised.tf_inputs": ["trax_torch.data.tf_inputs", "trax_torch.data"],
    "trax.models.reformer": ["trax_torch.models.reformer", "trax_torch.models.reformer.reformer"],
}
_WHOLLY_ELSE = ("trax.rl", "trax.tf_numpy")  # whose names are not listed


@functools.cache
def names() -> dict[str, frozenset[str]]:
    """Returns the names that each module of Trax has."""
    text = resources.files("trax_torch._as_trax").joinpath("trax_names.json").read_text()
    return {module: frozenset(words.split()) for module, words in json.loads(text).items()}


def has_every_name(address: str) -> bool:
    """Tells whether an address is in a part of Trax of which nothing is here."""
    return any(address == part or address.startswith(part + ".") for part in _WHOLLY_ELSE)


@functools.cache
def is_module(address: str) -> bool:
    """Tells whether Trax has a module at an address, or this library one that stands for it."""
    return (
        address in names()
        or address in _ELSEWHERE
        or has_every_name(address)
        or (_is_public(address) and _exists(_ours(address)))
    )


def stand_ins(address: str) -> list[str]:
    """Returns our modules, in order, in which the names of a module of Trax are looked up."""
    given = _ELSEWHERE.get(address, [_ours(address)])
    return [module for module in given if _exists(module)]


def doors_above(address: str) -> list[str]:
    """Returns our packages above an address, which may hand out what Trax has in it."""
    parts = address.split(".")
    above = (_ours(".".join(parts[:n])) for n in range(len(parts) - 1, 1, -1))
    return [module for module in above if _exists(module)]


def _ours(address: str) -> str:
    return "trax_torch" + address.removeprefix("trax")


def _is_public(address: str) -> bool:
    return not any(part.startswith("_") for part in address.split("."))


@functools.cache
def _exists(module: str) -> bool:
    parent, _, _ = module.rpartition(".")
    if parent and not _exists(parent):
        return False
    if parent and not hasattr(importlib.import_module(parent), "__path__"):
        return False
    return importlib.util.find_spec(module) is not None
