"""Many prompts: rows of one run make tokens, and whoever ends makes room for the next prompt."""

import contextlib
import itertools
import math
import numbers
import operator
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch import _nest, _seeds
from trax_torch import layers as tl
from trax_torch.supervised._generation.engine import what_fits
from trax_torch.supervised._generation.prompts import check_counts, prompt_for, row_of
from trax_torch.supervised._generation.refilled import RefilledRun
from trax_torch.supervised._generation.sampling import (
    Sampler,
    doubts_in,
    gumbel,
    key_of,
    log_probs_of,
)
from trax_torch.supervised._generation.stop_sequences import n_stopped

_N_LAST = 4  # prompts a row, of which the longest are begun first
_NOT_NUMBERS = (
    "The model's logits for token {n} of prompt {index} are not numbers: they hold NaN or +inf, "
    "or -inf everywhere. Look for weights that are none, for a division by 0 in the model, or at "
    "the mask."
)


@dataclass(frozen=True, eq=False)
class Generated:
    """What a model made of one of many prompts.

    Attributes:
      index: which prompt, from 0.
      tokens: int64 (n,); the end symbol is kept, a stop sequence is not.
      log_probs: float32 (n,), each token's by the model, in nats; None where nobody asked.
    """

    index: int
    tokens: Any
    log_probs: Any = None


@dataclass
class _Row:
    """A prompt, and what became of it so far."""

    index: int
    source: torch.Tensor | None  # (1, length)
    prompt: torch.Tensor  # (1, length), start symbol included
    max_length: int
    key: tuple[Any, ...]
    is_tensor: bool
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def n_places(self) -> int:
        """How many places it takes at most."""
        return self.prompt.shape[1] + self.max_length - 1


class Prompts:
    """Prompts as they are asked for, with what each of them asks for itself.

    They come in their order; but the last of prompts that can be counted, which make as many tokens
    as is said of each, come the longest first, so that rows end at about the same time.

    Args:
      layer, start_id: as for `prompt_for`.
      prompts: an iterable of them.
      max_length: how many tokens to make; one for all, or an iterable of one a prompt.
      seed: of the noise; one for all, or an iterable of one a prompt; None draws one for all.
      batch_size: how many prompts go on side by side.
    """

    def __init__(
        self,
        layer: tl.Layer,
        prompts: Iterable[Any],
        start_id: Any,
        max_length: Any,
        seed: Any,
        batch_size: int,
    ):
        self._layer, self._start_id = layer, start_id
        self._device = next((p.device for p in layer.parameters()), torch.device("cpu"))
        self._prompts = enumerate(_iterator(prompts, "prompts"))
        n = 0 if _is_number(max_length) or not isinstance(prompts, Sized) else len(prompts)
        n_last = min(n, _N_LAST * batch_size)
        self._rows = self._in_turn(n - n_last, n_last)
        self._has_one_seed = seed is None or _is_number(seed)
        seed = _seeds.ambient_seed() if seed is None else seed
        self._seeds = _each(seed, "seed")
        self._max_lengths = _each(max_length, "max_length")

    def take(self, n: int) -> list[_Row]:
        """Returns the next n, or as many as there are."""
        return list(itertools.islice(self._rows, n))

    def _in_turn(self, n_first: int, n_last: int) -> Iterator[_Row]:
        yield from (self._row(*each) for each in itertools.islice(self._prompts, n_first))
        last = [self._row(*each) for each in itertools.islice(self._prompts, n_last)]
        yield from sorted(last, key=lambda row: -row.max_length)
        yield from (self._row(*each) for each in self._prompts)

    def _row(self, index: int, prompt: Any) -> _Row:
        max_length = _next(self._max_lengths, "max_length", index)
        seed = _next(self._seeds, "seed", index)
        check_counts(max_length=max_length, seed=seed)
        tokens = row_of(prompt, index, self._device)
        asked = prompt_for(self._layer, tokens, 1, self._start_id, None)
        key = key_of(operator.index(seed), index if self._has_one_seed else None)
        return _Row(
            index,
            asked.source,
            asked.tokens,
            operator.index(max_length),
            key,
            isinstance(prompt, torch.Tensor),
        )


@dataclass(frozen=True)
class Generating:
    """What a call asks of the tokens that are made of many prompts.

    Attributes:
      layer: the model.
      batch_size: how many prompts go on side by side.
      samplers: how tokens are chosen, by how many there are: for one row, and for all.
      ends: end symbols.
      stops: stop sequences.
      padding: what sources are padded with.
      log_probs: whether they are wanted, too.
      wish, backend: as for `PredictRun`.
    """

    layer: tl.Layer
    batch_size: int
    samplers: dict[int, Sampler]
    ends: tuple[int, ...]
    stops: tuple[tuple[int, ...], ...]
    padding: int
    log_probs: bool
    wish: bool | None
    backend: str

    def results(self, prompts: Prompts) -> Generator[Generated, None, None]:
        """Yields what becomes of each prompt, as they end; the model is left meanwhile."""
        waiting = deque(prompts.take(self.batch_size))
        if not waiting:
            return
        n_places = max(row.n_places for row in waiting)
        sources = [row.source for row in waiting if row.source is not None]
        source = max(sources, key=lambda source: source.shape[1], default=None)
        prompt = waiting[0].prompt
        kind = (n_places, self.padding, self.wish, self.backend)
        run = RefilledRun(self.layer, self.batch_size, source, prompt, *kind)
        rows = _Rows(self, run)
        while waiting or rows.are_going:
            with contextlib.closing(run), run:
                ended = rows.go_on(waiting)
            for row in ended:
                yield self._generated(row)
            waiting.extend(prompts.take(rows.n_free - len(waiting)))

    def _generated(self, row: _Row) -> Generated:
        device = row.prompt.device
        tokens = torch.tensor(row.tokens, dtype=torch.int64, device=device)
        log_probs = None
        if self.log_probs:
            log_probs = torch.tensor(row.log_probs, dtype=torch.float32, device=device)
        if row.is_tensor:
            return Generated(row.index, tokens, log_probs)
        return Generated(row.index, *_nest.to_arrays((tokens, log_probs)))


