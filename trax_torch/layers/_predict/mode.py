"""Predict mode for a while: a model's memory of the past, put in place and taken away again."""

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

from torch import nn

from trax_torch.layers._predict.block import Block
from trax_torch.layers._predict.lock import lock_of

# A module's own attributes, its buffers, and the modules that it holds.
_Attributes = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
_State = tuple[list[Any], list[_Attributes]]  # memories of layers, attributes of others


class Predicting(Block):
    """A run of predict mode; a context that may be entered again and goes on where it was.

    Between its `with` blocks the model is as it was, so it can be trained, or predict in another
    run, in the meantime. Blocks of one model may lie in each other, if they are left in the order
    of a stack; one run has one block at a time. Another thread waits until a block of the model is
    left.

    Args:
      layer: the model.
      batch_size: as for `Layer.predict`.
      max_length: likewise.
    """

    def __init__(self, layer: Any, batch_size: int | None, max_length: int | None):
        self._layer = layer
        self._lock = lock_of(layer)
        self._modules = list(layer.modules())
        self._layers = [m for m in self._modules if "_memory" in m._modules]
        # Foreign modules keep their memory in attributes, buffers and modules that they make, their
        # own or those of modules inside them.
        inside = {m for cached in foreign_caches(layer) for m in cached.modules()}
        self._foreign = [m for m in self._modules if m in inside and "_memory" not in m._modules]
        self._is_entered = False
        with self._lock.held:
            outside = self._now()
            try:
                self._put(([None] * len(self._layers), outside[1]))
                for module in (*self._layers, *foreign_caches(layer)):
                    module.init_cache(batch_size, max_length)
                self._kept = self._now()
            finally:
                try:
                    self._put(outside)
                except BaseException:  # once more: something may break in here, too
                    self._put(outside)
                    raise

    def _inside(self) -> Any:
        return self._layer

    def __exit__(
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
                f"and each block once."
            )

    def _is_innermost(self) -> bool:
        memories = self._kept[0]
        mine = [(la, m) for la, m in zip(self._layers, memories, strict=True) if m is not None]
        # A layer may have made its memory anew in the block, but hardly all of them.
        are_mine = not mine or any(la._modules["_memory"] is m for la, m in mine)
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
        with self._lock.held:
            outside, training = self._now(), [m for m in self._modules if m.training]
            try:
                for module in training:
                    module.training = False
                self._put(self._kept)
                self._is_entered = True
                yield
                self._kept = self._now()
            finally:
                try:
                    self._restore(outside, training)
                except BaseException:  # once more: something may break in here, too
                    self._restore(outside, training)
                    raise

    def _restore(self, outside: _State, training: list[Any]) -> None:
        self._put(outside)
        for module in training:
            module.training = True
        self._is_entered = False

    def _now(self) -> _State:
        """Returns the memories that are in place."""
        memories = [layer._modules["_memory"] for layer in self._layers]
        return memories, [_attributes_of(module) for module in self._foreign]

    def _put(self, state: _State) -> None:
        """Puts memories in place."""
        memories, attributes = state
        for layer, memory in zip(self._layers, memories, strict=True):
            layer._modules["_memory"] = memory
        for module, own in zip(self._foreign, attributes, strict=True):
            _set_attributes(module, own)


def foreign_caches(layer: nn.Module) -> Iterator[Any]:
    """Yields the outermost modules with a cache of their own, which see to those inside."""
    inside: set[int] = set()
    for module in layer.modules():
        if "_memory" not in module._modules and hasattr(module, "init_cache"):
            if id(module) not in inside:
                yield module
            inside.update(id(m) for m in module.modules())


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
