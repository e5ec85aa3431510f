"""Sequences that are drawn: a run is asked for logits, and tokens are taken, until rows end.

How a run is made, and what callers may ask, others say.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch.supervised._generation.drafted import DraftedRun
from trax_torch.supervised._generation.logits_processors import Processing, Rules
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.sampling import Sampler, doubts_in, log_probs_of
from trax_torch.supervised._generation.stop_sequences import Endings


@dataclass(frozen=True)
class Drawing:
    """What a call asks of the tokens that it draws.

    Attributes:
      sampler: chooses them.
      max_length: how many at most, or None.
      rules: what becomes of logits before.
      ends: end symbols.
      stops: stop sequences.
      padding: what stands after the end of a row.
      n_samples: how many sequences of a prompt, or None for one, without an axis of its own.
      log_probs: whether they are wanted, too.
    """

    sampler: Sampler
    max_length: int | None
    rules: Rules
    ends: tuple[int, ...] = ()
    stops: tuple[tuple[int, ...], ...] = ()
    padding: int = 0
    n_samples: int | None = None
    log_probs: bool = False

    def whole(self, run: Any) -> Any:
        """Returns tokens (batch, length) of a run, or `(tokens, log_probs)`, each (batch, length).

        With `n_samples` they are (batch, n_samples, length).
        """
        endings = self._endings()
        with contextlib.closing(run), run:
            taken = list(self._steps(run, endings))
        tokens = torch.cat([t for t, _ in taken], dim=1)
        kept = endings.kept(tokens)
        length = int(kept.any(dim=0).sum())
        is_over = ~kept[:, :length]
        tokens = self._by_prompt(tokens[:, :length].masked_fill(is_over, self.padding))
        if not self.log_probs:
            return tokens
        log_probs = torch.cat([log_probs for _, log_probs in taken], dim=1)
        return tokens, self._by_prompt(log_probs[:, :length].masked_fill(is_over, 0.0))

    def stream(self, run: Any) -> Iterator[Any]:
        """Yields likewise what stands at one place after another; the run is left meanwhile."""
        endings = self._endings()
        steps = self._steps(run, endings)
        if self.stops:
            steps = endings.without_stops(steps, self.padding)
        while True:
            with contextlib.closing(run), run:
                item = next(steps, None)
            if item is None:
                return
            tokens, log_probs = item
            tokens = self._by_prompt(tokens)
            yield (tokens, self._by_prompt(log_probs)) if self.log_probs else tokens

    def _endings(self) -> Endings:
        return Endings(self.ends, self.stops, self.sampler.batch_size)

    def _by_prompt(self, x: torch.Tensor) -> torch.Tensor:
        """Gives the samples of each prompt an axis of their own, where several were asked for."""
        return x if self.n_samples is None else x.unflatten(0, (-1, self.n_samples))

    def _steps(self, run: Any, endings: Endings) -> Iterator[Any]:
        """Yields `(tokens, log_probs)`, inside the run, each (rows, 1), until all rows have ended.

        The latter are None where nobody wants them.
        A row is a sequence; those of a prompt are one after another.
        """
        if isinstance(run, DraftedRun):
            yield from self._drafted(run, endings)
            return
        sampler, n_beams, width = self.sampler, run.n_beams, self.n_samples or 1
        logits = run.begin()
        if n_beams > 1:
            logits = logits.repeat_interleave(n_beams, 0)
        processing = None
        if not self.rules.are_none:
            given, lengths = run.given
            limit, layer = self.max_length, run._layer
            processing = Processing(self.rules, given, lengths, width, limit, layer=layer)
        nan_check = NanCheck(self.max_length)
        for n in itertools.count(1):
            counts = None if endings.ended is None else ~endings.ended
            nan_check.add(doubts_in(logits), counts, n)
            chosen_by = logits if processing is None else processing(logits, counts)
            noise = sampler.noise(logits.shape[1], logits.device)
            tokens = sampler.choose(chosen_by, noise)[:, None]
            if endings:
                endings.meet(tokens[:, 0])
            yield tokens, log_probs_of(logits[:, None], tokens) if self.log_probs else None
            if n == self.max_length:
                return
            if (
                endings
                and (run.is_full or nan_check.is_time(n, tokens.device))
                and endings.all_have_ended()
            ):
                return
            if processing is not None:
                processing.add(tokens.view(-1, width))
            ended = endings.ended
            if ended is not None and n_beams > 1:
                ended = ended.view(-1, n_beams).all(dim=1)
            logits = run.go_on(tokens.view(-1, n_beams), ended=ended).flatten(0, 1)

    def _drafted(
        self, run: DraftedRun, endings: Endings
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields the same with drafts."""
        if not self.rules.are_none:
            raise ValueError(
                "draft= is for tokens that the model's own logits choose: leave it out, or "
                "penalties, logits_processor, banned and forced."
            )
        for item in run.steps(self.sampler, self.max_length, self.log_probs, self.ends, endings):
            if endings:
                endings.meet(item[0][:, 0])
            yield item
            if endings.all_have_ended():
                return