class _Rows:
    """The rows of a run, each with a prompt that it goes on from, or free."""

    def __init__(self, asked: Generating, run: RefilledRun):
        self._asked, self._run = asked, run
        self._rows: list[_Row | None] = [None] * asked.batch_size
        self._has_begun = False

    @property
    def are_going(self) -> bool:
        """Whether any goes on."""
        return any(row is not None for row in self._rows)

    @property
    def n_free(self) -> int:
        """How many are free."""
        return self._rows.count(None)

    def go_on(self, waiting: deque[_Row]) -> list[_Row]:
        """Gives free rows what waits, and takes steps until a row ends; returns those that have."""
        if not self._has_begun:
            self._run.begin()
            self._has_begun = True
        ended: list[_Row] = []
        for place, row in enumerate(self._rows):
            if row is None and waiting:
                self._begin(place, waiting.popleft(), ended)
        while not ended and self.are_going:
            self._step(ended)
        return ended

    def _begin(self, place: int, row: _Row, ended: list[_Row]) -> None:
        n = row.prompt.shape[1]
        if n > self._run.n_places:
            raise ValueError(f"Prompt {row.index}: {what_fits(int(self._run.n_places), n)}")
        try:
            logits = self._run.read(place, row.source, row.prompt, row.max_length)
        except Exception as error:
            error.add_note(f"That is prompt {row.index}, from 0.")
            raise
        if self._asked.samplers[1].temperature:
            row.generator = _seeds.generator(*row.key, device=logits.device)
        self._rows[place] = row
        self._take(logits, [place], ended)

    def _step(self, ended: list[_Row]) -> None:
        going = [place for place, row in enumerate(self._rows) if row is not None]
        for row in self._rows:
            if row is not None and row.prompt.shape[1] + len(row.tokens) > self._run.n_places:
                what = what_fits(int(self._run.n_places), row.prompt.shape[1])
                raise ValueError(f"Prompt {row.index}: {what}")
        tokens = [[0 if row is None else row.tokens[-1]] for row in self._rows]
        logits = self._run.look(torch.tensor(tokens, device=self._run.device))[:, 0]
        self._run.keep([int(row is not None) for row in self._rows])
        self._take(logits, going, ended)

    def _take(self, logits: torch.Tensor, places: list[int], ended: list[_Row]) -> None:
        """Chooses a token for each of some rows.

        Args:
          logits: (1, vocab) of one row, or (batch, vocab).
          places: which rows.
          ended: gets those that have ended; they are free then.
        """
        rows = {place: row for place in places if (row := self._rows[place]) is not None}
        at = {place: 0 if len(logits) == 1 else place for place in rows}
        doubts = doubts_in(logits).tolist()
        for place, row in rows.items():
            if math.isnan(doubts[at[place]]):
                n = len(row.tokens) + 1
                raise ValueError(_NOT_NUMBERS.format(n=n, index=row.index))
        sampler = self._asked.samplers[len(logits)]
        noise = None
        if sampler.temperature:
            bits = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
            for place, row in rows.items():
                bits[at[place]].random_(generator=row.generator)
            noise = gumbel(bits)
        tokens = sampler.choose(logits, noise)
        listed = tokens.tolist()
        log_probs = log_probs_of(logits, tokens).tolist() if self._asked.log_probs else None
        for place, row in rows.items():
            row.tokens.append(listed[at[place]])
            if log_probs is not None:
                row.log_probs.append(log_probs[at[place]])
            if self._ends(row):
                ended.append(row)
                self._rows[place] = None
                self._run.rest(place)

    def _ends(self, row: _Row) -> bool:
        """Tells whether a row has ended; what it stops at is taken from it."""
        n = n_stopped(row.tokens, self._asked.stops)
        if n:
            del row.tokens[-n:], row.log_probs[-n:]
            return True
        return row.tokens[-1] in self._asked.ends or len(row.tokens) == row.max_length


def in_order(results: Generator[Generated, None, None]) -> Generator[Generated, None, None]:
    """Yields results in the order of their prompts."""
    with contextlib.closing(results):
        early: dict[int, Generated] = {}
        n = 0
        for result in results:
            early[result.index] = result
            while n in early:
                yield early.pop(n)
                n += 1


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Integral) or getattr(x, "ndim", None) == 0


def _iterator(x: Any, name: str) -> Iterator[Any]:
    if isinstance(x, str) or not isinstance(x, Iterable):
        raise TypeError(
            f"{name} is an iterable of one a prompt; got {x!r}. Put a single one into a list."
        )
    return iter(x)


def _each(x: Any, name: str) -> Iterator[Any]:
    if _is_number(x):
        return itertools.repeat(x)
    return _iterator(x, name)


def _next(iterator: Iterator[Any], name: str, index: int) -> Any:
    for x in iterator:
        return x
    raise ValueError(
        f"{name} has one for each prompt, but it ended before prompt {index} (from 0). Give as "
        f"many as there are prompts, or one number for all."
    )
