"""Modules that are no layers of this package, in eval mode while a run needs them so.

Such a module has one mode for all threads: it goes back to train mode when the last run has left.
"""

import threading
import weakref
from collections.abc import Generator, Iterable

from torch import nn

from trax_torch.layers._predict.block import Block

_mutex = threading.Lock()
_runs: "weakref.WeakKeyDictionary[nn.Module, set[Quiet]]" = weakref.WeakKeyDictionary()


class Quiet(Block):
    """Puts modules that train in eval mode while its block runs.

    Args:
      modules: those that are no layers.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)

    def _run(self) -> Generator[None, None, None]:
        try:
            with _mutex:
                for module in self._modules:
                    if module in _runs or module.training:
                        _runs.setdefault(module, set()).add(self)
                        module.training = False
            yield
        finally:
            try:
                self._leave()
            except BaseException:  # once more: something may break in here, too
                self._leave()
                raise

    def _leave(self) -> None:
        with _mutex:
            for module in self._modules:
                runs = _runs.get(module, set())
                if runs == {self}:
                    module.training = True
                    del _runs[module]
                else:
                    runs.discard(self)
