"""Logits -> token.

A token is `argmax(log_prob + temperature * g)` with Gumbel noise g: at temperature 1 this draws
from the softmax exactly, and at 0 it is the argmax exactly.
"""

from collections.abc import Sequence

import torch

from trax_torch import _seeds


class Sampler:
    """Chooses tokens for a batch of rows, each with random numbers of its own.

    The noise of a row is drawn for the whole vocabulary from the row's own generator, so that what
    a row becomes does not depend on the rows beside it.

    Args:
      temperature: 0 takes the likeliest token, 1 draws from the model's distribution, more makes it
        flatter.
      n_rows: number of rows.
      seed: an int for all rows, or one for each; None draws one from torch's default generator.

    Raises:
      ValueError: if the temperature is negative, or there are not as many seeds as rows.
    """

    def __init__(self, temperature: float, n_rows: int, seed: int | Sequence[int] | None = None):
        if not temperature >= 0:
            raise ValueError(f"A temperature is 0 or more; got {temperature}.")
        self._temperature = float(temperature)
        if isinstance(seed, Sequence):
            if len(seed) != n_rows:
                raise ValueError(f"Give one seed, or one a row; got {len(seed)} for {n_rows} rows.")
            seeds = [_seeds.derive(s, "sample") for s in seed]
        else:
            base = _seeds.ambient_seed() if seed is None and temperature else seed or 0
            seeds = [_seeds.derive(base, "sample", row) for row in range(n_rows)]
        self._generators = [torch.Generator().manual_seed(s) for s in seeds]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns a token for each row.

        Args:
          logits: tensor of shape (rows, vocab), before or after a log-softmax.

        Returns:
          int64 tensor of shape (rows,). Ties go to the lower token.
        """
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        if self._temperature:
            noise = torch.stack(
                [torch.empty(logits.shape[-1]).exponential_(generator=g) for g in self._generators]
            )
            log_probs = log_probs - self._temperature * noise.to(logits.device).log()
        return log_probs.argmax(dim=-1)
