"""Sampling with drafts: the same tokens, several of them a step.

A token is an argmax over noisy logits, and its noise is its row's and its place's. So a draft is
checked by choosing at each of its places what would be chosen there without it, with the noise that
would be drawn there: up to its first token that is another one, a row has what it would have had.
"""

import contextlib
import math
from collections.abc import Generator, Iterator

import torch

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation.budget import Budget
from trax_torch.supervised._generation.drafts import ModelDrafts, NoiseAhead, TextDrafts, inside
from trax_torch.supervised._generation.nan_check import NOT_NUMBERS
from trax_torch.supervised._generation.ragged import RaggedRun
from trax_torch.supervised._generation.sampling import Sampler, doubts_in, log_probs_of
from trax_torch.supervised._generation.stop_sequences import Endings

# What a step with a draft costs at most, beside what one costs anyway, in such steps.
_FIRST_COST, _COST, _COST_OF_ROW = 0.25, 0.2, 0.02  # once, a token, and a token for each row
# Compiled on a CPU: what a token in a row takes, up to so many of them, and what many take once.
_FEW_ROWS, _COST_OF_FEW, _COST_OF_MANY, _LOOKING = 8, 0.12, 2.0, 0.01
_UNCOMPILED = 4.0  # an uncompiled step, where others are compiled
_OVERHEAD = {False: 1e5, True: 1e4}  # of a module, in weights that are read meanwhile; by compiled
N_DRAFTED = 7  # tokens at most; with the one before, what a step on a CPU reads at little cost


