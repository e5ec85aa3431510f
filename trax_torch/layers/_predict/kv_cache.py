"""The KV cache, and other memory of predict mode: fixed buffers, written at a position.

Nothing is concatenated. A memory is made once for a number of positions, and refuses a position
beyond it before it writes. The buffers themselves are made at the first call, which knows their
type and device.

A memory counts for itself, in an int. Whoever decodes knows better: all layers are at the same
place, some positions are other beams' or padding, and in a compiled program nothing may be an int
that changes. They share a `Moment` then, and do not count.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_FIRST_SLOTS = 256  # of a cache that grows with its sequences


@dataclass
class Moment:
    """Where a step of decoding stands, the same for all layers; in tensors alone.

    The slots of a cache are the places where keys and values lie. Beams lie side by side: a step
    with K beams brings K positions at once, which take K slots and are the same position of K
    sequences. Drafts bring K positions of one sequence, and each row may be at another one; rows
    that are have slots of their own.

    Attributes:
      window: of any type, (end,): so many slots, the first ones, are attended to.
      slots: int64 (K,), or (batch, K): where the new keys and values go.
      positions: int64 (1,), or (batch or 1, 1 or K): which position of its sequence a new one is,
        from 0.
      visible: booleans (batch or 1, 1, K, end): which slots a new position sees; None for all.
    """

    window: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor | None = None


class Position(nn.Module):
    """How many positions of a sequence have been seen, up to `max_length`.

    Args:
      max_length: how many there is room for, or None for no limit.
    """

    def __init__(self, max_length: int | None):
        super().__init__()
        self.max_length = max_length
        self.advice = "Decode with a larger max_length, or reset the cache."
        self.filled = 0
        self.moment: Moment | None = None

    def advance(self, n: int) -> int:
        """Moves on by `n` positions and returns the first of them, counted from 0.

        Raises:
          ValueError: if there is no room; nothing has changed then.
        """
        start = self.filled
        if self.max_length is not None and start + n > self.max_length:
            raise ValueError(
                f"The predict-mode memory has room for {self.max_length} positions; {start} are "
                f"filled and {n} more came. {self.advice}"
            )
        self.filled = start + n
        return start

    def next_positions(self, n: int, device: torch.device) -> torch.Tensor:
        """Returns which positions of their sequences the next n are: int64 (1 or batch, n)."""
        if self.moment is not None:
            positions = self.moment.positions
            return positions.reshape(-1, positions.shape[-1]).expand(-1, n)
        return torch.arange(self.filled, self.filled + n, device=device)[None]

    def reset(self) -> None:
        """Goes back to the start."""
        self.filled = 0

    def reorder(self, parents: torch.Tensor) -> None:
        """Changes nothing: all rows are at the same position."""

    def branch(self, n_beams: int) -> None:
        """Changes nothing: beams lie side by side."""

    def follow(self, parents: torch.Tensor) -> None:
        """Changes nothing: a beam sees the slots of its own past."""

    def put_row(self, row: int, other: Any) -> None:
        """Lets a row go on from the one row of another memory of this kind; here it is counted."""

    def tree(self) -> Any:
        """The position, as a scalar of int32."""
        return torch.tensor(self.filled, dtype=torch.int32)

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.filled = int(values[0]) if values else 0


class KVCache(Position):
    """The keys and values of the positions seen so far: buffers (..., max_length, d_head).

    Args:
      max_length: how many positions there is room for; None for any number, as they come.
      batch_size: leading size that the first call must have, or None for any.
    """

    names: tuple[str, ...] = ("keys", "values")  # of the buffers, one for each tensor appended

    def __init__(self, max_length: int | None, batch_size: int | None = None):
        super().__init__(max_length)
        self.length = _FIRST_SLOTS if max_length is None else max_length
        self.batch_size = batch_size
        self.keys: torch.Tensor | None
        self.values: torch.Tensor | None
        for name in self.names:
            self.register_buffer(name, None, persistent=False)

    def append(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """Writes the next n positions.

        Args:
          *tensors: keys and values, each (..., n, d_head).

        Returns:
          `(keys, values, visible)`: all that is filled, (..., end, d_head), and which of it the new
          ones see: booleans that broadcast to (..., n, end), or None for all up to their own.

        Raises:
          ValueError: if there is no room, or the batch has another size than before.
        """
        moment = self.moment
        if moment is not None:
            end = moment.window.shape[0]
            for name, tensor in zip(self.names, tensors, strict=True):
                _put(getattr(self, name), moment.slots, tensor.detach())
            return *self._first_slots(end), moment.visible
        keys = tensors[0]
        n = keys.shape[-2]
        start = self.advance(n)
        end = start + n
        if self.max_length is None and end > self.length:
            self.grow(2 * end)
        if self.keys is None or start == 0:
            self._make(tensors)
        assert self.keys is not None
        if self.keys.shape[:-2] != keys.shape[:-2]:
            self.filled = start
            raise ValueError(
                f"The predict-mode memory was begun with leading sizes "
                f"{tuple(self.keys.shape[:-2])}; got {tuple(keys.shape[:-2])}. Reset the cache "
                f"before another batch."
            )
        for name, tensor in zip(self.names, tensors, strict=True):
            getattr(self, name)[..., start:end, :] = tensor.detach()
        visible = None
        if start and n > 1:
            visible = torch.ones(n, end, dtype=torch.bool, device=keys.device).tril(start)
        return *self._first_slots(end), visible

    def reserve(self, n_slots: int) -> None:
        """Makes room for so many slots, from the next first call on; beams need more of them."""
        self.length = n_slots

    def grow(self, n_slots: int) -> None:
        """Makes room for so many slots, more than before, and keeps what is there."""
        self.length = n_slots
        for name in self.names:
            buffer = self._buffers[name]
            if buffer is not None:
                longer = buffer.new_zeros(*buffer.shape[:-2], n_slots, buffer.shape[-1])
                longer[..., : buffer.shape[-2], :] = buffer
                self._buffers[name] = longer

    def reorder(self, parents: torch.Tensor) -> None:
        """Lets row r of the leading axis go on from the past of row `parents[r]`."""
        end = self.filled
        for name in self.names:
            buffer = self._buffers[name]
            if buffer is None:
                return
            if parents.shape[0] != buffer.shape[0]:  # rows become more, or fewer
                self._buffers[name] = buffer[parents]
            else:
                buffer[..., :end, :] = buffer[parents][..., :end, :]

    def put_row(self, row: int, other: Any) -> None:
        """Lets a row go on from the one row of another cache: from a copy of what it holds."""
        for mine, its in zip(self._first_slots(other.filled), other.tree(), strict=False):
            n = len(its)  # more than one where heads are rows
            mine[row * n : (row + 1) * n] = its

    def tree(self) -> Any:
        """`(keys, values, position)`, filled part alone; `()` before the first call."""
        if self.keys is None or not self.filled:
            return ()
        return *self._first_slots(self.filled), super().tree()

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.filled = 0
        if values:
            self.append(*values[: len(self.names)])

    def _first_slots(self, end: int) -> list[torch.Tensor]:
        return [getattr(self, name)[..., :end, :] for name in self.names]

    def _make(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Makes the buffers, or keeps those of an earlier run that fit."""
        for name, like in zip(self.names, tensors, strict=True):
            shape = (*like.shape[:-2], self.length, like.shape[-1])
            buffer = self._buffers[name]
            if (
                buffer is None
                or buffer.shape != shape
                or buffer.dtype != like.dtype
                or buffer.device != like.device
            ):
                self._buffers[name] = like.new_zeros(shape)


