"""Where a layer finds its memory: what a run lends it, in the thread of the run alone.

So any number of runs, evals and trainings of one model go side by side, each in its thread.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import nn

from trax_torch.layers._predict.block import Block

P = ParamSpec("P")
T = TypeVar("T")


class Place(threading.local):
    """What is lent to a layer, other things in other threads; a copy of it is empty.

    Attributes:
      is_lent: whether a run, or an eval, is on in this thread.
      memory: what the layer remembers in it; None where it is to act as in eval mode.
      stretches: of a layer that runs others in a row: those that a compiler is shown as blocks.
    """

    def __init__(self) -> None:  # in each thread; the compiler looks for no defaults of the class
        self.is_lent = False
        self.memory: Any = None
        self.stretches: Any = ()

    def __reduce__(self) -> Any:
        return Place, ()


class NoMemory:
    """What is lent to a layer that remembers nothing: then it predicts, and no more is to be said.

    A module would do as well, but takes ten times as long to make.
    """


class HasPlace(nn.Module):
    """A module that trains, and remembers, as a run in this thread has it; else as it is itself."""

    def __init__(self) -> None:
        super().__init__()
        self._place = Place()
        self._modules["_memory"] = None  # its own, of a layer that was built to predict

    @property
    def training(self) -> bool:
        """Whether the layer is in train mode."""
        return self._trains and not self._place.is_lent

    @training.setter
    def training(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._trains = value

    @property
    def _memory(self) -> Any:
        place = self._place
        return place.memory if place.is_lent else self._modules["_memory"]

    @_memory.setter
    def _memory(self, memory: Any) -> None:
        if self._place.is_lent:
            self._place.memory = memory
        else:
            self._modules["_memory"] = memory

    def __setattr__(self, name: str, value: Any) -> None:
        # A memory is a module, which torch would register whatever the class says.
        set_it = object.__setattr__ if name == "_memory" else nn.Module.__setattr__
        set_it(self, name, value)


class _Found(threading.local):
    """What was found of models in this thread while one look is enough; see `OneLook`."""

    def __init__(self) -> None:
        self.modules: dict[nn.Module, list[nn.Module]] | None = None


_found = _Found()


class OneLook(Block):
    """Has `modules_in` look at a model once while its block runs, in this thread.

    For calls that look for several things in a model, and run none of it meanwhile.
    """

    def _run(self) -> Generator[None, None, None]:
        before = _found.modules
        try:
            _found.modules = {}
            yield
        finally:
            try:
                _found.modules = before
            except BaseException:  # once more: something may break in here, too
                _found.modules = before
                raise


def with_one_look(function: Callable[P, T]) -> Callable[P, T]:
    """Returns a function that is run in a block of `OneLook`."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        look = OneLook()
        with contextlib.closing(look), look:
            return function(*args, **kwargs)

    return run


def look_again() -> None:
    """Has `modules_in` look anew: a model may have become another."""
    if _found.modules is not None:
        _found.modules = {}


def modules_in(module: nn.Module) -> list[nn.Module]:
    """Returns what `module.modules()` yields, in the same order.

    That hands each module through as many generators as it lies deep, which takes ten times as
    long: milliseconds of a call, which looks for several things.
    """
    found = _found.modules
    if found is None:
        return _search(module)
    if module not in found:
        found[module] = _search(module)
    return list(found[module])


def _search(module: nn.Module) -> list[nn.Module]:
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found[each] = None
            inside = each._modules
            if inside:
                waiting += [m for m in reversed(inside.values()) if m is not None]
    return list(found)


def layers_in(module: nn.Module) -> list[Any]:
    """Returns a module's layers, which have a place for a memory, itself included."""
    return [m for m in modules_in(module) if "_place" in vars(m)]


class Lent(Block):
    """Lends layers memories while its block runs, in this thread.

    Args:
      layers: they have a place each.
      memories: one for each.
    """

    _is_lent = True

    def __init__(self, layers: Sequence[Any], memories: Sequence[Any]):
        self._places = [layer._place for layer in layers]
        self._memories = memories

    def _run(self) -> Generator[None, None, None]:
        before = [(place.is_lent, place.memory) for place in self._places]
        try:
            for place, memory in zip(self._places, self._memories, strict=True):
                place.memory, place.is_lent = memory, self._is_lent
            yield
        finally:
            try:
                self._give_back(before)
            except BaseException:  # once more: something may break in here, too
                self._give_back(before)
                raise

    def _give_back(self, before: list[tuple[bool, Any]]) -> None:
        for place, (is_lent, memory) in zip(self._places, before, strict=True):
            place.is_lent, place.memory = is_lent, memory


class Aside(Lent):
    """Takes what layers are lent from them while its block runs, in this thread.

    So whoever is called in the middle of a run finds the model as it is outside.

    Args:
      layers: they have a place each.
    """

    _is_lent = False

    def __init__(self, layers: Sequence[Any]):
        super().__init__(layers, [None] * len(layers))
