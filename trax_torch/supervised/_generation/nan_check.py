"""Whether a model's logits are numbers, looked at without waiting for a GPU at each token."""

import math

import torch

NOT_NUMBERS = (
    "The model's logits for token {n} are not numbers: a row holds NaN or +inf, or -inf "
    "everywhere. Look for weights that are none, for a division by 0 in the model, or at the mask."
)


class NanCheck:
    """Whether logits so far were no numbers, looked at now and then and at the end.

    Args:
      max_length: how many tokens there will be at most, or None.
      message: of the error; `{n}` stands for the token.
    """

    def __init__(self, max_length: int | None, message: str = NOT_NUMBERS):
        self._max_length, self._message = max_length, message
        self._pending: list[tuple[torch.Tensor, torch.Tensor | None, int]] = []

    @staticmethod
    def is_time(n: int, device: torch.device) -> bool:
        """Tells whether to look at results after n tokens; a GPU would have to be waited for."""
        return device.type == "cpu" or n == 1 or n % 8 == 0

    def add(self, marks: torch.Tensor, counts: torch.Tensor | None, n: int) -> None:
        """Notes of the logits for token n which are no numbers.

        Args:
          marks: floats, NaN where they are not.
          counts: booleans of the same shape, which of them matter; None for all.
          n: from 1.

        Raises:
          ValueError: if some were, and it is time to look.
        """
        self._pending.append((marks, counts, n))
        if n != self._max_length and not self.is_time(n, marks.device):
            return
        for marks, counts, n in self._pending:
            if math.isnan(marks.sum().item()) and (
                counts is None or bool((marks.isnan() & counts).any())
            ):
                raise ValueError(self._message.format(n=n))
        self._pending.clear()