class MarkedCache(KVCache):
    """A KV cache whose slots have marks: integers (..., max_length, n), the third tensor appended.

    The first is the slot's position in its sequence, for layers that do not see all that is past;
    others are the layer's own.
    """

    names = ("keys", "values", "marks")


class Carry(nn.Module):
    """Tensors that one call leaves for the next, such as a recurrence's state.

    Their first axis is rows, except in scalars. Unlike the other memories this one has no length:
    what is new takes the place of what was.

    Args:
      can_branch: whether its layer heeds `lengths`, and runs along axis 1, where beams lie side by
        side.
    """

    def __init__(self, can_branch: bool = True):
        super().__init__()
        self.n_held = 0
        self.n_beams = 1
        self.can_branch = can_branch
        # Where rows are padded on the right: how many positions of each count; a tensor (batch,).
        self.lengths: torch.Tensor | None = None

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
        if self.n_beams == 1 and first and came != [tuple(t.shape) for t in held]:
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
                buffer is not None
                and buffer.shape == tensor.shape
                and buffer.dtype == tensor.dtype
                and buffer.device == tensor.device
            ):
                buffer.copy_(tensor.detach())
            else:
                self.register_buffer(f"held{position}", _copy(tensor), persistent=False)
        self.n_held = len(tensors)

    def reset(self) -> None:
        """Forgets what was written."""
        self.n_held = 0
        self.n_beams = 1

    def reorder(self, parents: torch.Tensor) -> None:
        """Lets row r go on from what row `parents[r]` left."""
        self.write(tuple(t[parents] if t.dim() else t for t in self.tree()))

    def branch(self, n_beams: int) -> None:
        """Makes `n_beams` rows of each, one after another, which go on as beams."""
        self.write(tuple(t.repeat_interleave(n_beams, 0) if t.dim() else t for t in self.tree()))
        self.n_beams = n_beams

    def follow(self, parents: torch.Tensor) -> None:
        """Lets beam k go on from what beam `parents[:, k]` of its row left; (batch, n_beams)."""
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None] * self.n_beams
        self.reorder((rows + parents).flatten())

    def put_row(self, row: int, other: Any) -> None:
        """Lets a row go on from the one row of another memory, as `Kept` does."""
        _put_row(self.tree(), row, other.tree())

    def tree(self) -> Any:
        """What was written, itself, as a tuple; `()` before the first call."""
        return tuple(getattr(self, f"held{position}") for position in range(self.n_held))

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.write(tuple(values))


