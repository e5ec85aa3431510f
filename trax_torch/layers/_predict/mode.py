"""Predict mode for a while: a model's memory of the past, put in place and taken away again."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import nn

from trax_torch.layers._predict.lock import lock_of


class Predicting:
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
        # A foreign module keeps its memory in attributes and buffers of its own.
        self._foreign = [
            m for m in self._modules if "_memory" not in m._modules and hasattr(m, "init_cache")
        ]
        self._attributes = [_attributes_of(m) for m in self._foreign]
        with self._lock:
            before = self._swap_in([None] * len(self._layers))
            try:
                for module in (*self._layers, *foreign_caches(layer)):
                    module.init_cache(batch_size, max_length)
            finally:
                self._memories = self._swap_in(before)
        self._before: list[Any] | None = None  # the memories of the model, while this is entered
        self._training: list[Any] = []

    def __enter__(self) -> Any:
        if self._before is not None:
            raise RuntimeError(
                f"A run of predict mode has one block at a time, but this one of "
                f"{self._layer.name} was entered in its own block. Call predict() again for "
                f"another run, or leave the block first."
            )
        self._lock.__enter__()
        self._training = [m for m in self._modules if m.training]
        for module in self._training:
            module.training = False
        self._before = self._swap_in(self._memories)
        return self._layer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        mine = [
            (la, m) for la, m in zip(self._layers, self._memories, strict=True) if m is not None
        ]
        # A layer may have made its memory anew in the block, but hardly all of them.
        is_inner = not mine or any(la._modules["_memory"] is m for la, m in mine)
        if self._before is None or not is_inner:
            raise RuntimeError(
                f"Blocks of predict mode are left in the order of a stack, but this one of "
                f"{self._layer.name} is not the innermost. Leave what was entered after it first, "
                f"and each block once."
            )
        self._memories, self._before = self._swap_in(self._before), None
        for module in self._training:
            module.training = True
        self._lock.__exit__()

    def _swap_in(self, memories: list[Any]) -> list[Any]:
        """Puts memories in place and returns those that were there."""
        for i, module in enumerate(self._foreign):
            theirs = _attributes_of(module)
            _set_attributes(module, self._attributes[i])
            self._attributes[i] = theirs
        before = []
        for layer, memory in zip(self._layers, memories, strict=True):
            before.append(layer._modules["_memory"])
            layer._modules["_memory"] = memory
        return before


def foreign_caches(layer: nn.Module) -> Iterator[Any]:
    """Yields the outermost modules with a cache of their own, which see to those inside."""
    inside: set[int] = set()
    for module in layer.modules():
        if "_memory" not in module._modules and hasattr(module, "init_cache"):
            if id(module) not in inside:
                yield module
            inside.update(id(m) for m in module.modules())


def _attributes_of(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a module's own attributes and buffers, but not what it is made of."""
    kept = ("_parameters", "_modules", "_buffers", "training")
    return {k: v for k, v in vars(module).items() if k not in kept}, dict(module._buffers)


def _set_attributes(module: Any, attributes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    own, buffers = attributes
    for name in _attributes_of(module)[0].keys() - own.keys():
        del module.__dict__[name]
    module.__dict__.update(own)
    module._buffers.clear()
    module._buffers.update(buffers)
