"""One training step after another: which task, on which batch, and what is counted of it.

Where several ranks train, each has a batch of its own, and all take the step or none does.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from trax_torch import _distributed, _nest, _seeds, optimizers
from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised._loop import alike, ambient
from trax_torch.supervised._loop import stopping as _stopping
from trax_torch.supervised._loop.build import Parts
from trax_torch.supervised._loop.callback_list import CallbackList
from trax_torch.supervised._loop.moving import Mover

_OF_PARTS = (
    " Or ranks went different ways through the model: where each holds parts of the weights, all "
    "must run the same modules at a step, and a branch that one alone takes has the others wait."
)


class Stepper:
    """Takes the steps of a run.

    Args:
      world: the ranks that train together.
      tasks: the training tasks.
      parts: what runs.
      state: where the run is.
      which_task: tells of a step which task is trained; by default they take turns.
      callbacks: are told of steps, if they want to be called.
      stopping: where ranks agree on whether to go on.
      way_back: says where to go on from when an update was broken off.

    Attributes:
      batch: the batch of the step under way, or of the last one, as tensors.
      loss: the last step's, or this rank's part of it, on its device; None before there is one.
      accumulators: what is counted, one for each task.
    """

    def __init__(
        self,
        world: _distributed.World,
        tasks: list[_tasks.TrainTask],
        parts: Parts,
        state: _checkpoint.RunState,
        which_task: Callable[[int], int] | None,
        callbacks: CallbackList,
        stopping: _stopping.Stopping,
        way_back: Callable[[], str],
    ):
        self._world = world
        self._move = Mover(world.device)
        self._tasks = tasks
        self._model = parts.model
        self._trainers = parts.trainers
        self._pacers = parts.pacers
        self._meetings = parts.meetings
        self._arranged = [met.arranged for met in parts.meetings]
        self.accumulators = parts.accumulators
        self._state = state
        self._callbacks = callbacks
        self._way_back = way_back
        self._which_task = which_task or (lambda step: step % len(tasks))
        self._stopping = stopping
        self.batch: Any = None
        self.loss: Any = None
        is_cut = any(map(_distributed.is_shard, parts.model.parameters()))
        self._hint = _OF_PARTS if is_cut else ""

    def begin_run(self) -> None:
        """Makes ready for steps, whatever was done to model and optimizers since the last."""
        with self._world.call("run()"), self._world.together(RuntimeError):
            ambient.refuse_modes(self._world.device)
        self._model.train()
        self._renew_params()
        self._seed = _seeds.derive(self._state.seed, "step", self._world.rank)
        for pacer in self._pacers:
            pacer.begin_run()

    def _renew_params(self) -> None:
        """Has trainers take note of weights that were frozen or thawed since."""
        for trainer in self._trainers:
            trainer.renew_params()
        layers = [trainer.model_with_loss for trainer in self._trainers]
        self._frozen = [p for layer in layers for p in layer.parameters() if not p.requires_grad]

    def take(self, step: int, due: _tasks.Due) -> optimizers.Trainer:
        """Takes a step; returns its trainer, which is not whole until note is taken of the step.

        Args:
          step: the step's number.
          due: what is due after it, alike on all ranks; weights are measured for a report.

        Raises:
          NonFiniteError: if a loss or gradient is not finite, as `Loop.run` tells.
        """
        try:
            with self._world.phase(f"in step {step}"):
                trainer, called = self._take(step, due)
        except optimizers.NonFiniteError as raised:
            if not all(each.is_whole for each in self._trainers):
                raised.args = (f"{raised} {self._way_back()}",)
            raise
        self._state.step = step
        trainer.is_whole = True
        self._callbacks.step_ended(called, step)
        return trainer

    def _take(self, step: int, due: _tasks.Due) -> tuple[optimizers.Trainer, list[Any]]:
        """Returns the trainer that took the step, and the callbacks that want to be called."""
        alike = {"what is reported": due.training + due.evals, "what is saved": len(due.names)}
        index, batch, total_weight, waited, called = self._begin(step, alike)
        task, trainer, pacer = self._tasks[index], self._trainers[index], self._pacers[index]
        if pacer.drawn is not None:
            pacer.drawn()
        self.batch = self._move(batch)
        try:
            self.loss, stats = trainer.one_step(
                self._arranged[index](self.batch),
                rng=_seeds.at_step(self._seed, step),
                step=step,
                learning_rate=task.learning_rate(step),
                measure_weights=due.training,
                total_weight=total_weight,
                backward_ended=self._callbacks.backward_ended,
            )
        except Exception as error:
            if not isinstance(error, optimizers.NonFiniteError):
                self._meetings[index].explain(error)
            with self._world.watched(self._hint), self._naming(index):
                raise
        if self._callbacks.updated is not None and stats:
            self._callbacks.updated(step)
        rate = trainer.optimizer.param_groups[0].get("lr")  # None: it finds one by itself
        self.accumulators[index].add(stats, None if rate is None else float(rate), waited)
        if pacer.stepped is not None:
            pacer.stepped()
        return trainer, called

    def follow_metrics(self, eval_tasks: list[_tasks.EvalTask]) -> None:
        """Tells schedulers that follow a metric what the last step's evals have measured."""
        for pacer in self._pacers:
            pacer.follow(eval_tasks, self._state.history, self._state.step)

    def check_together(self) -> None:
        """Raises ValueError if the ranks' weights or rates have parted."""
        alike.check_together(self._state.step, self._trainers, self._world)

    def check_finite(self) -> None:
        """Raises NonFiniteError if more steps were not finite than may be skipped."""
        for index, trainer in enumerate(self._trainers):
            with self._naming(index):
                trainer.check()

    def counts(self) -> dict[str, float]:
        """Returns how many steps were skipped, if some were, and by what losses are scaled."""
        skipped = sum(trainer.n_skipped for trainer in self._trainers)
        counts: dict[str, float] = {"skipped steps": skipped} if skipped else {}
        scales = [each.loss_scale for each in self._trainers if each.loss_scale is not None]
        for i, scale in enumerate(scales):
            which = f" of task {i}" if len(scales) > 1 else ""
            state = scale.state_dict()
            counts[f"loss scale{which}"] = state["value"]
            counts[f"steps skipped by the loss scale{which}"] = state["n_skipped"]
        return counts

    def _begin(
        self, step: int, due: Mapping[str, float]
    ) -> tuple[int, Any, float | None, float, list[Any]]:
        """Tells callbacks and draws the batch; what fails on one rank fails on all.

        Returns:
          The task's index, the batch, what the batches of all ranks count for together, how many
          seconds were waited for the batch, and the callbacks that want to be called.
        """
        index, batch, weight, waited, error = 0, None, 0.0, 0.0, None
        called = callbacks = self._callbacks.of_steps
        try:
            if callbacks:
                called = [callback for callback in callbacks if callback.call_at(step)]
                for callback in called:
                    callback.on_step_begin(step)
            if any(p.requires_grad for p in self._frozen):
                self._renew_params()
            index = self._which_task(step)
            asked = time.perf_counter()
            batch = self._tasks[index].next_batch()
            waited = time.perf_counter() - asked
            if self._world.size > 1:
                batch = _nest.to_tensors(batch)
                weight = self._trainers[index].weight_of(self._arranged[index](batch))
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
    def _naming(self, index: int) -> Generator[None]:
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
