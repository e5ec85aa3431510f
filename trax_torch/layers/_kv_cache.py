"""Predict-mode memory: fixed buffers, written at a position, never concatenated.

A memory is made once for a number of positions, and refuses a position beyond it before it writes.
The buffers themselves are made at the first call, which knows their type and device.
"""

from typing import Any

import torch
from torch import nn


class Position(nn.Module):
    """How many positions of a sequence have been seen, up to `max_length`.

    Args:
      max_length: how many there is room for, or None for no limit.
    """

    def __init__(self, max_length: int | None):
        super().__init__()
        self.max_length = max_length
        self.filled = 0

    def advance(self, n: int) -> int:
        """Moves on by `n` positions and returns the first of them, counted from 0.

        Raises:
          ValueError: if there is no room; nothing has changed then.
        """
        start = self.filled
        if self.max_length is not None and start + n > self.max_length:
            raise ValueError(
                f"The predict-mode memory has room for {self.max_length} positions; {start} are "
                f"filled and {n} more came. Decode with a larger max_length, or reset the cache."
            )
        self.filled = start + n
        return start

    def reset(self) -> None:
        """Goes back to the start."""
        self.filled = 0

    def tree(self) -> Any:
        """The position, as a scalar of int32."""
        return torch.tensor(self.filled, dtype=torch.int32)

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.filled = int(values[0]) if values else 0


class KVCache(Position):
    """The keys and values of the positions seen so far: buffers (..., max_length, d_head).

    Args:
      max_length: how many positions there is room for.
      batch_size: leading size that the first call must have, or None for any.
    """

    def __init__(self, max_length: int, batch_size: int | None = None):
        super().__init__(max_length)
        self.length = max_length
        self.batch_size = batch_size
        self.keys: torch.Tensor | None
        self.values: torch.Tensor | None
        self.register_buffer("keys", None, persistent=False)
        self.register_buffer("values", None, persistent=False)

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Writes the next n positions.

        Args:
          keys: tensor (..., n, d_head).
          values: likewise.

        Returns:
          `(keys, values, start)`: all that is filled, (..., start + n, d_head), and where the new
          ones start.

        Raises:
          ValueError: if there is no room, or the batch has another size than before.
        """
        n = keys.shape[-2]
        start = self.advance(n)
        if self.keys is None or self.values is None or start == 0:
            self._make(keys, values)
        assert self.keys is not None and self.values is not None
        if self.keys.shape[:-2] != keys.shape[:-2]:
            self.filled = start
            raise ValueError(
                f"The predict-mode memory was begun with leading sizes "
                f"{tuple(self.keys.shape[:-2])}; got {tuple(keys.shape[:-2])}. Reset the cache "
                f"before another batch."
            )
        end = start + n
        self.keys[..., start:end, :] = keys.detach()
        self.values[..., start:end, :] = values.detach()
        return self.keys[..., :end, :], self.values[..., :end, :], start

    def reorder(self, parents: torch.Tensor) -> None:
        """Lets row r of the leading axis go on from the past of row `parents[r]`."""
        if self.keys is not None and self.values is not None:
            end = self.filled
            self.keys[..., :end, :] = self.keys[parents][..., :end, :]
            self.values[..., :end, :] = self.values[parents][..., :end, :]

    def tree(self) -> Any:
        """`(keys, values, position)`, filled part alone; `()` before the first call."""
        if self.keys is None or self.values is None or not self.filled:
            return ()
        end = self.filled
        return self.keys[..., :end, :], self.values[..., :end, :], super().tree()

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.filled = 0
        if values:
            self.append(values[0], values[1])

    def _make(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Makes the buffers, or keeps those of an earlier run that fit."""
        for name, like in (("keys", keys), ("values", values)):
            shape = (*like.shape[:-2], self.length, like.shape[-1])
            buffer = self._buffers[name]
            if (
                buffer is None
                or buffer.shape != shape
                or buffer.dtype != like.dtype
                or buffer.device != like.device
            ):
                self._buffers[name] = like.new_zeros(shape)
