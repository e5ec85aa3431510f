"""One training step after another: which task, on which batch, and what is counted of it.

Where several ranks train, each has a batch of its own, and all take the step or none does.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trax_torch import _distributed, _nest, _seeds, optimizers
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop import stopping as _stopping
from trax_torch.supervised._loop.build import Parts


class Stepper:
    """Takes the steps of a run.

    Args:
      world: the ranks that train together.
      tasks: the training tasks.
      parts: what runs.
      which_task: tells of a step which task is trained; by default they take turns.
      stopping: where ranks agree on whether to go on.

    Attributes:
      batch: the batch of the step under way, or of the last one, as tensors.
    """

    def __init__(
        self,
        world: _distributed.World,
        tasks: list[_tasks.TrainTask],
        parts: Parts,
        which_task: Callable[[int], int] | None,
        stopping: _stopping.Stopping,
    ):
        self._world = world
        self._tasks = tasks
        self._trainers = parts.trainers
        self._schedulers = parts.schedulers
        self._accumulators = parts.accumulators
        self._which_task = which_task or (lambda step: step % len(tasks))
        self._stopping = stopping
        self.batch: Any = None

    def take(
        self,
        step: int,
        seed: int,
        callbacks: list[Any],
        measure_weights: bool,
        due: Mapping[str, float],
    ) -> tuple[optimizers.Trainer, list[Any]]:
        """Takes a step; its trainer is not whole until the caller has taken note of it.

        Args:
          step: the step's number.
          seed: of its random numbers.
          callbacks: are told that it begins, if they want to be called.
          measure_weights: as for `Trainer.one_step`.
          due: numbers by name that must be alike on all ranks.

        Returns:
          The trainer that took it, and the callbacks that want to be called.
        """
        index, batch, total_weight, waited, called = self._begin(step, callbacks, due)
        task, trainer = self._tasks[index], self._trainers[index]
        self.batch = _nest.to_tensors(batch, self._world.device)
        try:
            _, stats = trainer.one_step(
                self.batch,
                rng=_seeds.at_step(seed, step),
                step=step,
                learning_rate=task.learning_rate(step),
                measure_weights=measure_weights,
                total_weight=total_weight,
            )
        except Exception:
            with self._world.watched(), self._naming(index):
                raise
        self._accumulators[index].add(stats, float(trainer.optimizer.param_groups[0]["lr"]), waited)
        if self._schedulers[index] is not None:
            self._schedulers[index].step()
        return trainer, called

    def check_finite(self) -> None:
        """Raises NonFiniteError if more steps were not finite than may be skipped."""
        for index, trainer in enumerate(self._trainers):
            with self._naming(index):
                trainer.check()

    def counts(self) -> dict[str, int]:
        """Returns how many steps were skipped, if some were, by name."""
        skipped = sum(trainer.n_skipped for trainer in self._trainers)
        return {"skipped steps": skipped} if skipped else {}

    def _begin(
        self, step: int, callbacks: list[Any], due: Mapping[str, float]
    ) -> tuple[int, tuple[Any, ...], float | None, float, list[Any]]:
        """Tells callbacks and draws the batch; what fails on one rank fails on all.

        Returns:
          The task's index, the batch, what the batches of all ranks count for together, how many
          seconds were waited for the batch, and the callbacks that want to be called.
        """
        index, batch, weight, waited, error = 0, (), 0.0, 0.0, None
        called: list[Any] = callbacks
        try:
            if callbacks:
                called = [callback for callback in callbacks if callback.call_at(step)]
                for callback in called:
                    callback.on_step_begin(step)
            index = self._which_task(step)
            asked = time.perf_counter()
            batch = self._tasks[index].next_batch()
            waited = time.perf_counter() - asked
            if self._world.size > 1:
                batch = _nest.to_tensors(batch)
                weight = self._trainers[index].weight_of(batch)
        except Exception as raised:
            error = raised
        if self._world.size > 1:
            rate = 0.0 if error is not None else self._tasks[index].learning_rate(step) or 0.0
            alike = {"the task": index, "the learning rate": rate, **due}
            total = self._stopping.agree(weight, error, step, alike)
            return index, batch, total, waited, called
        if error is not None:
            raise error
        return index, batch, None, waited, called

    @contextlib.contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Has an error about a loss, which all ranks raise, name the task and whose loss it is."""
        try:
            yield
        except optimizers.NonFiniteError as error:
            whose = ""
            if self._world.size > 1:
                losses = self._world.each(error.loss)
                bad = [str(rank) for rank, x in enumerate(losses) if not math.isfinite(x)]
                whose = f"; ranks whose part of the loss is not finite: {', '.join(bad) or 'none'}"
            error.add_note(f"This was task {index} ({self._tasks[index].loss_name}){whose}.")
            raise
