"""Where a layer finds its memory: what a run lends it, in the thread of the run alone.

So any number of runs, evals and trainings of one model go side by side, each in its thread.
"""

import threading
from collections.abc import Generator, Sequence
from typing import Any

from torch import nn

from trax_torch.layers._predict.block import Block


class Place(threading.local):
    """What is lent to a layer, other things in other threads; a copy of it is empty.

    Attributes:
      is_lent: whether a run, or an eval, is on in this thread.
      memory: what the layer remembers in it; None where it is to act as in eval mode.
    """

    def __init__(self) -> None:  # in each thread; the compiler looks for no defaults of the class
        self.is_lent = False
        self.memory: Any = None

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


def modules_in(module: nn.Module) -> list[nn.Module]:
    """Returns what `module.modules()` yields, in the same order.

    That hands each module through as many generators as it lies deep, which takes ten times as
    long: milliseconds of a call, which looks for several things.
    """
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found[each] = None
            waiting += [m for m in reversed(each._modules.values()) if m is not None]
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

    def __init__(self, layers: Sequence[Any], memories: Sequence[Any]):
        self._places = [layer._place for layer in layers]
        self._memories = memories

    def _run(self) -> Generator[None, None, None]:
        before = [(place.is_lent, place.memory) for place in self._places]
        try:
            for place, memory in zip(self._places, self._memories, strict=True):
                place.memory, place.is_lent = memory, True
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
