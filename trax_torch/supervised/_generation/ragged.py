"""Runs whose rows go on by several tokens at once, each by as many as it likes, and go back.

A row's keys and values lie in the slots of their positions, and a position sees the slots up to its
own. So nothing is undone where tokens are taken back: what comes next is written over them.
"""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Sequence
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation import compiled_step
from trax_torch.supervised._generation.engine import PredictRun


@dataclasses.dataclass
class _Kind:
    """How steps of one kind are made."""

    compiled: Any  # None for the uncompiled way
    sizes: Any
    calls: compiled_step.Calls
    n_steps: int = 0


class RaggedRun(PredictRun):
    """A model that predicts, whose rows are asked of several tokens each and keep some of them.

    Args:
      layer, source, prompt, lengths, n_steps, wish, backend: as for `PredictRun`.
      n_most: how many tokens a step brings at most.
      n_compiled: how many a compiled step brings; fewer are padded, but one alone is a step of its
        own, and more are not compiled.

    Attributes:
      n_compiled: as given.

    Raises:
      TypeError: if a layer's memory cannot go back, with the layer's name.
    """

    def __init__(
        self,
        layer: tl.Layer,
        source: torch.Tensor | None,
        prompt: torch.Tensor,
        lengths: torch.Tensor | None,
        n_steps: int | None,
        wish: bool | None,
        backend: str,
        n_most: int,
        n_compiled: int,
    ):
        self.n_compiled, self._n_ahead = n_compiled, n_most
        self._kinds: dict[tuple[int, bool], _Kind] = {}
        super().__init__(layer, source, prompt, lengths, n_steps, 1, wish, backend)
        self._check_memories()
        n = prompt.shape[1]
        # How many positions of each row are filled.
        self._at: list[int] = [n] * len(prompt) if lengths is None else lengths.tolist()

    def _run(self) -> Generator[None, None, None]:
        for kind in self._kinds.values():
            kind.calls.forget()
        yield from super()._run()

    def texts(self) -> list[list[int]]:
        """Returns what each row begins with: its source, if it has one, and its prompt."""
        prompts = [row[:n] for row, n in zip(self._prompt.tolist(), self._at, strict=True)]
        if self._source is None:
            return prompts
        return [s + p for s, p in zip(self._source.tolist(), prompts, strict=True)]

    @property
    def layer(self) -> tl.Layer:
        """The model."""
        return self._layer

    @property
    def device(self) -> torch.device:
        """Where tokens are."""
        return self._prompt.device

    def begin(self) -> torch.Tensor:
        """Reads the prompt; returns the logits for the first token, (batch, vocab)."""
        logits = super().begin()
        if not self._shares:
            raise TypeError(
                f"draft= needs layers that all count the same positions; those of "
                f"{self._layer.name} do not. Decode it without a draft."
            )
        return logits

    def room(self, row: int) -> float:
        """Returns how many more tokens a row has room for."""
        return self._n_places - self._at[row]

    def look(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits after each of the next tokens; none counts before `keep`.

        Args:
          tokens: integers (batch, n). A row that has no room for all of them reads no further.

        Returns:
          Floats (batch, n, vocab).
        """
        n = tokens.shape[1]
        is_level = self._is_level(n)
        kind = self._kinds.get((n, is_level))
        if kind is None:
            kind = self._kinds[n, is_level] = self._like_the_longest(n, is_level)
        n_fed = n
        if kind.compiled is not None and n > 1:
            n_fed = self.n_compiled
            tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, n_fed - n)], 1)
        self._compiled, self._calls, self._sizes = kind.compiled, kind.calls, kind.sizes
        self._n = kind.n_steps
        self._move(n_fed, is_level)
        logits = self._ask(tokens)
        kind.n_steps += 1
        return logits[:, :n]

    def keep(self, counts: Sequence[int]) -> None:
        """Says how many of its last tokens each row keeps; the others were never there."""
        self._at = [at + n for at, n in zip(self._at, counts, strict=True)]

    def go_back(self, counts: Sequence[int]) -> None:
        """Takes so many of each row's tokens back."""
        self._at = [at - n for at, n in zip(self._at, counts, strict=True)]

    def try_steps(self, n: int) -> None:
        """Reads the prompt and takes a step of each kind; see `PredictRun.try_steps`."""
        self.begin()
        tokens = self._prompt[:, :1]
        for is_apart in (False, True) if len(tokens) > 1 else (False,):
            if is_apart:
                self.keep([1, *[0] * (len(tokens) - 1)])
            for n_tokens in (1, self.n_compiled):
                self.look(tokens.expand(-1, n_tokens))

    def is_compiled(self, n: int) -> bool:
        """Tells whether steps of n tokens are compiled, as far as it is known."""
        return any(k.compiled is not None for (m, _), k in self._kinds.items() if m == n)

    def _is_level(self, n: int) -> bool:
        """Tells whether a step of n tokens finds all rows at one place."""
        return len(set(self._at)) == 1 and (n == 1 or len(self._prompt) == 1)

    def _forms(self) -> list[tuple[int, bool]]:
        """Returns which steps there are: of how many tokens, and whether rows are at one place."""
        if len(self._prompt) > 1:
            return [(1, True), (1, False), (self.n_compiled, False)]
        return [(1, True), (self.n_compiled, True)]

    def _choose_step(self, n_slots: int) -> int:
        """Chooses steps of all kinds, whose programs are of caches of one length."""
        while True:
            lengths = []
            for n, is_level in self._forms():
                # One token of rows at one place is the step of a run without drafts.
                form = False if n == 1 and is_level else ("level" if is_level else "ragged")
                length = self._choose_kind(n, form, n_slots)
                calls = compiled_step.Calls(self._moving)
                self._kinds[n, is_level] = _Kind(self._compiled, self._sizes, calls)
                lengths.append(length)
            if max(lengths) == n_slots:
                break
            n_slots = max(lengths)
        compiled = [k.compiled for k in self._kinds.values() if k.compiled is not None]
        self._compiled = compiled[0] if compiled else None
        return n_slots

    def _like_the_longest(self, n: int, is_level: bool) -> _Kind:
        """Returns how steps of n tokens are made: as those of the most."""
        longest = self._kinds.get((self.n_compiled if n > 1 else 1, is_level))
        fits = longest is not None and n <= self.n_compiled
        compiled, sizes = (longest.compiled, longest.sizes) if fits and longest else (None, None)
        calls = longest.calls if fits and longest else compiled_step.Calls(self._moving)
        return _Kind(compiled, sizes, calls)

    def _share(self) -> None:
        """Puts all layers at one moment, after the prompt."""
        length = int(self._n_slots) if self._caches else 1
        self._ruler = torch.arange(length, device=self.device)
        self._visible = None
        self._is_exact = self._attends_to_filled()
        self._moment = _predict.Moment(self._ruler, self._ruler, self._ruler)
        for memory in self._positions():
            memory.moment = self._moment

    def _move(self, n: int, is_level: bool) -> None:
        """Puts the moment at the next n positions of each row."""
        moment = self._moment
        assert moment is not None
        end = int(min(max(self._at) + n, self._most_slots if self._caches else math.inf))
        if self._caches and end > len(self._ruler):
            self._grow(end)
        positions = places = self._next_places(n, is_level)
        if max(self._at) + n > self._n_places:  # padding, whose place is of no consequence
            positions = places.clamp(max=int(self._n_places) - 1)
            places = places.clamp(max=end - 1)
        moment.positions = positions[0] if is_level and n == 1 else positions
        if not self._caches:
            return
        self._is_exact = self._attends_to_filled()
        moment.window = self._ruler[: end if self._is_exact else len(self._ruler)]
        # A program looks whether two of its tensors are one, so they never are.
        moment.slots = (places[0] if is_level else places).clone()
        is_whole = is_level and n == 1 and self._is_exact
        moment.visible = None
        if not is_whole:
            moment.visible = (moment.window <= places[:, :, None])[:, None]

    def _next_places(self, n: int, is_level: bool) -> torch.Tensor:
        """Returns the next n positions of each row, or of all: integers (batch or 1, n)."""
        at = self._at[0]
        if is_level and at + n <= len(self._ruler):
            return self._ruler[at : at + n].clone()[None]
        starts = torch.tensor(self._at[:1] if is_level else self._at, device=self.device)
        return starts[:, None] + torch.arange(n, device=self.device)

    def _check_memories(self) -> None:
        with contextlib.closing(self._context), self._context:
            names = [
                getattr(module, "sublayer", module).name  # what a Scan runs says more
                for module in _predict.modules_in(self._layer)
                if isinstance(module, tl.Layer)
                and hasattr(module._memory, "reset")
                and not isinstance(module._memory, (_predict.Position, _predict.Kept))
            ]
        names += [type(m).__name__ for m in _predict.foreign_caches(self._layer)]
        if names:
            raise TypeError(
                f"draft= needs layers that can take back positions they have read, as attention "
                f"can; {names[0]} in {self._layer.name} cannot. Decode it without a draft."
            )
