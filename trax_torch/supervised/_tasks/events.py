"""When: functions from a training step to yes or no."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

At = Callable[[int], bool]


class Due(NamedTuple):
    """What is due after one step.

    Attributes:
      training: whether training since the last time is logged, as it is before evals.
      evals: whether the model is measured.
      names: which checkpoints are saved before that.
    """

    training: bool
    evals: bool
    names: list[str]


@dataclass(frozen=True)
class Events:
    """What is due after a step.

    Attributes:
      checkpoint_at: tells whether 'model' is saved, permanent_checkpoint_at: whether
        'model_<step>' is, and eval_at: whether there are a report and evals.
      log_every: after how many steps training is logged besides; None for never.
    """

    checkpoint_at: At
    permanent_checkpoint_at: At
    eval_at: At
    log_every: int | None = None

    def names_at(self, step: int) -> list[str]:
        """Returns the names to save under, which no eval has seen yet."""
        names = ["model"] if self.checkpoint_at(step) else []
        if self.permanent_checkpoint_at(step):
            names.append(f"model_{step}")
        return names

    def log_at(self, step: int) -> bool:
        """Tells whether training is logged at a step, evals or not."""
        return self.log_every is not None and step % self.log_every == 0


def never(step: int) -> bool:
    """Tells that nothing happens at any step."""
    return False


def at_step_1_and_every_nth_step(period: int | None) -> At:
    """Returns the predicate of step 1 and every multiple of `period`; of no step for None.

    Raises:
      ValueError: if `period` is below 1.

    Example:
      >>> [step for step in range(12) if at_step_1_and_every_nth_step(5)(step)]
      [1, 5, 10]
    """
    if period is None:
        return never
    if period < 1:
        raise ValueError(f"A period is at least 1 step; got {period}. None stands for never.")
    return lambda step: step == 1 or (step > 0 and step % period == 0)
