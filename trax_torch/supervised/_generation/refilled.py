"""Runs of many prompts on one cache: a row that has ended begins anew, with another prompt.

Each prompt is read alone, as a call with it alone reads it; what is remembered of it is put into
the row, and rows go on side by side, each at its own place.
"""

import contextlib
import math
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation.engine import PredictRun
from trax_torch.supervised._generation.ragged import RaggedRun

_FIRST_SLOTS = 256  # of a cache that grows
_LEAST_SOURCE = 16  # tokens that a source is padded to
_ANY = 2**30  # positions: as many as the model has room for


class Reader(PredictRun):
    """A run that reads one prompt after another, each from the start.

    Args:
      layer: the model.
      source: integers (1, length) for a model that takes them beside the tokens, or None.
      prompt: integers (1, length), the first of them.
      backend: as for `PredictRun`.
    """

    def __init__(
        self, layer: tl.Layer, source: torch.Tensor | None, prompt: torch.Tensor, backend: str
    ):
        super().__init__(layer, source, prompt, None, _ANY, 1, False, backend)

    def read(self, source: torch.Tensor | None, prompt: torch.Tensor) -> torch.Tensor:
        """Reads a prompt (1, length); returns the logits for its first token, (1, vocab)."""
        self._source, self._prompt = source, prompt
        self._layer.reset_cache()
        for cache in self._caches:
            cache.reserve(max(cache.length, prompt.shape[1]))
        return self.begin()

    def memories(self) -> list[Any]:
        """Returns what layers remember of the prompt that was read, in the order of all runs."""
        return self._memories

    def _can_share(self, memory: Any) -> bool:
        return hasattr(memory, "put_row")

    def _share(self) -> None:
        """Leaves layers to count for themselves."""

    def _choose_step(self, n_slots: int) -> int:
        return n_slots  # there is none


