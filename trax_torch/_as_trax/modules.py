"""What `import trax.layers` gives: a module that looks names up in ours."""

import importlib
import types
from collections.abc import Iterable
from typing import Any

from trax_torch._as_trax import addresses
from trax_torch._as_trax.missing import Missing

_NOTHING = object()  # for None is a value, numpy's newaxis
_OF_OURS = ("__all__", "__file__", "__version__")


class TraxModule(types.ModuleType):
    """A module of Trax's name; names that were looked up once are kept.

    Names that Trax has and this library has not are `Missing`: they raise when they are used, not
    when they are imported. Names that neither has raise AttributeError at once.
    """

    def fill(self, ways: dict[str, Any]) -> None:
        """Begins, also after `importlib.reload`: forgets all names, and takes those given."""
        kept = {k: v for k, v in self.__dict__.items() if k.startswith("__")}
        self.__dict__.clear()
        self.__dict__.update(kept, **ways)
        self.__doc__ = f"{self.__name__}, as trax_torch has it."

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [n for n in dir(self) if not n.startswith("_")]
        if name.startswith("__") and name not in _OF_OURS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = self._look_up(name)
        if not name.startswith("__"):
            self.__dict__[name] = value
        return value

    def _look_up(self, name: str) -> Any:
        address = f"{self.__name__}.{name}"
        ours = addresses.stand_ins(self.__name__)
        if addresses.has_every_name(self.__name__):
            return Missing(address)
        found = _first(ours, name)
        is_door = found is _NOTHING or isinstance(found, types.ModuleType)
        if is_door and addresses.is_module(address):
            return importlib.import_module(address)
        is_trax = name in addresses.names().get(self.__name__, ())
        if found is _NOTHING and is_trax:
            found = _first(addresses.doors_above(self.__name__), name)
        if found is not _NOTHING:
            return found
        if is_trax:
            return Missing(address)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}: neither Trax 1.4.1 nor "
            f"trax_torch has it. Look at dir({self.__name__}) for what is there."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # What imports a submodule sets it here; in Trax `layers.assert_shape` is the function.
        if isinstance(value, TraxModule) and value.__name__ == f"{self.__name__}.{name}":
            found = _first(addresses.stand_ins(self.__name__), name)
            if found is not _NOTHING and not isinstance(found, types.ModuleType):
                return
        super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        names = {name for name in self.__dict__ if not isinstance(self.__dict__[name], Missing)}
        for module in map(importlib.import_module, addresses.stand_ins(self.__name__)):
            names.update(getattr(module, "__all__", None) or dir(module))
        return sorted(names)


def _first(modules: list[str], name: str) -> Any:
    """Returns what the first of our modules that has a name has under it."""
    for module in map(importlib.import_module, modules):
        found = getattr(module, name, _NOTHING)
        if found is not _NOTHING:
            return found
    return _NOTHING
