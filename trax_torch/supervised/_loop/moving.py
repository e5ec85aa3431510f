"""Batches on their way to the device that a run computes on."""

from typing import Any

import torch

from trax_torch import _nest


class Mover:
    """Moves batches to a device, those for a GPU beside what it computes.

    They go through pinned memory, on a stream of their own, and nobody waits for them but the
    computation that needs them. The host, which is ahead of the GPU, moves a batch while the one
    before is computed with, and waits before it would move a second: two are in the GPU's memory.

    What knows itself how to move, such as a batch of graphs, does so, and is waited for.

    Args:
      device: where to.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last_arrived: torch.cuda.Event | None = None

    def __call__(self, batch: Any) -> Any:
        """Returns a batch with its numbers, arrays and tensors as tensors on the device."""
        if self._copying is None:
            return _nest.to_tensors(batch, self._device)
        if self._last_arrived is not None:
            self._last_arrived.synchronize()
        computing = torch.cuda.current_stream(self._device)
        moved = _nest.map_leaves(self._send, _nest.to_tensors(batch))
        computing.wait_stream(self._copying)
        for leaf in _nest.leaves(moved):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                leaf.record_stream(computing)  # else its memory is free once it is not referred to
        self._last_arrived = torch.cuda.Event()
        self._last_arrived.record(computing)
        return moved

    def _send(self, leaf: Any) -> Any:
        """Sends a plain tensor on its way; moves anything else as it can be."""
        if type(leaf) is not torch.Tensor or leaf.is_cuda or leaf.layout != torch.strided:
            return _nest.to_tensor(leaf, self._device)
        pinned = leaf if leaf.is_pinned() else leaf.pin_memory()
        with torch.cuda.stream(self._copying):
            return pinned.to(self._device, non_blocking=True)
