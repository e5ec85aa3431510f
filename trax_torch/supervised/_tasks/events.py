"""When: functions from a training step to yes or no."""

from collections.abc import Callable

At = Callable[[int], bool]


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
