"""What is public, and where it is described.

A name may be had at several addresses, `layers.Dense` and `layers.core.Dense`. It is described
once, on the page of the module that is its home; the others lead there.
"""

import functools
import importlib
import inspect
import pkgutil
from typing import Any, NamedTuple

import trax_torch
from trax_torch import _public_names

PACKAGE = "trax_torch"
# To import it has `trax` mean this library; its docstring is read from its file.
NOT_IMPORTED = "trax_torch.as_trax"
_PROGRAMS = "trax_torch.examples"
# Of a private room that several hand out: at home in the deeper module, but for these.
_OVER_THE_DEEPER = ("trax_torch.data", "trax_torch.interop.trax_checkpoint")


class Name(NamedTuple):
    """One address of one public thing."""

    module: str
    name: str
    thing: Any
    home: str  # the address at which it is described

    @property
    def address(self) -> str:
        """The module's and the thing's own."""
        return f"{self.module}.{self.name}"


@functools.cache
def modules() -> list[str]:
    """The public modules whose names are described, sorted; programs are not among them."""
    found = [PACKAGE]
    for info in pkgutil.walk_packages(trax_torch.__path__, f"{PACKAGE}."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        if info.name != NOT_IMPORTED and not info.name.startswith(_PROGRAMS):
            found.append(info.name)
    return sorted(found)


def programs() -> list[str]:
    """The modules that are run, sorted."""
    place = importlib.import_module(_PROGRAMS)
    return sorted(m.name for m in pkgutil.iter_modules(place.__path__, f"{_PROGRAMS}."))


@functools.cache
def names() -> list[Name]:
    """Each address of each public thing, sorted; modules are none."""
    addresses: dict[tuple[str, str], list[str]] = {}
    found = []
    for module in modules():
        held = importlib.import_module(module)
        shown = vars(held).get("__dir__") or _public_names.names_of(module)
        for name in sorted(set(shown())):
            thing = getattr(held, name)
            if inspect.ismodule(thing) or name.startswith("_"):
                continue
            addresses.setdefault(_identity(thing, module, name), []).append(module)
            found.append((module, name, thing))
    return [Name(m, n, x, f"{_home(x, addresses[_identity(x, m, n)])}.{n}") for m, n, x in found]


def summary(thing: Any) -> str:
    """The first paragraph of its docstring; empty for a constant."""
    if not isinstance(thing, type) and not inspect.isroutine(thing):
        return ""
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(first.split())


def is_numpys(name: Name) -> bool:
    """Whether it is one of the five hundred that are described where numpy is."""
    if name.module != "trax_torch.fastmath.numpy":
        return False
    said = summary(name.thing)
    of = str(getattr(name.thing, "__module__", ""))
    return not said or said.startswith("Does what `numpy.") or not of.startswith(PACKAGE)


def _identity(thing: Any, module: str, name: str) -> tuple[str, str]:
    is_named = isinstance(thing, type) or inspect.isroutine(thing)
    return (str(id(thing)), name) if is_named else (module, name)


def _home(thing: Any, held_by: list[str]) -> str:
    of = str(getattr(thing, "__module__", ""))
    if of in held_by:
        return of
    for module in _OVER_THE_DEEPER:
        if module in held_by:
            return module
    return max(held_by, key=lambda module: (len(module.split(".")), module))
