"""Beam searches along a run: the model's log-probabilities in, hypotheses out.

Which beams survive, `beams` says.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch.supervised._generation.beam_tree import BeamTree
from trax_torch.supervised._generation.beams import Groups, Search
from trax_torch.supervised._generation.logits_processors import Processing, Rules
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.prompts import check_counts
from trax_torch.supervised._generation.sampling import expect


@dataclass(frozen=True)
class Searching:
    """What a call asks of a beam search.

    Attributes:
      n_beams: how many hypotheses, of all groups.
      n_groups, diversity_penalty: as for `beam_search`; see `Groups`.
      max_length, length_penalty, early_stopping: as for `Search`.
      ends: end symbols.
      padding: what stands after the end of a sequence.
      rules: what becomes of log-probabilities before beams are chosen.
      tree: is told of the beams, if it is given.

    Raises:
      ValueError, TypeError: if one is out of its range, or of another type.
    """

    n_beams: int
    ends: tuple[int, ...]
    max_length: int
    length_penalty: float
    early_stopping: bool
    padding: int
    rules: Rules
    n_groups: int = 1
    diversity_penalty: float = 0.0
    tree: BeamTree | None = None

    def __post_init__(self) -> None:
        n, alpha = self.max_length, self.length_penalty
        expect(
            lambda: abs(alpha) * math.log((5 + n) / 6) < math.log(1e30),
            f"length_penalty is a number by which ((5 + n) / 6) ** length_penalty stays between "
            f"1e-30 and 1e30 for n up to max_length; got {alpha!r} for {n}. Give one from 0, for "
            f"plain sums, to 2.",
        )
        if not isinstance(self.tree, (BeamTree, type(None))):
            raise TypeError(f"tree is a decoding.BeamTree(), to be filled; got {self.tree!r}.")
        check_counts(n_groups=self.n_groups)
        if self.n_beams % self.n_groups:
            raise ValueError(
                f"Beams are in groups of one size; got {self.n_beams} beams and {self.n_groups} "
                f"groups. Give a multiple of n_groups for n_beams."
            )
        expect(
            lambda: 0 <= self.diversity_penalty < math.inf,
            f"diversity_penalty is a number, 0 or more, in nats; got {self.diversity_penalty!r}.",
        )

    def whole(self, run: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the hypotheses of a run and their scores; see `Search.results`."""
        with contextlib.closing(run), run:
            logits = run.begin()[:, None]
            search = self._begun(len(logits), logits.device)
            if self.tree is not None:
                self.tree.begin(len(logits))
            processing = None
            if not self.rules.are_none:
                given, lengths = run.given
                processing = Processing(
                    self.rules, given, lengths, 1, self.max_length, may_end=True, layer=run._layer
                )
            nan_check = NanCheck(self.max_length)
            while True:
                log_probs = torch.log_softmax(logits, dim=-1)
                counts = search.counts()
                nan_check.add(log_probs[:, :, 0], counts, search.n + 1)  # all are NaN, or none
                if processing is not None:
                    processed = processing(log_probs.flatten(0, 1), counts.flatten())
                    log_probs = processed.view_as(log_probs)
                tokens, parents = search.grow(log_probs)
                if self.tree is not None:
                    self.tree.add(tokens, parents, search.living())
                looks = run.is_full or nan_check.is_time(search.n, logits.device)
                if search.n == self.max_length or (looks and search.is_done()):
                    found = search.results(self.padding)
                    if self.tree is not None:
                        self.tree.finish(*found, self.ends)
                    return found
                if processing is not None:
                    processing.add(tokens, parents)
                logits = run.go_on(tokens, parents, search.done)

    def _begun(self, batch: int, device: torch.device) -> Search | Groups:
        settings = self.ends, self.max_length, self.length_penalty, self.early_stopping, device
        size = self.n_beams // self.n_groups
        searches = [Search(batch, size, *settings) for _ in range(self.n_groups)]
        if self.n_groups == 1:
            return searches[0]
        return Groups(searches, size, self.diversity_penalty)
