"""How long a draft may be: where none fits, drafting is to cost next to nothing."""

import math

_N_MOST_SAVED = 8.0  # steps: what a draft may cost of what others saved, after a good time
_FIRST = 2.5, 0.02  # steps that may be lost at once, or as a share of all tokens, if that is less
_CHEAP = 0.05  # steps; a token that costs less is always worth a try
_SHARE = 0.025  # of the steps so far that may be lost beside them


class Budget:
    """Counts what drafts cost and save, in steps of the model, by what a longer step costs at most.

    A draft may cost what drafts saved before, and a share of 0.045 of all tokens. What is counted
    is not measured, so that the same call makes the same steps.

    Args:
      first_cost: of a step with a draft, beside what a step costs anyway.
      cost: of a token of the draft.
      n_most: tokens of a draft.
      max_length: how many tokens will be made at most, or None.
    """

    def __init__(self, first_cost: float, cost: float, n_most: int, max_length: int | None):
        self._first_cost, self._cost, self._n_most = first_cost, cost, n_most
        steps, share = _FIRST
        self._first = steps if max_length is None else min(steps, share * max_length)
        self._saved = 0.0
        # Fewer tokens save less than they cost, were they all right.
        self._n_that_pay = math.floor(first_cost / (1 - cost)) + 1 if cost < 1 else n_most + 1
        self._fits = n_most  # how many tokens are thought to be right

    def n_now(self, n_tokens: int, reading: float = 0.0) -> int:
        """Returns how many tokens to draft; 0 for none.

        Args:
          n_tokens: how many the slowest row has.
          reading: what it takes to read what was made without drafts.
        """
        left = self._saved + self._first + _SHARE * n_tokens - self._first_cost - reading
        n = min(self._n_most, self._fits, int(left / self._cost))
        return n if n >= self._n_that_pay else 0

    def note(self, n_drafted: int, n_right: float, n_gained: int, reading: float = 0.0) -> None:
        """Counts a step.

        Args:
          n_drafted: how many tokens were drafted, by the longest draft.
          n_right: how many of them were right, by the mean of the rows.
          n_gained: how many tokens the slowest row made.
          reading: as for `n_now`.
        """
        spent = self._first_cost + self._cost * n_drafted + reading if n_drafted else 0.0
        self._saved = min(self._saved + n_gained - 1 - spent, _N_MOST_SAVED)
        if n_drafted and self._cost >= _CHEAP:
            all_right = n_right >= n_drafted
            self._fits = 2 * n_drafted + 1 if all_right else int(n_right) + 1
            self._fits = max(self._fits, self._n_that_pay)
