"""What `dir()` of a public module shows: the names that are meant to be used, for completion."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset)


def show_public_names(package: str) -> None:
    """Has `dir()` of each public module below a package, loaded by now, show public names alone.

    One that has a `__dir__` of its own keeps it. A module is public where no part of its
    name begins with an underscore.
    """
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == package and not any(p.startswith("_") for p in name.split(".")):
            vars(module).setdefault("__dir__", names_of(name))


def names_of(module: str) -> Callable[[], list[str]]:
    """Returns a module's `__dir__`.

    It lists what is in the module's `__all__`, or else the functions, classes and plain constants
    that it makes itself, and those of private rooms that its package hands out; and the public
    modules in it.
    """

    def public() -> list[str]:
        return sorted(set(_public(sys.modules[module])))

    return public


def _public(module: types.ModuleType) -> Iterator[str]:
    held = vars(module)
    names = held.get("__all__")
    if names is None:
        parent = vars(sys.modules[module.__name__.rpartition(".")[0]])
        handed_out = parent.get("__all__", ())
        names = [n for n, x in held.items() if _is_of(module.__name__, n, x, handed_out)]
    yield from names
    for name, thing in held.items():
        is_inside = isinstance(thing, types.ModuleType) and not name.startswith("_")
        if is_inside and thing.__name__ == f"{module.__name__}.{name}":
            yield name


def _is_of(module: str, name: str, thing: Any, handed_out: Any) -> bool:
    if name.startswith("_") or isinstance(thing, types.ModuleType):
        return False
    maker = getattr(thing, "__module__", None)
    if maker is None:
        return isinstance(thing, _PLAIN)
    is_private = any(part.startswith("_") for part in str(maker).split("."))
    return maker == module or (is_private and name in handed_out)
