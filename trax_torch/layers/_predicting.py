"""Predict mode for a while: a model's memory of the past, put in place and taken away again."""

from types import TracebackType
from typing import Any


class Predicting:
    """A run of predict mode; a context that may be entered again and goes on where it was.

    Between its `with` blocks the model is as it was, so it can be trained, or predict in another
    run, in the meantime.

    Args:
      layer: the model.
      batch_size: as for `Layer.predict`.
      max_length: likewise.
    """

    def __init__(self, layer: Any, batch_size: int | None, max_length: int | None):
        self._layer = layer
        self._modules = list(layer.modules())
        self._layers = [m for m in self._modules if "_memory" in m._modules]
        before = self._swap_in([None] * len(self._layers))
        try:
            for module in self._modules:
                if hasattr(module, "init_cache"):
                    module.init_cache(batch_size, max_length)
        finally:
            self._memories = self._swap_in(before)
        self._before: list[Any] = []
        self._training: list[Any] = []

    def __enter__(self) -> Any:
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
        self._memories = self._swap_in(self._before)
        for module in self._training:
            module.training = True

    def _swap_in(self, memories: list[Any]) -> list[Any]:
        """Puts memories in place and returns those that were there."""
        before = []
        for layer, memory in zip(self._layers, memories, strict=True):
            before.append(layer._modules["_memory"])
            layer._modules["_memory"] = memory
        return before
