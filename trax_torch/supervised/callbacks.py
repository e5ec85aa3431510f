"""Hooks into the training loop: what a callback may do, and the callbacks that ship.

A callback watches a run, stops it, or measures with other weights; it changes no step.
"""

from typing import Any

__all__ = [
    "TrainingStepCallback",
]


class TrainingStepCallback:
    """Is called before and after training steps; base class of callbacks.

    `Loop(callbacks=[MyCallback])` builds each class as `MyCallback(loop)`; a
    `functools.partial(MyCallback, ...)` serves as well where it needs more. A callback with
    `state_dict()` and `load_state_dict(state)` is saved with each checkpoint, and resumed: a state
    is made of numbers, strings, tensors, lists, tuples and dicts.

    Args:
      loop: the `Loop` that calls.

    Example:
      >>> class Shout(TrainingStepCallback):
      ...     def call_at(self, step):
      ...         return step % 100 == 0
      ...     def on_step_end(self, step):
      ...         print('step', step, 'is done')

    Source: Trax `supervised/callbacks.py::TrainingStepCallback`.
    """

    def __init__(self, loop: Any):
        self._loop = loop

    def call_at(self, step: int) -> bool:
        """Tells whether to call at this step; always, unless overridden."""
        return True

    def on_step_begin(self, step: int) -> None:
        """Is called before the step, when `call_at(step)`."""

    def on_step_end(self, step: int) -> None:
        """Is called after the step, when `call_at(step)`, before it is saved and measured."""

    def on_evals_begin(self, step: int) -> None:
        """Is called before the model is measured, at every report."""

    def on_evals_end(self, step: int) -> None:
        """Is called after the model was measured, also if that failed."""

    def on_run_end(self, step: int) -> None:
        """Is called when `run` ends, also by an error or a signal; `step` is the last one taken."""

    def training_values(self) -> dict[str, float]:
        """Returns values to log with training's at a report, by name; none, unless overridden."""
        return {}