class Kept(nn.Module):
    """Tensors of the first call that all later ones use, such as an encoder's output.

    They are handed out as they are and never written into. Beams of a row share the row's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: tuple[torch.Tensor, ...] = ()

    def write(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Keeps copies of `tensors`."""
        self.held = tuple(_copy(t) for t in tensors)

    def reset(self) -> None:
        """Forgets them."""
        self.held = ()

    def reorder(self, parents: torch.Tensor) -> None:
        """Lets row r use what row `parents[r]` used."""
        self.held = tuple(t[parents] if t.dim() else t for t in self.held)

    def branch(self, n_beams: int) -> None:
        """Changes nothing: what a row keeps serves all its beams."""

    def follow(self, parents: torch.Tensor) -> None:
        """Changes nothing."""

    def put_row(self, row: int, other: Any) -> None:
        """Lets a row use copies of what the one row of another memory uses.

        Raises:
          ValueError: if a tensor is not one of rows, or has another shape.
        """
        _put_row(self.held, row, other.held)

    def tree(self) -> Any:
        """What is kept, itself, as a tuple; `()` before the first call."""
        return self.held

    def fill(self, values: list[torch.Tensor]) -> None:
        """Takes back what `tree` gave."""
        self.write(tuple(values))


def _put(buffer: torch.Tensor, slots: torch.Tensor, tensor: torch.Tensor) -> None:
    """Writes (..., K, d) into slots (K,) of a buffer (..., length, d), or each row into its own."""
    if slots.dim() == 1:
        buffer.index_copy_(-2, slots, tensor)
        return
    if len(tensor) != len(slots):
        raise ValueError(
            f"Rows at positions of their own need keys (batch, ..., n, d) with a batch of "
            f"{len(slots)}; got {tuple(tensor.shape)}. Split heads with merged_batch_and_head="
            f"False."
        )
    rows = torch.arange(len(slots), device=slots.device)[:, None]
    index: Any = (rows, *[slice(None)] * (buffer.dim() - 3), slots)
    buffer[index] = tensor.movedim(-2, 1)


def _put_row(held: tuple[torch.Tensor, ...], row: int, others: tuple[torch.Tensor, ...]) -> None:
    """Writes tensors of one row into tensors of several."""
    for mine, its in zip(held, others, strict=True):
        if not mine.dim() or its.shape != (1, *mine.shape[1:]):
            raise ValueError(
                f"What a layer remembers has a row for each sequence on its first axis; got "
                f"{tuple(its.shape)} for one, and {tuple(mine.shape)} for all."
            )
        mine[row : row + 1] = its


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy in the usual order of memory, which a compiled program counts on."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
