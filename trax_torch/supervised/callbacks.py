"""Hooks into the training loop: what a callback may do, and the callbacks that ship.

A callback watches a run, stops it, or measures with other weights; it changes no step.
"""

import math
from typing import Any

__all__ = [
    "EarlyStopping",
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


class EarlyStopping(TrainingStepCallback):
    """Stops the run when a metric has not improved for some evals in a row.

    An eval improves on those before it if its value is better than their best by more than
    `min_delta`; a value that is not finite never does. Of several evals at one step the last one
    counts. All of this is read from `loop.history`, so a resumed run counts on where it was.

    A run that was stopped, and is run again, goes on to its next eval, and stops there unless that
    one improves. Resumed from a checkpoint that was saved before the evals that stopped it, as
    'model' is, it takes no step: those evals come first.

    Args:
      loop: the `Loop` that calls.
      metric: name of a metric that an eval task measures.
      patience: how many evals in a row may pass without a better one; at least 1.
      mode: 'min' where lower is better, 'max' where higher is.
      min_delta: a value better by no more than this is no improvement; 0 or more.

    Raises:
      ValueError: if no eval task measures the metric, or several do, or a setting is out of range.

    Example:
      >>> import functools
      >>> patient = functools.partial(EarlyStopping, metric='L2Loss', patience=5)
      >>> # Loop(..., callbacks=[patient])
    """

    def __init__(
        self, loop: Any, metric: str, *, patience: int, mode: str = "min", min_delta: float = 0.0
    ):
        super().__init__(loop)
        known = [name for task in loop.eval_tasks for name in task.metric_names]
        if known.count(metric) != 1:
            raise ValueError(
                f"EarlyStopping follows a metric that one eval task measures; got {metric!r}, and "
                f"they measure {known}. Give EvalTask metric_names, each its own."
            )
        if patience < 1:
            raise ValueError(f"patience is a number of evals, at least 1; got {patience}.")
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max'; got {mode!r}.")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta is a finite number, at least 0; got {min_delta}.")
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._sign = 1 if mode == "min" else -1

    def on_evals_end(self, step: int) -> None:
        """Stops the run if patience is at its end."""
        values = dict(self._loop.history.get("eval", f"metrics/{self._metric}"))
        if step not in values:  # the eval failed
            return
        best, best_step, n_since = math.inf, None, 0
        for at, value in values.items():
            n_since += 1
            if math.isfinite(value) and self._sign * value < best - self._min_delta:
                best, best_step, n_since = self._sign * value, at, 0
        if n_since >= self._patience:
            which = "none" if best_step is None else f"{self._sign * best:g}, at step {best_step}"
            self._loop.stop(
                f"{self._metric} has not improved for {n_since} evals; its best is {which}."
            )
