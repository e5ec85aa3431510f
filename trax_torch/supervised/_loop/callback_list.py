"""The callbacks of a run: told of what happens, and what fails in one fails on all ranks."""

import contextlib
from collections.abc import Iterator
from typing import Any

from trax_torch import _distributed
from trax_torch.supervised._loop.stopping import Stopping


class CallbackList:
    """The callbacks of a run.

    Args:
      world: the ranks that train together.
      stopping: where ranks agree on whether to go on.

    Attributes:
      items: the callbacks.
    """

    def __init__(self, world: _distributed.World, stopping: Stopping):
        self._world = world
        self._stopping = stopping
        self.items: list[Any] = []

    def build(self, makers: Any, loop: Any) -> None:
        """Builds callbacks, which may look at the loop: it is ready.

        Args:
          makers: a class, several, or None.
          loop: what they are built with.
        """
        with self._world.together():
            for maker in makers if isinstance(makers, (list, tuple)) else [makers] * bool(makers):
                self.items.append(maker(loop))
        (n_callbacks,) = self._world.sum([len(self.items)])
        self._are_anywhere = n_callbacks > 0

    def step_ended(self, called: list[Any], step: int) -> None:
        """Tells those that want to be called at a step that it was taken."""
        error = None
        try:
            for callback in called:
                callback.on_step_end(step)
        except Exception as raised:
            error = raised
        if self._are_anywhere and self._world.size > 1:
            self._stopping.agree(error=error)
        elif error is not None:
            raise error

    @contextlib.contextmanager
    def evals(self, step: int) -> Iterator[None]:
        """Tells all that evals begin, and those that were told, that they end."""
        with contextlib.ExitStack() as ends:
            for callback in self.items:
                callback.on_evals_begin(step)
                ends.callback(callback.on_evals_end, step)
            yield

    @contextlib.contextmanager
    def run(self, loop: Any) -> Iterator[None]:
        """Tells all that a run ends, however it does."""
        try:
            yield
        finally:
            with contextlib.ExitStack() as ends:  # one that fails keeps no other from its end
                for callback in self.items:
                    ends.callback(callback.on_run_end, loop.step)

    def values(self) -> dict[str, float]:
        """Returns what they measured, by name."""
        values: dict[str, float] = {}
        for callback in self.items:
            values |= {name: float(x) for name, x in callback.training_values().items()}
        return values
