"""The base class of callbacks: the hooks of a run, none of which does anything."""

from collections.abc import Mapping

from trax_torch.supervised import _loop
from trax_torch.supervised.training import Loop


class TrainingStepCallback:
    """Is told of what happens in a run; base class of callbacks.

    `Loop(callbacks=[MyCallback])` builds each class as `MyCallback(loop)`; a
    `functools.partial(MyCallback, ...)` serves as well where it needs more. A callback with
    `state_dict()` and `load_state_dict(state)` is saved with each checkpoint, and resumed: a state
    is made of numbers, strings, tensors, lists, tuples and dicts.

    Which methods a class overrides is looked at when a run begins; others cost a step nothing.
    What a method raises ends the run. On several ranks each has its callbacks, and those that are
    told of steps, backward passes, updates, saves, loads, logs and a run's begin end it on all.

    Args:
      loop: the `Loop` that calls.

    Example:
      >>> class Shout(TrainingStepCallback):
      ...     def call_at(self, step):
      ...         return step % 100 == 0
      ...     def on_step_end(self, step):
      ...         print('step', step, 'is done, with the loss', self._loop.loss)

    Source: Trax `supervised/callbacks.py::TrainingStepCallback`.
    """

    def __init__(self, loop: Loop):
        self._loop = loop

    @_loop.hook
    def call_at(self, step: int) -> bool:
        """Tells whether to call `on_step_begin` and `on_step_end`; always, unless overridden."""
        return True

    @_loop.hook
    def on_run_begin(self, step: int) -> None:
        """Is called when `run` begins; `step` is the last one taken, 0 before the first."""

    @_loop.hook
    def on_run_end(self, step: int) -> None:
        """Is called when `run` ends, also by an error or a signal; `step` is the last one taken."""

    @_loop.hook
    def on_step_begin(self, step: int) -> None:
        """Is called before the step, when `call_at(step)`."""

    @_loop.hook
    def on_backward_end(self, step: int) -> None:
        """Is called when the gradients of the whole batch, of all parts and ranks, are complete.

        They are not clipped yet, and the weights are those before the step. What it raises leaves
        the step as not taken. It cannot be had with use_memory_efficient_trainer.
        """

    @_loop.hook
    def on_update_end(self, step: int) -> None:
        """Is called when the weights are updated, before a scheduler sets the next step's rates.

        A step that was skipped, since it was not finite, updates none; where the device decides on
        that by itself, with fused kernels on CUDA, it is called still.
        """

    @_loop.hook
    def on_step_end(self, step: int) -> None:
        """Is called after the step, when `call_at(step)`, before it is saved and measured."""

    @_loop.hook
    def on_evals_begin(self, step: int) -> None:
        """Is called before the model is measured, at every report."""

    @_loop.hook
    def on_evals_end(self, step: int) -> None:
        """Is called after the model was measured, also if that failed."""

    @_loop.hook
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Is called after training was logged or the model measured, with what was found.

        Names are those that loggers see: 'train/metrics/L2Loss', 'eval/metrics/L2Loss'.
        """

    @_loop.hook
    def on_save(self, step: int, name: str) -> None:
        """Is called after a checkpoint was saved under a name.

        With `background_saves`, or `blocking=False`, it is copied then, and written still.
        """

    @_loop.hook
    def on_load(self, step: int) -> None:
        """Is called after the run was put where a checkpoint left it, at `step`.

        Where `Loop` begins with one, that is when all callbacks are built and have their states.
        """

    @_loop.hook
    def training_values(self) -> dict[str, float]:
        """Returns values to log with training's at a report, by name; none, unless overridden."""
        return {}
