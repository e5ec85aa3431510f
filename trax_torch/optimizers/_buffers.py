"""The buffers that a step in train mode may change, such as statistics, and how they were before.

This room runs passes that leave everything as it was; it never moves a weight.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _seeds
from trax_torch import layers as tl
from trax_torch._torch_private import foreach
from trax_torch.layers import _protocol
from trax_torch.layers._protocol import modes_kept


class Buffers:
    """Keeps the buffers that a `state_dict` holds as they are before a step, to put them back.

    Args:
      layer: has them.
    """

    def __init__(self, layer: tl.Layer):
        self._places = _places_of_buffers(layer)
        self._kept: list[torch.Tensor] = []

    def keep(self) -> None:
        """Copies the buffers as they are, into the memory of the last copy."""
        if not self._places:
            return
        now = [buffers[name] for buffers, name in self._places]
        forms = [(t.shape, t.dtype, t.device) for t in now]
        if forms != [(t.shape, t.dtype, t.device) for t in self._kept]:
            self._kept = [torch.empty_like(t) for t in now]
        with torch.no_grad():
            foreach.copy_(self._kept, now)

    def put_back(self, condition: torch.Tensor | None = None) -> None:
        """Puts the copies back; where a number on the device is given, if it is not 0."""
        with torch.no_grad():
            for (buffers, name), kept in zip(self._places, self._kept, strict=True):
                now = buffers[name]
                if now.shape != kept.shape:  # renewed in another size
                    buffers[name] = kept.clone()
                    continue
                now.copy_(kept if condition is None else torch.where(condition, kept, now))


def try_out(
    forward: Callable[[Any], torch.Tensor], layer: tl.Layer, batch: Any, seed: int
) -> list[bool]:
    """Runs forward and backward on a batch, and leaves everything as it was.

    Args:
      forward: computes the loss.
      layer: model and loss.
      batch: a batch.
      seed: of the random numbers.

    Returns:
      For each parameter of the layer that is trained: whether the loss depends on it.
    """
    params = [p for p in layer.parameters() if p.requires_grad]
    try:
        with _left_as_it_is(layer, seed):
            layer.train()
            forward(batch).backward()
        return [p.grad is not None for p in params]
    finally:
        for p in params:
            p.grad = None


def run_through(layer: tl.Layer, batch: Any, seed: int, training: bool) -> None:
    """Runs forward on a batch, without gradients, and leaves everything as it was.

    Args:
      layer: model and loss.
      batch: a batch.
      seed: of the random numbers.
      training: whether in train mode.
    """
    with _left_as_it_is(layer, seed), torch.no_grad():
        layer.train(training)
        layer(batch)


@contextlib.contextmanager
def _left_as_it_is(layer: tl.Layer, seed: int) -> Generator[None]:
    """Puts modes, buffers and generators back after its block."""
    places = _places_of_buffers(layer)
    kept = [buffers[name].clone() for buffers, name in places]
    device = next((p.device for p in layer.parameters() if p.requires_grad), None)
    try:
        with modes_kept(layer), _seeds.Keyed(device)(seed):
            yield
    finally:
        with torch.no_grad():
            for (buffers, name), before in zip(places, kept, strict=True):
                buffers[name].copy_(before)


def _places_of_buffers(layer: tl.Layer) -> list[tuple[dict[str, Any], str]]:
    """Returns where the buffers are that a step in train mode may change: statistics, say."""
    return [(owner._buffers, name) for _, owner, name in _protocol.lasting_buffers(layer)]
