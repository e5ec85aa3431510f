"""Where sequences end: at an end symbol, which is kept, or before a stop sequence, which is not."""

import operator
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from trax_torch.supervised._generation.symbols import is_end


def stop_sequences(stop: Any) -> tuple[tuple[int, ...], ...]:
    """Returns stop sequences as a call gives them.

    Raises:
      TypeError: if they are no list of lists of integers.
      ValueError: if one is empty.
    """
    if stop is None:
        return ()
    needed = f"stop is a list of sequences of token ids, as in [[5, 6], [7]]; got {stop!r}"
    if isinstance(stop, str) or any(isinstance(each, str) for each in _listed(stop, needed)):
        raise TypeError(f"{needed}. Encode texts as the model's tokens.")
    try:
        found = tuple(
            tuple(operator.index(token) for token in _listed(each, needed))
            for each in _listed(stop, needed)
        )
    except TypeError:
        raise TypeError(f"{needed}.") from None
    if not all(found):
        raise ValueError(f"{needed}. An empty one would end every row before it begins.")
    return found


def _listed(given: Any, needed: str) -> list[Any]:
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, (list, tuple, set, frozenset)):
        raise TypeError(f"{needed}.")
    return list(given)


def n_stopped(tokens: list[int], stops: tuple[tuple[int, ...], ...]) -> int:
    """Returns how many tokens at the end of those of a row are a stop sequence; 0 for none."""
    return max((len(stop) for stop in stops if tuple(tokens[-len(stop) :]) == stop), default=0)


class Endings:
    """Which rows of a run have ended, and how long they are.

    A stop sequence is of tokens that were made, not of the prompt's. Where several end at one
    token, the longest counts, and it counts where it ends in an end symbol.

    Args:
      ends: the end symbols.
      stops: the stop sequences.
      n_rows: how many rows.

    Attributes:
      ended: booleans (rows,), or None before the first token and where nothing ends a row.
    """

    def __init__(self, ends: tuple[int, ...], stops: tuple[tuple[int, ...], ...], n_rows: int):
        self._ends, self._stops, self._n_rows = ends, stops, n_rows
        self.ended: torch.Tensor | None = None
        self._n = 0
        self._lengths: torch.Tensor | None = None  # of rows with stop sequences, so far
        self._patterns: torch.Tensor | None = None
        self._recent: torch.Tensor  # the last tokens of each row, as many as a pattern has
        self._held: torch.Tensor  # how many tokens, up to the last, may be of a stop sequence

    def __bool__(self) -> bool:
        return bool(self._ends or self._stops)

    def meet(self, tokens: torch.Tensor) -> None:
        """Looks at the next tokens, integers (rows,)."""
        self._n += 1
        met = is_end(tokens, self._ends)
        if self._stops:
            met = self._look_for_stops(tokens, met)
        self.ended = met if self.ended is None else self.ended | met

    def all_have_ended(self) -> bool:
        """Tells whether no row goes on; to look is to wait for a GPU."""
        return self.ended is not None and bool(self.ended.all())

    def kept(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tells which of all tokens that were made, (rows, n), are of their rows; booleans."""
        if self._lengths is not None:
            return torch.arange(tokens.shape[1], device=tokens.device) < self._lengths[:, None]
        is_last = is_end(tokens, self._ends)
        return (is_last.cumsum(1) - is_last.long()) == 0

    def settled(self) -> int:
        """Returns how many tokens of all rows are theirs or padding, whatever comes next."""
        assert self.ended is not None
        return self._n - int(self._held.masked_fill(self.ended, 0).max())

    def without_stops(self, steps: Iterator[Any], padding: int) -> Iterator[Any]:
        """Yields what steps yield, once it is known to be no part of a stop sequence.

        Args:
          steps: yields `(tokens, log_probs)`, each (rows, 1), the latter perhaps None, after this
            has met the tokens.
          padding: what stands after the end of a row.
        """
        waiting: deque[Any] = deque()
        n_given = 0

        def next_ones(upto: int) -> Iterator[Any]:
            nonlocal n_given
            while n_given < upto:
                tokens, log_probs = waiting.popleft()
                assert self._lengths is not None
                is_over = self._lengths[:, None] <= n_given
                n_given += 1
                tokens = tokens.masked_fill(is_over, padding)
                yield tokens, None if log_probs is None else log_probs.masked_fill(is_over, 0.0)

        for item in steps:
            waiting.append(item)
            upto = self.settled()
            if not self.all_have_ended():
                yield from next_ones(upto)
        if self._lengths is not None:
            yield from next_ones(int(self._lengths.max()))

    def _look_for_stops(self, tokens: torch.Tensor, met: torch.Tensor) -> torch.Tensor:
        """Returns which rows end here, of which `met` an end symbol."""
        if self._patterns is None:
            self._make_patterns(tokens.device)
        assert self._patterns is not None
        assert self._lengths is not None
        self._recent = torch.cat([self._recent[:, 1:], tokens[:, None]], dim=1)
        fits = (self._recent[:, None] == self._patterns) | self._is_any
        sizes = fits.all(-1) * self._sizes  # (rows, patterns)
        stopped = sizes.masked_fill(~self._is_whole, 0).amax(1)
        self._held = sizes.masked_fill(self._is_whole, 0).amax(1)
        goes_on = torch.ones_like(met) if self.ended is None else ~self.ended
        self._lengths = torch.where(goes_on, self._n - stopped, self._lengths)
        return met | (stopped > 0)

    def _make_patterns(self, device: torch.device) -> None:
        """Makes a row of each beginning of a stop sequence, to the right, and of each itself."""
        longest = max(len(stop) for stop in self._stops)
        parts = {stop[:n]: None for stop in self._stops for n in range(1, len(stop))}
        wholes = dict.fromkeys(self._stops)
        patterns = [*parts, *wholes]
        rows = [[-1] * (longest - len(p)) + list(p) for p in patterns]
        self._patterns = torch.tensor(rows, device=device)
        sizes = [len(p) for p in patterns]
        self._sizes = torch.tensor(sizes, device=device)
        places = torch.arange(longest, device=device)
        self._is_any = places < longest - self._sizes[:, None]
        self._is_whole = torch.arange(len(rows), device=device) >= len(parts)
        self._recent = torch.full((self._n_rows, longest), -1, device=device)
        self._lengths = torch.zeros(self._n_rows, dtype=torch.int64, device=device)
