"""Answers `import trax`, for this process."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

from trax_torch._as_trax import addresses, tensor_methods, ways
from trax_torch._as_trax.modules import TraxModule

SETTING = "TRAX_TORCH_AS_TRAX"


class Finder(MetaPathFinder, Loader):
    """Finds `trax`, and the modules that Trax has in it, and makes them.

    Python's import system keeps them in `sys.modules`, under its own locks.

    Args:
      take_back_methods: undoes what the name brought besides.
    """

    def __init__(self, take_back_methods: Callable[[], None]):
        self.take_back_methods = take_back_methods

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns how to make a module, if it is one of Trax's."""
        if fullname.partition(".")[0] != "trax" or not addresses.is_module(fullname):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> TraxModule:
        """Returns an empty module."""
        return TraxModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Fills a module."""
        assert isinstance(module, TraxModule)
        module.fill(ways.of(module.__name__))


def install(replace: bool = False) -> None:
    """Lets `trax` mean this library in this process; asked again, it does nothing.

    Args:
      replace: also where Trax itself is installed; the environment's `TRAX_TORCH_AS_TRAX=replace`
        says the same.

    Raises:
      ImportError: if Trax is installed, and nothing says that it shall be replaced; or if it was
        imported already.
    """
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    if "trax" in sys.modules:
        raise ImportError(
            f"`trax` shall mean trax_torch, but {_place(sys.modules['trax'].__spec__)} was "
            f"imported before. Import trax_torch.as_trax first."
        )
    spec = importlib.util.find_spec("trax")
    is_there = spec is not None and spec.origin is not None  # a plain folder of that name is none
    if is_there and not replace and os.environ.get(SETTING) != "replace":
        raise ImportError(
            f"`trax` shall mean trax_torch, but Trax itself is installed: {_place(spec)}. "
            f"Uninstall it (pip uninstall trax), or set {SETTING}=replace in the environment."
        )
    sys.meta_path.insert(0, Finder(tensor_methods.add()))


def uninstall() -> None:
    """Takes the name back, and what tensors got with it; modules that were imported stay whole."""
    for finder in [f for f in sys.meta_path if isinstance(f, Finder)]:
        sys.meta_path.remove(finder)
        finder.take_back_methods()
    for name in [n for n in sys.modules if n == "trax" or n.startswith("trax.")]:
        del sys.modules[name]


def _place(spec: ModuleSpec | None) -> str:
    return "another module of that name" if spec is None else str(spec.origin)