class DraftedRun(_predict.Block):
    """A run of a model, and of what makes its drafts; a context.

    Args:
      run: the model's.
      small: the run of a model that makes drafts; None takes them from each row's own text.
    """

    def __init__(self, run: RaggedRun, small: RaggedRun | None):
        self._big, self._small = run, small
        parts = set() if small is None else set(_predict.layers_in(small.layer))
        # Layers that both have remember one run at a time.
        self._is_apart = parts.isdisjoint(_predict.layers_in(run.layer))

    def _run(self) -> Generator[None, None, None]:
        with contextlib.ExitStack() as stack:
            for run in (self._big, self._small if self._is_apart else None):
                if run is not None:
                    stack.enter_context(contextlib.closing(run))
                    stack.enter_context(run)
            yield

    def steps(
        self,
        sampler: Sampler,
        max_length: int | None,
        log_probs: bool,
        ends: tuple[int, ...],
        endings: Endings,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields `(tokens, log_probs)`, each (batch, 1), the latter perhaps None.

        Args:
          sampler, max_length, log_probs, ends: as for `drawing.Drawing`.
          endings: tells which rows have ended, by the tokens that were yielded.
        """
        big, logits = self._big, self._big.begin()[:, None]
        rows = _Rows(big, sampler, logits.shape[-1], max_length, log_probs, ends)
        drafts = self._drafts(rows, sampler, logits.shape[-1])
        budget = self._budget(drafts.cost, sampler.batch_size, max_length)
        rows.take(logits, rows.without_drafts())
        while True:
            yield from rows.ready()
            rows.leave_out(endings.ended)
            if rows.is_out_of_room:
                big.without_room(rows.next_tokens(rows.without_drafts()))
            if not rows.going:
                return
            going, n_before = rows.going, rows.n_of_slowest
            proposed = rows.without_drafts()
            reading = drafts.cost_of_reading(going)
            n = min(budget.n_now(n_before, reading), rows.n_most - 1)
            if n > 0:
                proposed = rows.fitting(drafts.propose(going, n, rows.noise))
            counts = rows.take(big.look(rows.next_tokens(proposed)), proposed)
            n_right = sum(counts) / len(going) - 1
            n_gained = rows.n_of_slowest - n_before
            budget.note(max(map(len, proposed)), n_right, n_gained, reading)

    def try_steps(self, n: int) -> None:
        """Takes steps of all kinds, so that they are compiled; see `PredictRun.try_steps`."""
        self._big.try_steps(n)
        if self._small is not None:
            with inside(self._small, self._is_apart):
                self._small.try_steps(n)

    def _drafts(self, rows: "_Rows", sampler: Sampler, n_symbols: int) -> TextDrafts | ModelDrafts:
        """Returns what makes the drafts, with a small model's prompt read."""
        small = self._small
        if small is None:
            return TextDrafts(rows.texts)
        with inside(small, self._is_apart):
            n_own = small.begin().shape[-1]
        if n_own != n_symbols:
            raise ValueError(
                f"A draft is of the model's own vocabulary, {n_symbols} symbols; "
                f"{small.layer.name} gives logits for {n_own}. Give a draft= that was trained with "
                f"the same tokens."
            )
        is_compiled = self._big.is_compiled(1)
        cost = _relative_size(small.layer, self._big.layer, _OVERHEAD[is_compiled])
        of_many = cost * _UNCOMPILED if is_compiled else 2 * cost
        if is_compiled and not small.is_compiled(1):
            cost *= _UNCOMPILED
        return ModelDrafts(small, rows.texts, sampler, cost, of_many, self._is_apart)

    def _budget(self, cost: float, n_rows: int, max_length: int | None) -> Budget:
        first, each, n_most = _FIRST_COST, _COST + _COST_OF_ROW * n_rows, N_DRAFTED
        n = self._big.n_compiled
        if self._big.is_compiled(n):  # such a step has always as many tokens
            n_most, each = n - 1, _LOOKING
            if self._big.device.type == "cpu":
                first = _cost_of_compiled(n_rows * n) / _cost_of_compiled(n_rows) - 1
        elif self._big.is_compiled(1):
            first += _UNCOMPILED
        return Budget(first + cost, each + cost, n_most, max_length)


def n_at_once(n_rows: int, device: torch.device) -> int:
    """Returns how many tokens of each row a compiled step takes; see `layers.core._product`."""
    return max(2, _FEW_ROWS // n_rows) if device.type == "cpu" else N_DRAFTED + 1


def _cost_of_compiled(n: int) -> float:
    """Returns what a compiled step costs on a CPU with n tokens in all, by one of one token."""
    return 1 + _COST_OF_FEW * (n - 1) + (_COST_OF_MANY if n > _FEW_ROWS else 0)


class _Rows:
    """What the rows of a run have, and what they lack.

    Args:
      run: the model's, which has read the prompt.
      sampler: chooses tokens.
      n_symbols: size of the vocabulary.
      max_length, log_probs, ends: as for `DraftedRun.steps`.

    Attributes:
      texts: each row's tokens, from the beginning of its source or prompt.
      going: the rows that are to go on.
      noise: of the next tokens.
    """

    def __init__(
        self,
        run: RaggedRun,
        sampler: Sampler,
        n_symbols: int,
        max_length: int | None,
        log_probs: bool,
        ends: tuple[int, ...],
    ):
        self._run, self._sampler, self._n_symbols = run, sampler, n_symbols
        self._max_length = math.inf if max_length is None else max_length
        self._wants_log_probs, self._ends = log_probs, frozenset(ends)
        self.texts = run.texts()
        self._starts = [len(text) for text in self.texts]
        self._log_probs: list[list[float]] = [[] for _ in self.texts]
        self._has_ended = [False] * len(self.texts)
        self.going = list(range(len(self.texts)))
        self.noise = NoiseAhead(sampler, n_symbols, run.device)
        self._n_given = 0
        self._level: torch.Tensor | None = None  # each row's last token, if all have as many

    def leave_out(self, ended: torch.Tensor | None) -> None:
        """Asks no more of rows that have ended, booleans (batch,); None for none."""
        if ended is not None:
            listed = ended.tolist()
            self._has_ended = [a or b for a, b in zip(self._has_ended, listed, strict=True)]
            self.going = [row for row in self.going if not listed[row]]

    def without_drafts(self) -> list[list[int]]:
        """Returns drafts of no tokens."""
        return [[] for _ in self.texts]

    @property
    def n_of_slowest(self) -> int:
        """How many tokens the row has made that has made the fewest, of those that go on."""
        return min((self._n_made(row) for row in self.going), default=self._n_given)

    @property
    def n_most(self) -> int:
        """How many tokens a row may still make at most."""
        return int(min(max(self._n_left(row) for row in self.going), N_DRAFTED + 1))

    @property
    def is_out_of_room(self) -> bool:
        """Whether the next tokens to be given are wanting since a row has no room."""
        return any(
            not self._has_ended[row] and self._n_made(row) == self._n_given and self._is_full(row)
            for row in range(len(self.texts))
            if row not in self.going
        )

    def fitting(self, drafts: list[list[int]]) -> list[list[int]]:
        """Returns of each row's draft what can be tokens of it."""
        found = self.without_drafts()
        for row in self.going:
            draft = drafts[row][: int(min(self._n_left(row), len(drafts[row]) + 1)) - 1]
            strange = [i for i, token in enumerate(draft) if not 0 <= token < self._n_symbols]
            found[row] = draft[: strange[0]] if strange else draft
        return found

    def next_tokens(self, drafts: list[list[int]]) -> torch.Tensor:
        """Returns each row's last token, and its draft: integers (batch, n)."""
        n = max(map(len, drafts))
        if n == 0 and self._level is not None:
            return self._level
        texts = zip(self.texts, drafts, strict=True)
        padded = [[text[-1], *draft, *[0] * (n - len(draft))] for text, draft in texts]
        return torch.tensor(padded, device=self._run.device)

    def take(self, logits: torch.Tensor, drafts: list[list[int]]) -> list[int]:
        """Chooses the next tokens of each row, up to the first that is not what was drafted.

        Args:
          logits: (batch, n, vocab), after each row's last token and those of its draft.
          drafts: as many tokens a row as there are logits at most, less one.

        Returns:
          How many tokens each row has now more.
        """
        is_first = self._n_given == 0 and not any(map(self._n_made, range(len(self.texts))))
        logits = logits[:, : max(map(len, drafts)) + 1]
        chosen_at, log_probs = self._choose(logits, drafts)
        tokens = chosen_at.tolist()
        is_one_of_each = logits.shape[1] == 1 and len(self.going) == len(self.texts)
        self._level = chosen_at if is_one_of_each and self._are_level() else None
        counts = [0] * len(self.texts)
        for row in self.going:
            draft, chosen = drafts[row], tokens[row]
            n = 0
            while n < len(draft) and draft[n] == chosen[n] and chosen[n] not in self._ends:
                n += 1
            counts[row] = n + 1
            self.texts[row] += chosen[: n + 1]
            self._log_probs[row] += log_probs[row][: n + 1]
            self._has_ended[row] = chosen[n] in self._ends
        self._check(doubts_in(logits), counts)
        self.noise.use(counts)
        if not is_first:  # what a row was asked with is read
            self._run.keep(counts)
        self.going = [
            row for row in self.going if not self._has_ended[row] and self._n_left(row) >= 1
        ]
        return counts

    def _choose(
        self, logits: torch.Tensor, drafts: list[list[int]]
    ) -> tuple[torch.Tensor, list[list[float]]]:
        """Returns what is chosen at each place of logits (batch, n, vocab), all at once."""
        going = set(self.going)
        noise = self.noise.first(
            [len(d) + 1 if row in going else 0 for row, d in enumerate(drafts)]
        )
        flat = None if noise is None else noise.flatten(0, 1)
        tokens = self._sampler.choose_any(logits.flatten(0, 1), flat).view(logits.shape[:2])
        log_probs: list[list[float]] = [[] for _ in drafts]
        if self._wants_log_probs:
            log_probs = log_probs_of(logits, tokens).tolist()
        return tokens, log_probs

    def _are_level(self) -> bool:
        """Tells whether all rows have made what was given, and no more."""
        return all(self._n_made(row) == self._n_given for row in self.going)

    def _check(self, doubts: torch.Tensor, counts: list[int]) -> None:
        """Refuses logits that were no numbers where a token was taken; doubts are (batch, n)."""
        if not math.isnan(doubts.sum().item()):
            return
        of_rows = doubts.isnan().tolist()
        bad = [
            self._n_made(row) - counts[row] + place + 1
            for row in self.going
            for place in range(counts[row])
            if of_rows[row][place]
        ]
        if bad:
            raise ValueError(NOT_NUMBERS.format(n=min(bad)))

    def ready(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields the positions that all rows have which did not end, or all, if all did."""
        made = [self._n_made(row) for row in range(len(self.texts))]
        waited_for = [n for n, ended in zip(made, self._has_ended, strict=True) if not ended]
        n_ready = min(waited_for) if waited_for else max(made)
        while self._n_given < n_ready:
            at = self._n_given
            self._n_given += 1
            if self._level is not None and not self._wants_log_probs:  # nothing else was made
                yield self._level, None
                continue
            places = [min(at, n - 1) for n in made]  # what follows the end of a row is padding
            pairs = list(zip(places, range(len(made)), strict=True))
            listed = [[self.texts[row][self._starts[row] + i]] for i, row in pairs]
            tokens = torch.tensor(listed, device=self._run.device)
            log_probs = None
            if self._wants_log_probs:
                values = [[self._log_probs[row][i]] for i, row in pairs]
                log_probs = torch.tensor(values, dtype=torch.float32, device=self._run.device)
            yield tokens, log_probs

    def _n_made(self, row: int) -> int:
        return len(self.texts[row]) - self._starts[row]

    def _is_full(self, row: int) -> bool:
        return self._n_made(row) < self._max_length and self._run.room(row) < 1

    def _n_left(self, row: int) -> float:
        """Returns how many tokens a row may still make."""
        return min(self._max_length - self._n_made(row), self._run.room(row))


def _relative_size(small: tl.Layer, big: tl.Layer, overhead: float) -> float:
    """Returns what a step of a small model takes, as a share of what one of a big one takes."""
    share, whole = (
        sum(p.numel() for p in model.parameters()) + overhead * len(list(model.modules()))
        for model in (small, big)
    )
    return share / whole
