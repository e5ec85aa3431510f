"""Offload: weights and slots stay on the device, or wait in host memory until they are used."""

import contextlib
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import nn


class Residence:
    """Weights and slots stay where they are."""

    def fetch(self, params: Iterable[nn.Parameter]) -> None:
        """Starts to bring weights, which will be wanted soon."""

    def bring(self, params: Iterable[nn.Parameter]) -> None:
        """Has weights on the device."""

    def leave(self, params: Iterable[nn.Parameter], changed: Iterable[nn.Parameter]) -> None:
        """Takes weights off the device, and notes what became of those that changed."""

    @contextlib.contextmanager
    def slots_at_hand(
        self, optimizer: torch.optim.Optimizer, params: Iterable[nn.Parameter]
    ) -> Generator[None]:
        """Has the slots of weights on the device for a block."""
        yield

    def settle(self) -> None:
        """Waits until everything is in its place."""

    def abandon(self) -> None:
        """Has everything in its place as it was there, whatever became of it on the device."""


class HostMemory(Residence):
    """Weights and slots are in host memory, and on the device while they are used.

    On a GPU the memory is pinned, and copies run beside the computation: what is fetched comes
    while the block before computes. At most three blocks are on the device at a time: one that
    computes, one that comes, and one that goes.

    Args:
      params: the weights, which move to host memory now.
      device: where to compute.
    """

    def __init__(self, params: Iterable[nn.Parameter], device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._left: list[Any] = []  # when the computation with the blocks that left last is done
        self._coming: dict[nn.Parameter, torch.Tensor] = {}
        self._homes: dict[nn.Parameter, torch.Tensor] = {}  # of weights that are on the device
        for p in params:
            p.data = self._pinned(p.data)

    def fetch(self, params: Iterable[nn.Parameter]) -> None:
        """Starts to bring weights, once the block before the last has made room."""
        if len(self._left) > 1:
            self._left.pop(0).synchronize()
        with self._copying():
            for p in params:
                if p not in self._coming and p not in self._homes:
                    self._coming[p] = self._copy(p.data)

    def bring(self, params: Iterable[nn.Parameter]) -> None:
        """Has weights on the device."""
        params = list(params)
        self.fetch(params)
        self._wait_for_copies()
        for p in params:
            if p not in self._homes:
                self._homes[p], p.data = p.data, self._used_now(self._coming.pop(p))

    def leave(self, params: Iterable[nn.Parameter], changed: Iterable[nn.Parameter]) -> None:
        """Takes weights off the device; those that changed are copied to host memory."""
        moved = set(changed)
        with self._copying(after_computing=True):
            for p in params:
                home = self._homes.pop(p)
                if p in moved:
                    self._send(p.data, home)
                p.data = home
        if self._on_gpu:
            self._left.append(torch.cuda.current_stream(self._device).record_event())

    @contextlib.contextmanager
    def slots_at_hand(
        self, optimizer: torch.optim.Optimizer, params: Iterable[nn.Parameter]
    ) -> Generator[None]:
        """Has the slots of weights on the device for a block, and then in host memory again."""
        homes = {p: dict(optimizer.state[p]) for p in params if p in optimizer.state}
        on_device = {
            id(p)
            for group in optimizer.param_groups
            if group.get("fused") or group.get("capturable")
            for p in group["params"]
        }
        with self._copying():
            for p, slots in homes.items():
                for name, slot in slots.items():
                    if _moves(slot, id(p) in on_device):
                        optimizer.state[p][name] = self._copy(slot)
        self._wait_for_copies()
        try:
            yield
        except BaseException:
            with self._copying(after_computing=True):  # which may still use what goes
                for p, slots in homes.items():
                    optimizer.state[p].update(slots)
            raise
        with self._copying(after_computing=True):
            for p in params:
                for name, slot in optimizer.state.get(p, {}).items():
                    home = homes.get(p, {}).get(name)
                    if not _moves(slot, is_wanted=True) or slot is home:
                        continue
                    if home is None or home.shape != slot.shape or not self._is_fit(home):
                        home = self._pinned(torch.empty_like(slot, device="cpu"))
                    self._send(slot, home)
                    optimizer.state[p][name] = home

    def settle(self) -> None:
        """Waits until all copies are done, so that the host may read."""
        self._coming.clear()
        if self._stream is not None:
            self._stream.synchronize()
            self._left.clear()

    def abandon(self) -> None:
        """Has the weights in host memory as they were there."""
        for p, home in self._homes.items():
            p.data = home
        self._homes.clear()
        self.settle()

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to("cpu")
        return tensor.pin_memory() if self._on_gpu else tensor

    def _is_fit(self, home: torch.Tensor) -> bool:
        """Tells whether it is pinned, where it must be; a slot that was loaded is not."""
        return not self._on_gpu or home.is_pinned()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True, copy=True)

    def _send(self, tensor: torch.Tensor, home: torch.Tensor) -> None:
        home.copy_(tensor, non_blocking=True)
        if self._stream is not None and tensor.is_cuda:  # a count of steps may be on the host
            tensor.record_stream(self._stream)

    def _used_now(self, tensor: torch.Tensor) -> torch.Tensor:
        """Notes that the computation uses what the copies made."""
        if self._on_gpu:
            tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensor

    @contextlib.contextmanager
    def _copying(self, after_computing: bool = False) -> Generator[None]:
        if self._stream is None:
            yield
            return
        if after_computing:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def _wait_for_copies(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _moves(slot: Any, is_wanted: bool) -> bool:
    """Tells whether a slot is kept where its weight is: a count of steps often is not."""
    return isinstance(slot, torch.Tensor) and (slot.dim() > 0 or is_wanted)
