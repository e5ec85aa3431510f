"""Which continuations survive in a beam search; for all rows of a batch at once.

This room knows scores and tokens; what a model is, it never asks.
"""

import torch


def best_continuations(
    scores: torch.Tensor, log_probs: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the `n` best one-token continuations of each row's beams, best first.

    A continuation's score is the sum of its tokens' log-probabilities, in nats. Ties go to the
    lower (beam, token) pair.

    Args:
      scores: float tensor of shape (batch, beams), nats; `-inf` marks a dead beam.
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
    candidates = (scores[:, :, None] + log_probs).flatten(1)
    missing = n - candidates.shape[1]
    if missing > 0:
        candidates = torch.nn.functional.pad(candidates, (0, missing), value=-torch.inf)
    values, places = candidates.topk(n, dim=1)
    last = values[:, -1:]
    if bool(((candidates == last).sum(1) > (values == last).sum(1)).any()):  # a tie cut in two
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
    return ((5 + n_tokens) / 6) ** length_penalty


class Hypotheses:
    """The best finished hypotheses of each row so far.

    Args:
      batch: number of rows.
      n: how many to keep in each.
      max_length: how many tokens a hypothesis may have.
      pad_id: what stands after its end.
      device: where.
    """

    def __init__(self, batch: int, n: int, max_length: int, pad_id: int, device: torch.device):
        self.pad = pad_id
        self.scores = torch.full((batch, n), -torch.inf, device=device)
        self.tokens = torch.full((batch, n, max_length), pad_id, dtype=torch.int64, device=device)
        self.lengths = torch.zeros((batch, n), dtype=torch.int64, device=device)

    def add(self, scores: torch.Tensor, tokens: torch.Tensor) -> None:
        """Keeps the best of what is here and what comes; earlier ones win ties.

        Args:
          scores: (batch, m), penalized; `-inf` stands for none.
          tokens: (batch, m, length).
        """
        n, max_length = self.scores.shape[1], self.tokens.shape[2]
        length = tokens.shape[2]
        padded = self.tokens.new_empty((*tokens.shape[:2], max_length))
        padded[:, :, :length] = tokens
        padded[:, :, length:] = self.pad
        lengths = torch.full(scores.shape, length, device=scores.device)
        all_scores = torch.cat([self.scores, scores], dim=1)
        best, order = all_scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, :n], order[:, :n]
        dead = best == -torch.inf
        self.scores = best
        self.lengths = torch.cat([self.lengths, lengths], dim=1).gather(1, order)
        self.lengths = self.lengths.masked_fill(dead, 0)
        everything = torch.cat([self.tokens, padded], dim=1)
        picked = everything.gather(1, order[:, :, None].expand(-1, -1, max_length))
        self.tokens = picked.masked_fill(dead[:, :, None], self.pad)