class RefilledRun(RaggedRun):
    """A model that predicts, whose rows each begin when they are given a prompt.

    Args:
      layer: the model.
      batch_size: how many rows.
      source: integers (1, length), the longest of the sources known so far, or None.
      prompt: integers (1, length), one of the prompts that will come.
      n_places: how many places those known so far will take at most.
      padding: what sources are padded with.
      wish, backend: as for `PredictRun`.

    Raises:
      TypeError: if a part of the model has a memory of whose rows nothing is known.
    """

    def __init__(
        self,
        layer: tl.Layer,
        batch_size: int,
        source: torch.Tensor | None,
        prompt: torch.Tensor,
        n_places: int,
        padding: int,
        wish: bool | None,
        backend: str,
    ):
        _check_memories_of(layer)
        self._n_wanted, self._padding = n_places, padding
        self._starts: dict[int, torch.Tensor] = {}  # what rows with sources begin with
        # Looked at first: a trial of a model's own parts goes by the tokens of a whole prompt.
        self._reader = Reader(layer, source, prompt, backend)
        # What rows hold until they are given a prompt is one token, which nobody looks at.
        tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=prompt.device)
        if source is not None:
            source = self._padded(source, source.shape[1]).repeat(batch_size, 1)
        super().__init__(layer, source, tokens, None, _ANY, wish, backend, 1, 1)

    def begin(self) -> torch.Tensor:
        """Makes the caches; what is returned is of no use."""
        logits = PredictRun.begin(self)
        if not self._shares:
            raise TypeError(
                f"generate needs layers that all count the same positions; those of "
                f"{self._layer.name} do not. Decode its prompts by autoregressive_sample."
            )
        self._at = [0] * len(self._prompt)
        return logits

    def read(
        self, row: int, source: torch.Tensor | None, prompt: torch.Tensor, n_new: int
    ) -> torch.Tensor:
        """Lets a row begin anew; returns the logits for its first token, (1, vocab).

        Args:
          row: which.
          source: integers (1, length), or None.
          prompt: integers (1, length).
          n_new: how many tokens the row will make at most.
        """
        reader, n = self._reader, prompt.shape[1]
        with contextlib.closing(reader), reader:
            if source is not None and self._source is not None:
                if source.shape[1] > self._source.shape[1]:
                    self._lengthen(source.shape[1])
                source = self._padded(source, self._source.shape[1])
                self._source[row], self._starts[row] = source[0], prompt
            logits = reader.read(source, prompt)
            self._make_room(n, n_new)
            for mine, its in zip(self._memories, reader.memories(), strict=True):
                if isinstance(mine, _predict.Kept):
                    self._put_kept(row, mine, its)
                else:
                    mine.put_row(row, its)
        self._at[row] = n
        return logits

    @property
    def n_places(self) -> float:
        """How many places the model is built for."""
        return self._n_places

    def rest(self, row: int) -> None:
        """Says that nobody looks at a row until it begins anew."""
        self._at[row] = 0
        self._starts.pop(row, None)

    def try_steps(self, n: int) -> None:
        """Takes n steps, so that there is a program; see `PredictRun.try_steps`."""
        self.begin()
        for at in range(n):
            self._at = [at + row % 2 for row in range(len(self._prompt))]
            self.look(self._prompt)

    def _make_room(self, n: int, n_new: int) -> None:
        """Makes caches longer, if a prompt needs it, or what will be made in a compiled run."""
        n_slots = n if self._compiled is None else min(n + n_new - 1, self._n_places)
        if self._caches and n_slots > len(self._ruler):
            self._grow(int(n_slots))

    def _padded(self, source: torch.Tensor, n: int) -> torch.Tensor:
        """Returns a source (rows, length) of a length that is good for n, and seldom another."""
        n_padded = max(_LEAST_SOURCE, 2 ** math.ceil(math.log2(max(1, n))))
        return F.pad(source, (0, n_padded - source.shape[1]), value=self._padding)

    def _lengthen(self, n: int) -> None:
        """Makes all sources as long as one of n, and reads again those of the rows that go on."""
        assert self._source is not None
        self._source = self._padded(self._source, n)
        for row, start in self._starts.items():
            self._reader.read(self._source[row : row + 1], start)
            for mine, its in zip(self._memories, self._reader.memories(), strict=True):
                if isinstance(mine, _predict.Kept):
                    self._put_kept(row, mine, its)

    def _put_kept(self, row: int, mine: _predict.Kept, its: _predict.Kept) -> None:
        """Lets a row use what one that was read uses; all, where it has become longer."""
        pairs = zip(mine.held, its.held, strict=True)
        if all(a.shape[1:] == b.shape[1:] for a, b in pairs):
            mine.put_row(row, its)
        else:
            n_rows = len(self._prompt)
            mine.write(tuple(t.expand(n_rows, *t.shape[1:]) for t in its.held))

    def _grow(self, end: int) -> None:
        if self._compiled is None:
            super()._grow(end)
        else:  # a program is of caches of one length
            n_slots = self._choose_step(end)
            self._ruler = torch.arange(n_slots, device=self._ruler.device)
            for cache in self._caches:
                cache.grow(n_slots)

    def _is_level(self, n: int) -> bool:
        return len(self._prompt) == 1

    def _forms(self) -> list[tuple[int, bool]]:
        return [(1, self._is_level(1))]

    def _can_share(self, memory: Any) -> bool:
        return hasattr(memory, "put_row")

    def _reserve(self) -> None:
        self._most_slots = self._n_places
        n_slots = self._choose_step(self._n_wanted)
        if self._compiled is None:
            n_slots = min(n_slots, _FIRST_SLOTS)
        for cache in self._caches:
            cache.reserve(n_slots)
        self._n_slots = n_slots

    def _check_memories(self) -> None:
        """Changes nothing: what can be put into a row can be taken from it."""


def _check_memories_of(layer: tl.Layer) -> None:
    """Refuses modules with a cache of their own, and layers with a memory of their own kind."""
    names = [type(module).__name__ for module in _predict.foreign_caches(layer)]
    if not names:
        with layer.predict(1, 1):
            names = [type(m).__name__ for m in layer._memories() if not hasattr(m, "put_row")]
    if names:
        raise TypeError(
            f"generate gives a row another prompt while others go on; {names[0]}, in {layer.name}, "
            f"has a memory of another kind, of whose rows nothing is known. Decode prompts by "
            f"autoregressive_sample, several in a batch with prompt_lengths."
        )
