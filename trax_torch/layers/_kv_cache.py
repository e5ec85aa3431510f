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

    def reorder(self, parents: torch.Tensor) -> None:
        """Changes nothing: all rows are at the same position."""

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
        assert self.keys is not None
        assert self.values is not None
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


class Carry(nn.Module):
    """Tensors that one call leaves for the next, such as a recurrence's state.

    Their first axis is rows, except in scalars. Unlike the other memories this one has no length:
    what is new takes the place of what was.

    Args:
      in_place: writes into buffers that fit; False leaves what `tree` gave before as it is.
    """

    def __init__(self, in_place: bool = True):
        super().__init__()
        self.n_held = 0
        self._in_place = in_place

    def read(self, first: tuple[torch.Tensor, ...] = ()) -> tuple[torch.Tensor, ...]:
        """Returns a copy of what was written last, or `first` where nothing was.

        Raises:
          ValueError: if `first`, which is what a sequence's first call would start from, has other
            shapes.
        """
        held = self.tree()
        if not held:
            return first
        came = [tuple(t.shape) for t in first]
        if first and came != [tuple(t.shape) for t in held]:
            raise ValueError(
                f"The predict-mode memory holds a carry of shapes "
                f"{[tuple(t.shape) for t in held]}; this call's would be {came}. Reset the cache "
                f"before another batch."
            )
        return tuple(t.clone() for t in held)

    def write(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Remembers copies of `tensors`."""
        self.n_held = 0
        for position, tensor in enumerate(tensors):
            buffer = self._buffers.get(f"held{position}")
            if (
                self._in_place
                and buffer is not None
                and buffer.shape == tensor.shape
                and buffer.dtype == tensor.dtype
                and buffer.device == tensor.device
            ):
                buffer.copy_(tensor.detach())
            else:
                self.register_buffer(f"held{position}", tensor.detach().clone(), persistent=False)
        self.n_held = len(tensors)

    def reset(self) -> None:
        """Forgets what was written."""
        self.n_held = 0

    def reorder(self, parents: torch.Tensor) -> None:
        """Lets row r go on from what row `parents[r]` left."""
        self.write(tuple(t[parents] if t.dim() else t for t in self.tree()))

    def tree(self) -> Any:
        """What was written, itself, as a tuple; `()` before the first call."""
        return tuple(getattr(self, f"held{position}") for position in range(self.n_held))

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.write(tuple(values))
