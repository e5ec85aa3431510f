"""Which continuations survive in a beam search; for all rows of a batch at once.

This room knows scores and tokens; what a model is, it never asks.
"""

from collections.abc import Sequence

import torch
from torch import nn

from trax_torch.supervised._generation.symbols import end_symbols, is_end


def best_continuations(
    scores: torch.Tensor, log_probs: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the `n` best one-token continuations of each row's beams, best first.

    A continuation's score is the sum of its tokens' log-probabilities, in nats. Ties go to the
    lower (beam, token) pair.

    Args:
      scores: float tensor of shape (batch, beams), nats; `-inf` marks a dead beam, from which
        nothing grows, whatever its `log_probs` are.
      log_probs: float tensor of shape (batch, beams, vocab), nats.
      n: how many. Where there are fewer, the rest score `-inf`.

    Returns:
      `(scores, parents, tokens)`, each (batch, n): the new scores, the beam each continuation grew
      from, and its new token.

    Example:
      >>> scores, parents, tokens = best_continuations(torch.tensor([[-1., -2.]]),
      ...     torch.tensor([[[-9., -.5, -9.], [-.1, -9., -9.]]]), 2)
      >>> parents.tolist(), tokens.tolist()
      ([[0, 1]], [[1, 0]])

    Source: Sutskever et al. 2014, arXiv:1409.3215.
    """
    batch, _, vocab = log_probs.shape
    is_dead = scores[:, :, None] == -torch.inf
    candidates = (scores[:, :, None] + log_probs).masked_fill_(is_dead, -torch.inf).flatten(1)
    missing = n - candidates.shape[1]
    if missing > 0:
        candidates = torch.nn.functional.pad(candidates, (0, missing), value=-torch.inf)
    values = places = candidates  # until they are known
    is_cut = True  # as if the last of them tied with the next: to look is to wait for a GPU
    if candidates.device.type == "cpu":
        values, places = candidates.topk(n, dim=1)
        last = values[:, -1:]
        is_cut = bool(((candidates == last).sum(1) > (values == last).sum(1)).any())
    if is_cut:
        order = candidates.sort(dim=1, descending=True, stable=True)
        values, places = order.values[:, :n], order.indices[:, :n]
    else:
        places, by_place = places.sort(dim=1)
        values, by_value = values.gather(1, by_place).sort(dim=1, descending=True, stable=True)
        places = places.gather(1, by_value)
    parents = (places // vocab).clamp(max=log_probs.shape[1] - 1)
    assert values.shape == (batch, n)
    return values, parents, places % vocab


def penalty(n_tokens: int, length_penalty: float) -> float:
    """Returns what a hypothesis of `n_tokens` has its score divided by: ((5 + n) / 6) ** alpha.

    Source: Wu et al. 2016, arXiv:1609.08144, equation 14.
    """
    return float(((5 + n_tokens) / 6) ** length_penalty)


class Search:
    """A beam search in all rows of a batch: which beams live, and what they have been.

    Each step keeps its tokens and which beam each grew from; sequences are put together once, at
    the end. Rows do not depend on each other.

    Args:
      batch: number of rows.
      n_beams: how many beams live in a row, and how many hypotheses it keeps.
      eos_id: the end symbol, or several; -1 for none.
      max_length: how many tokens a hypothesis may have.
      length_penalty: see `penalty`.
      early_stopping: a row is done when it has `n_beams` finished hypotheses.
      device: where.
    """

    def __init__(
        self,
        batch: int,
        n_beams: int,
        eos_id: int | Sequence[int],
        max_length: int,
        length_penalty: float,
        early_stopping: bool,
        device: torch.device,
    ):
        self.n = 0  # tokens so far
        self._n_beams, self._ends, self._max_length = n_beams, end_symbols(eos_id), max_length
        self._length_penalty, self._early_stopping = length_penalty, early_stopping
        self._living = torch.zeros((batch, 1), device=device)  # scores; one beam at first
        # Of each step: where its beams grew from, and with which tokens; each (batch, n_beams).
        self._parents: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        # The best finished hypotheses: penalized scores, tokens, and the beam before the last one.
        self.scores = torch.full((batch, n_beams), -torch.inf, device=device)
        self._lengths = torch.zeros((batch, n_beams), dtype=torch.int64, device=device)
        self._grown_from = torch.zeros_like(self._lengths)
        self._last = torch.zeros_like(self._lengths)
        # Rows that can find nothing better; what becomes of their beams is of no consequence.
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)

    def grow(
        self, log_probs: torch.Tensor, less: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lets the beams grow by a token.

        Args:
          log_probs: (batch, beams, vocab), nats; one beam at the first step, then `n_beams`.
          less: how much less tokens are worth where they are chosen, (batch, vocab), nats; what
            hypotheses score does not change by it. None for nothing.

        Returns:
          `(tokens, parents)`, each (batch, n_beams): the living beams' new tokens, and which beam
          each grew from.
        """
        k = self._n_beams
        self.n += 1
        n_kept = k * max(2, 1 + len(self._ends))  # with k among them that go on
        worth = log_probs if less is None else log_probs - less[:, None]
        best, parents, new = best_continuations(self._living, worth, n_kept)
        if less is not None:  # in the order of what they are worth, with the score that they have
            log_prob = log_probs.flatten(1).gather(1, parents * log_probs.shape[2] + new)
            score = self._living.gather(1, parents) + log_prob
            best = torch.where(best == -torch.inf, best, score)
        divisor = penalty(self.n, self._length_penalty)
        if self._ends:
            ends = is_end(new, self._ends)
            ended = best[:, :k].masked_fill(~ends[:, :k] | self.done[:, None], -torch.inf)
            self._finish(ended / divisor, parents[:, :k], new[:, :k])
            order = ends.to(torch.uint8).sort(dim=1, stable=True).indices[:, :k]
            self._living = best.gather(1, order).masked_fill(ends.gather(1, order), -torch.inf)
            parents, new = parents.gather(1, order), new.gather(1, order)
        else:
            self._living, parents, new = best[:, :k], parents[:, :k], new[:, :k]
        self._parents.append(parents)
        self._tokens.append(new)
        if self._early_stopping:
            self.done |= self.scores[:, -1] > -torch.inf
        n_longest = self._max_length
        if self._length_penalty <= 0:  # shorter is better
            n_longest = min(self.n + 1, n_longest)
        reach = self._living.amax(dim=1) / penalty(n_longest, self._length_penalty)
        self.done |= self.scores[:, -1] >= reach
        if self.n == self._max_length:
            self._finish(
                self._living.masked_fill(self.done[:, None], -torch.inf) / divisor, parents, new
            )
        return new, parents

    def counts(self) -> torch.Tensor:
        """Tells which beams can still become hypotheses: booleans (batch, beams).

        Others are fed on all the same, with symbols that the model may forbid.
        """
        return (self._living != -torch.inf) & ~self.done[:, None]

    def living(self) -> torch.Tensor:
        """Returns the sums of log-probabilities of beams, (batch, beams), -inf where none counts.

        Of a row that is done, none does any more.
        """
        return self._living.masked_fill(~self.counts(), -torch.inf)

    def is_done(self) -> bool:
        """Tells whether no row can find anything better."""
        return bool(self.done.all())

    def results(self, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the hypotheses, best first, and their scores.

        Returns:
          `(sequences, scores)`: (batch, n_beams, length of the longest), `pad_id` after the end of
          each, and (batch, n_beams), nats, float32.
        """
        length = max(1, int(self._lengths.max()))
        batch, k = self.scores.shape
        sequences = self._last.new_full((batch, k, length), pad_id)
        beams = self._grown_from
        for i in reversed(range(length)):
            is_last, goes_on = self._lengths == i + 1, self._lengths > i + 1
            token = torch.where(is_last, self._last, self._tokens[i].gather(1, beams))
            sequences[:, :, i] = token.masked_fill(~(is_last | goes_on), pad_id)
            beams = torch.where(goes_on, self._parents[i].gather(1, beams), beams)
        return sequences, self.scores.float()

    def _finish(self, scores: torch.Tensor, parents: torch.Tensor, tokens: torch.Tensor) -> None:
        """Keeps the best of what has finished and what finishes now; earlier ones win ties.

        Args:
          scores: (batch, m), penalized; `-inf` stands for none.
          parents: which beam before this step's token, likewise.
          tokens: this step's, likewise.
        """
        k = self._n_beams
        best, order = torch.cat([self.scores, scores], dim=1).sort(
            dim=1, descending=True, stable=True
        )
        order = order[:, :k]
        self.scores = best[:, :k]
        lengths = torch.full_like(tokens, self.n)
        self._lengths = torch.cat([self._lengths, lengths], dim=1).gather(1, order)
        self._lengths.masked_fill_(self.scores == -torch.inf, 0)
        self._grown_from = torch.cat([self._grown_from, parents], dim=1).gather(1, order)
        self._last = torch.cat([self._last, tokens], dim=1).gather(1, order)


class Groups:
    """A beam search whose beams are in groups, which differ: a `Search` for each of them.

    At each step the groups choose one after another, and to each a token is worth less by
    `diversity_penalty` for each beam of the groups before it that took the token at this step.

    Args:
      searches: one for each group, of the same rows.
      size: how many beams each has.
      diversity_penalty: nats.

    Source: Vijayakumar et al. 2018, arXiv:1610.02424, algorithm 1 with Hamming diversity.
    """

    def __init__(self, searches: Sequence[Search], size: int, diversity_penalty: float):
        self._searches, self._size = searches, size
        self._diversity_penalty = diversity_penalty

    @property
    def n(self) -> int:
        """How many tokens there are so far."""
        return self._searches[0].n

    @property
    def done(self) -> torch.Tensor:
        """Rows that can find nothing better, in no group."""
        return torch.stack([search.done for search in self._searches]).all(dim=0)

    def grow(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Does what `Search.grow` does, with the beams of all groups side by side."""
        less = torch.zeros_like(log_probs[:, 0])
        tokens, parents = [], []
        for i, search in enumerate(self._searches):
            first = i * self._size if search.n else 0
            n = self._size if search.n else 1
            new, grown_from = search.grow(log_probs[:, first : first + n], less if i else None)
            taken = search.counts().to(less.dtype) * self._diversity_penalty
            less = less.scatter_add(1, new, taken)
            tokens.append(new)
            parents.append(grown_from + first)
        return torch.cat(tokens, dim=1), torch.cat(parents, dim=1)

    def counts(self) -> torch.Tensor:
        """Does what `Search.counts` does."""
        return torch.cat([search.counts() for search in self._searches], dim=1)

    def living(self) -> torch.Tensor:
        """Does what `Search.living` does."""
        return torch.cat([search.living() for search in self._searches], dim=1)

    def is_done(self) -> bool:
        """Tells whether no row can find anything better in any group."""
        return bool(self.done.all())

    def results(self, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the hypotheses of all groups as `Search.results` does, best first."""
        found = [search.results(pad_id) for search in self._searches]
        length = max(sequences.shape[-1] for sequences, _ in found)
        sequences = torch.cat(
            [nn.functional.pad(s, (0, length - s.shape[-1]), value=pad_id) for s, _ in found], 1
        )
        scores, order = torch.cat([scores for _, scores in found], dim=1).sort(
            dim=1, descending=True, stable=True
        )
        return sequences.gather(1, order[:, :, None].expand_as(sequences)), scores
