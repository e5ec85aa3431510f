"""Whether a run goes on: what a callback, a signal or an error on any rank means for all."""

from collections.abc import Mapping
from types import MappingProxyType

from trax_torch import _distributed, _signals
from trax_torch._errors import CallError


class Stopping:
    """Has ranks agree on when to stop, so that all of them stop after the same step.

    Args:
      world: the ranks that train together.
    """

    def __init__(self, world: _distributed.World):
        self._world = world
        self.begin(_signals.Stopper())

    def begin(self, stopper: _signals.Stopper) -> None:
        """Begins a run.

        Args:
          stopper: hears signals.
        """
        self._stopper = stopper
        self._is_asked = False  # on this rank
        self._is_agreed = False
        self._agreed_signum: int | None = None

    def ask(self) -> None:
        """Asks for an end."""
        self._is_asked = True

    @property
    def signum(self) -> int | None:
        """The number of the signal that came, to any rank since they agreed; None for none."""
        return self._stopper.signum if self._world.size == 1 else self._agreed_signum

    @property
    def is_due(self) -> bool:
        """Whether no further step is to be taken."""
        if self._world.size == 1:
            return self._is_asked or self._stopper.signum is not None
        return self._is_agreed

    def agree(
        self,
        weight: float = 0.0,
        error: Exception | None = None,
        step: int = 0,
        alike: Mapping[str, float] = MappingProxyType({}),
    ) -> float:
        """Has all ranks know what one knows; returns the sum of their weights.

        Args:
          weight: what this rank's batch counts for.
          error: what kept this rank from having one.
          step: the step that is to be taken.
          alike: numbers by name that must be the same on all ranks.

        Raises:
          Exception: the error, if there is one.
          RankError: if another rank has one.
          ValueError: if ranks are not alike.
        """
        if isinstance(error, CallError):  # all ranks have it
            raise error
        heard = [self._stopper.signum == signum for signum in _signals.ASKING]
        numbers = [weight, error is not None, self._is_asked, *heard]
        squares = [x * x for x in alike.values()]
        sums = self._world.sum([*numbers, *alike.values(), *squares])
        total, n_errors, n_asked = sums[:3]
        n_heard, rest = sums[3 : 3 + len(heard)], sums[3 + len(heard) :]
        if n_errors:
            self._world.fail_together(error)
        # The mean of squares is the square of the mean where all numbers are the same.
        means = zip(alike, rest[: len(alike)], rest[len(alike) :], strict=True)
        size = self._world.size
        differing = [n for n, x, xx in means if size * xx - x * x > 1e-9 * x * x]
        if differing:
            raise ValueError(
                f"All ranks must take the same steps, and at step {step} {' and '.join(differing)} "
                f"differ between them. Give every rank the same which_task, lr_schedule, eval_at, "
                f"log_every, checkpoint_at and permanent_checkpoint_at; the chief alone speaks and "
                f"writes as it is."
            )
        signums = [s for s, n in zip(_signals.ASKING, n_heard, strict=True) if n]
        self._agreed_signum = signums[0] if signums else None
        self._is_agreed = bool(n_asked or signums)
        return total
