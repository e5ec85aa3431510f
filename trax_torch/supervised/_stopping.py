"""Whether a run goes on: what a callback, a signal or an error on any rank means for all."""

from trax_torch import _world
from trax_torch.supervised import _signals


class Stopping:
    """Has ranks agree on when to stop, so that all of them stop after the same step.

    Args:
      world: the ranks that train together.

    Attributes:
      is_asked: whether a callback has asked to stop, on any rank since they agreed.
    """

    def __init__(self, world: _world.World):
        self._world = world
        self.begin(_signals.Stopper())

    def begin(self, stopper: _signals.Stopper) -> None:
        """Begins a run.

        Args:
          stopper: hears signals.
        """
        self._stopper = stopper
        self.is_asked = False
        self._agreed: int | None = None

    @property
    def signum(self) -> int | None:
        """The number of the signal that came, to any rank since they agreed; None for none."""
        return self._stopper.signum if self._world.size == 1 else self._agreed

    @property
    def is_due(self) -> bool:
        """Whether no further step is to be taken."""
        return self.is_asked or self.signum is not None

    def agree(self, weight: float = 0.0, error: Exception | None = None) -> float:
        """Has all ranks know what one knows; returns the sum of their weights.

        Args:
          weight: what this rank's batch counts for.
          error: what kept this rank from having one.

        Raises:
          Exception: the error, if there is one.
          RankError: if another rank has one.
        """
        numbers = [weight, error is not None, self.is_asked]
        heard = [self._stopper.signum == signum for signum in _signals.ASKING]
        total, n_errors, n_asked, *n_heard = self._world.sum([*numbers, *heard])
        if n_errors:
            self._world.fail_together(error)
        self.is_asked = bool(n_asked)
        signums = [s for s, n in zip(_signals.ASKING, n_heard, strict=True) if n]
        self._agreed = signums[0] if signums else None
        return total
