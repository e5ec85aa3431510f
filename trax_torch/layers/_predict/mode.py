"""Predict mode for a while: a model's memory of the past, put in place and taken away again."""

import contextlib
import threading
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

from torch import nn

from trax_torch.layers._predict.block import Block
from trax_torch.layers._predict.place import Lent, look_again, modules_in
from trax_torch.layers._predict.quiet import Quiet

# A module's own attributes, its buffers, and the modules that it holds.
_Attributes = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]

# Foreign modules keep their memory in themselves: one thread at a time runs any that do.
foreign_lock = threading.RLock()


class Predicting(Block):
    """A run of predict mode; a context that may be entered again and goes on where it was.

    Between its `with` blocks the model is as it was, so it can be trained, or predict in another
    run, in the meantime; and other threads may train it, measure it and predict with it at any
    time, since what layers remember is lent to them in this thread alone. Foreign modules have one
    mode, and one memory, for all threads: in a block they are in eval mode, and another thread that
    predicts with any that has a cache of its own waits until the block is left.

    Blocks of one model may lie in each other, if they are left in the order of a stack; one run has
    one block at a time.

    Args:
      layer: the model.
      batch_size: as for `Layer.predict`.
      max_length: likewise.
    """

    def __init__(self, layer: Any, batch_size: int | None, max_length: int | None):
        self._layer = layer
        modules = modules_in(layer)
        self._layers: list[Any] = [m for m in modules if "_place" in vars(m)]
        self._others = [m for m in modules if "_place" not in vars(m)]
        # A foreign module keeps its memory in attributes, buffers and modules that it makes, its
        # own or those of modules inside it.
        cached: list[Any] = list(foreign_caches(layer))
        inside = {m for each in cached for m in modules_in(each)}
        self._foreign = [m for m in self._others if m in inside]
        self._lock = _lock(bool(cached))
        self._is_entered = False
        self._memories: list[Any] = [None] * len(self._layers)
        lent = self._lend()
        with self._lock, contextlib.closing(lent), lent:
            outside = self._attributes()
            try:
                for module in (*self._layers, *cached):
                    module.init_cache(batch_size, max_length)
                if cached:  # they may have made modules
                    look_again()
                self._keep()
            finally:
                try:
                    self._put(outside)
                except BaseException:  # once more: something may break in here, too
                    self._put(outside)
                    raise

    def _inside(self) -> Any:
        return self._layer

    def __exit__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_inner = True
        try:
            is_inner = self._is_innermost()
        finally:  # a block that is broken off here is left all the same
            if is_inner:
                super().__exit__()
        if not is_inner:
            raise RuntimeError(
                f"Blocks of predict mode are left in the order of a stack, but this one of "
                f"{self._layer.name} is not the innermost. Leave what was entered after it first, "
                f"and each block once, in the thread that entered it."
            )

    def _is_innermost(self) -> bool:
        pairs = zip(self._layers, self._memories, strict=True)
        mine = [(layer, memory) for layer, memory in pairs if memory is not None]
        # A layer may have made its memory anew in the block, but hardly all of them.
        are_mine = not mine or any(la._place.memory is memory for la, memory in mine)
        return self._is_entered and are_mine

    def __enter__(self) -> Any:
        if self._is_entered:
            raise RuntimeError(
                f"A run of predict mode has one block at a time, but this one of "
                f"{self._layer.name} was entered in its own block. Call predict() again for "
                f"another run, or leave the block first."
            )
        return super().__enter__()

    def _run(self) -> Generator[None, None, None]:
        lent, quiet = self._lend(), Quiet(self._others)
        with (
            self._lock,
            contextlib.closing(quiet),
            quiet,
            contextlib.closing(lent),
            lent,
        ):
            outside = self._attributes()
            try:
                self._put(self._kept)
                self._is_entered = True
                yield
                self._keep()
            finally:
                try:
                    self._restore(outside)
                except BaseException:  # once more: something may break in here, too
                    self._restore(outside)
                    raise

    def _lend(self) -> Lent:
        return Lent(self._layers, self._memories)

    def _keep(self) -> None:
        """Notes what is remembered, for the next block."""
        self._memories = [layer._place.memory for layer in self._layers]
        self._kept = self._attributes()

    def _restore(self, outside: list[_Attributes]) -> None:
        self._put(outside)
        self._is_entered = False

    def _attributes(self) -> list[_Attributes]:
        """Returns what foreign modules remember."""
        return [_attributes_of(module) for module in self._foreign]

    def _put(self, attributes: list[_Attributes]) -> None:
        for module, own in zip(self._foreign, attributes, strict=True):
            _set_attributes(module, own)


def lock_for(layer: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Returns what to hold while a model runs that must find its foreign memories as they were."""
    return _lock(any(True for _ in foreign_caches(layer)))


def _lock(has_foreign_caches: bool) -> contextlib.AbstractContextManager[Any]:
    return foreign_lock if has_foreign_caches else contextlib.nullcontext()


def foreign_caches(layer: nn.Module) -> Iterator[Any]:
    """Yields the outermost modules with a cache of their own, which see to those inside."""
    inside: set[int] = set()
    for module in modules_in(layer):
        if "_place" not in vars(module) and hasattr(module, "init_cache"):
            if id(module) not in inside:
                yield module
            inside.update(id(m) for m in modules_in(module))


def _attributes_of(module: Any) -> _Attributes:
    """Returns what a module is made of but for its parameters and whether it trains."""
    apart = ("_parameters", "_modules", "_buffers", "training")
    own = {k: v for k, v in vars(module).items() if k not in apart}
    return own, dict(module._buffers), dict(module._modules)


def _set_attributes(module: Any, attributes: _Attributes) -> None:
    own, buffers, modules = attributes
    for name in _attributes_of(module)[0].keys() - own.keys():
        del module.__dict__[name]
    module.__dict__.update(own)
    module._buffers.clear()
    module._buffers.update(buffers)
    module._modules.clear()
    module._modules.update(modules)
