"""The training loop, and the tasks it runs.

`Loop` conducts: it asks small parts, each with one duty, to take a step, measure, save, and say so.
The order of events at a step is written down once, in `Loop.run`.
"""

import logging
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from trax_torch import _nest, _seeds, _world, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import (
    _assembly,
    _checkpoint,
    _evaluator,
    _events,
    _snapshot,
    _summaries,
    _tally,
)
from trax_torch.supervised import history as _history
from trax_torch.supervised._tasks import EvalTask, TrainTask

__all__ = ["EvalTask", "Loop", "TrainTask", "init_host_and_devices"]

_log = logging.getLogger("trax_torch")


class Loop:
    """Trains a model on one or more tasks, and measures, logs and saves it as it goes.

    At each step: take the step; save a checkpoint; save a permanent one; report training and run
    evals; save the best so far. What is due at a step, the functions of it say. A checkpoint comes
    before the evals, so that an eval that fails cannot lose it.

    Where `output_dir` holds a checkpoint, the run goes on from it: weights, slots, history, random
    numbers, and the place in the data.

    Args:
      model: a layer or any `nn.Module`; it is initialized from the first task's sample batch if it
        has no weights yet.
      tasks: a `TrainTask`, or several, which share the model.
      eval_model: what to measure instead of the model in eval mode; built like it, it gets the
        very same weights.
      eval_tasks: an `EvalTask`, or several; None measures nothing.
      output_dir: where checkpoints and logs go; None writes none.
      checkpoint_at: tells of a step whether to save a checkpoint at it; by default step 1 and every
        `n_steps_per_checkpoint` of the first task.
      checkpoint_low_metric: name of a metric; at checkpoint times, the lowest so far is kept as
        `lowest_<metric>`.
      checkpoint_high_metric: likewise, `highest_<metric>`.
      permanent_checkpoint_at: tells whether to save one that stays, as `model_<step>`; by default
        as the first task's `n_steps_per_permanent_checkpoint` says.
      eval_at: tells whether to report and run evals; by default when checkpoints are due.
      which_task: tells of a step which task is trained; by default they take turns.
      n_devices: how many devices the caller counts on; the launcher decides.
      random_seed: of all random numbers; by default a fresh one, kept in checkpoints.
      loss_chunk_size: not there yet; refused unless 0.
      use_memory_efficient_trainer: not there yet; refused unless False.
      adasum: not there yet; refused unless False.
      callbacks: classes, built as `callback(loop)`; see `callbacks.TrainingStepCallback`.
      device: where to compute; by default CUDA if there is any, else the CPU.
      progress: True shows a progress bar, False none; by default one on a terminal.

    Raises:
      ValueError: if arguments, model and batches do not fit together.
      CheckpointError: if `output_dir` cannot be written to, or its checkpoint cannot be read.

    Source: Trax `supervised/training.py::Loop`.
    """

    def __init__(
        self,
        model: Any,
        tasks: Any,
        eval_model: Any = None,
        eval_tasks: Any = None,
        output_dir: str | None = None,
        checkpoint_at: _events.At | None = None,
        checkpoint_low_metric: str | None = None,
        checkpoint_high_metric: str | None = None,
        permanent_checkpoint_at: _events.At | None = None,
        eval_at: _events.At | None = None,
        which_task: Callable[[int], int] | None = None,
        n_devices: int | None = None,
        random_seed: int | None = None,
        loss_chunk_size: int = 0,
        use_memory_efficient_trainer: bool | int = False,
        adasum: bool = False,
        callbacks: Any = None,
        *,
        device: str | torch.device | None = None,
        progress: bool | None = None,
    ):
        _assembly.refuse(
            loss_chunk_size=loss_chunk_size,
            use_memory_efficient_trainer=use_memory_efficient_trainer,
            adasum=adasum,
        )
        self._world = _world.join(n_devices, device)
        self._tasks = _assembly.as_tasks(tasks, TrainTask, "tasks")
        self._eval_tasks = _assembly.as_tasks(eval_tasks, EvalTask, "eval_tasks")
        if not self._tasks:
            raise ValueError("Loop needs at least one TrainTask; got none.")
        if random_seed is not None:
            _seeds.seed_ambient(random_seed)
        self._seed = _seeds.fresh_seed() if random_seed is None else random_seed
        self._seed = operator.index(self._seed)
        self._asked_seed = None if random_seed is None else self._seed
        self._n_rngs = 0
        self._step = 0
        self._reported_step = 0
        self._history = _history.History()
        self._console = _summaries.Console(self._world.is_chief)
        self._progress = progress

        default_at = _events.at_step_1_and_every_nth_step(self._tasks[0].n_steps_per_checkpoint)
        self._checkpoint_at = checkpoint_at or default_at
        self._permanent_checkpoint_at = (
            permanent_checkpoint_at
            or _events.at_step_1_and_every_nth_step(self._tasks[0].n_steps_per_permanent_checkpoint)
        )
        self._eval_at = eval_at or self._checkpoint_at
        n_tasks = len(self._tasks)
        self._which_task = which_task or (lambda step: step % n_tasks)
        self._best = {"lowest": checkpoint_low_metric, "highest": checkpoint_high_metric}
        self._check_best_metrics()

        sample, device = self._tasks[0].sample_batch, self._world.device
        init_seed = _seeds.derive(self._seed, "init")
        self._model = _assembly.prepare_model(model, sample, init_seed, device)
        self._trainers = [_assembly.make_trainer(self._model, t, device) for t in self._tasks]
        self._schedulers = [
            _assembly.make_scheduler(task, trainer)
            for task, trainer in zip(self._tasks, self._trainers, strict=True)
        ]
        self._tallies = [_tally.Tally() for _ in self._tasks]
        self._eval_model = self._model
        if eval_model is not None:
            self._eval_model = _assembly.prepare_model(eval_model, sample, init_seed, device)
            _snapshot.share_weights(self._model, self._eval_model)
        self._evaluators = [
            _evaluator.Evaluator(self._eval_model, task, device) for task in self._eval_tasks
        ]
        self._members = _snapshot.Members(
            self._model,
            self._tasks,
            self._eval_tasks,
            self._trainers,
            self._schedulers,
            self._tallies,
        )

        self._output_dir = None if output_dir is None else os.path.expanduser(output_dir)
        self._folder: _checkpoint.Folder | None = None
        self._is_locked = False
        self._generation: str | None = None  # of the checkpoint 'model' that this run goes on from
        if self._output_dir is None:
            self._console.say("Will not write evaluation metrics, because output_dir is None.")
        else:
            self._folder = _checkpoint.Folder(self._output_dir)
            with self._locked():
                self.load_checkpoint()
        self._callbacks = [callback(self) for callback in callbacks or []]

    def run(self, n_steps: int = 1) -> None:
        """Trains for `n_steps` more steps.

        Raises:
          NonFiniteError: if a loss or gradient is not finite; that step has changed no weight.
          ValueError: if the data ends.
          CheckpointError: if a checkpoint cannot be saved, or another process writes here.
        """
        if n_steps < 0:
            raise ValueError(f"A run takes 0 steps or more; got {n_steps}.")
        self._model.train()
        self._step_seed = _seeds.derive(self._seed, "step", self._world.rank)
        first = self._step + 1
        with (
            self._locked(),
            self._writers(purge_step=self._step if self._report_is_due() else first) as writers,
            self._console.progress(first, n_steps, self._progress) as steps,
        ):
            self._check_not_overtaken()
            if self._report_is_due():  # the checkpoint gone on from was saved before its evals
                self._report(writers)
            for tally in self._tallies:
                tally.start_clock()
            try:
                for step in steps:
                    report = bool(self._eval_at(step))
                    self._take_step(step, report)
                    if self._saves_at(step, self._checkpoint_at):
                        self.save_checkpoint("model")
                    if self._saves_at(step, self._permanent_checkpoint_at):
                        self.save_checkpoint(f"model_{step}")
                    if report:
                        self._report(writers)
            finally:
                for tally in self._tallies:
                    tally.stop_clock()

    def _take_step(self, step: int, measure_weights: bool) -> None:
        callbacks = self._callbacks and [c for c in self._callbacks if c.call_at(step)]
        for callback in callbacks:
            callback.on_step_begin(step)
        index = self._which_task(step)
        task, trainer = self._tasks[index], self._trainers[index]
        batch = _nest.to_tensors(task.next_batch(), self._world.device)
        try:
            _, stats = trainer.one_step(
                batch,
                rng=_seeds.at_step(self._step_seed, step),
                step=step,
                learning_rate=task.learning_rate(step),
                measure_weights=measure_weights,
            )
        except optimizers.NonFiniteError as error:
            error.add_note(f"This was task {index} ({task.loss_name}).")
            raise
        self._tallies[index].add(stats, float(trainer.optimizer.param_groups[0]["lr"]))
        if self._schedulers[index] is not None:
            self._schedulers[index].step()
        self._step = step
        for callback in callbacks:
            callback.on_step_end(step)

    def _report(self, writers: _summaries.Writers) -> None:
        """Logs training since the last report, runs evals, and saves the best so far."""
        self._check_finite()
        self._log_training(writers)
        folders = [self._folder_of(task, self._eval_tasks, "eval") for task in self._eval_tasks]
        self.run_evals([writers.at(folder) for folder in folders])
        self._reported_step = self._step
        for tally in self._tallies:
            tally.clear()
        if self._saves_at(self._step, self._checkpoint_at):
            self._save_best()

    def _saves_at(self, step: int, at: _events.At) -> bool:
        return self._folder is not None and bool(at(step))

    def _report_is_due(self) -> bool:
        return self._step != self._reported_step and bool(self._eval_at(self._step))

    def _log_training(self, writers: _summaries.Writers) -> None:
        self._console.say("")
        if self._step == 1:
            count = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            self._console.say_step(1, f"Total number of trainable weights: {count}")
        n_steps = sum(tally.n_steps for tally in self._tallies)
        seconds = max(tally.seconds() for tally in self._tallies)
        self._console.say_step(self._step, f"Ran {n_steps} train steps in {seconds:0.2f} secs")
        for task, tally in zip(self._tasks, self._tallies, strict=True):
            if not tally.n_steps:
                continue
            writer = writers.at(self._folder_of(task, self._tasks, "train"))
            means = tally.means()
            self.log_summary({task.loss_name: means["loss"]}, writer, "metrics/", "train")
            parameters = {
                "learning_rate": tally.learning_rate,
                "steps per second": tally.n_steps / max(tally.seconds(), 1e-9),
                **means,
            }
            self.log_summary(parameters, writer, "training/", "train", stdout=False)

    def run_evals(self, summary_writers: Any = None) -> None:
        """Measures the model on every eval task, and logs and records what it finds.

        Args:
          summary_writers: one for each eval task, as `log_summary` takes; None writes no files.
        """
        summary_writers = summary_writers or [None] * len(self._eval_tasks)
        for index, evaluator in enumerate(self._evaluators):
            seed = _seeds.derive(self._seed, "eval", self._step, index, self._world.rank)
            self.log_summary(evaluator.means(seed), summary_writers[index], "metrics/", "eval")
            summaries = _summaries_of(self._eval_model)
            self.log_summary(summaries, summary_writers[index], "", "eval", stdout=False)

    def log_summary(
        self,
        values: Mapping[str, Any],
        summary_writer: Any,
        value_prefix: str,
        log_prefix: str,
        stdout: bool = True,
    ) -> None:
        """Prints values, writes them to TensorBoard, and records numbers in the history.

        Args:
          values: numbers by name; what is no scalar is written as an image.
          summary_writer: has `scalar(tag, value, step)`, `image(...)` and `flush()`; or None.
          value_prefix: goes before the names in files and history, such as 'metrics/'.
          log_prefix: 'train' or 'eval'.
          stdout: False prints nothing.
        """
        names = [task.loss_name for task in self._tasks]
        names += [name for task in self._eval_tasks for name in task.metric_names]
        width = max(map(len, names))
        for name, value in values.items():
            if getattr(value, "ndim", 0):
                if summary_writer is not None:
                    summary_writer.image(value_prefix + name, _nest.to_arrays(value), self._step)
                continue
            value = float(value)
            text = f"{log_prefix:5s} {name:>{width}s} | {value: .8f}"
            self._console.say_step(self._step, text, stdout)
            if summary_writer is not None:
                summary_writer.scalar(value_prefix + name, value, self._step)
            self._history.append(log_prefix, value_prefix + name, self._step, value)
        if summary_writer is not None:
            summary_writer.flush()

    def save_checkpoint(self, basename: str) -> None:
        """Saves the run as it is now under a name, in the place of an earlier one of that name.

        Raises:
          ValueError: if the name is not a plain file name.
          CheckpointError: if it cannot be written; what was saved before is intact.
          NonFiniteError: if a step since the last report was not finite; nothing is saved then.
        """
        _checkpoint.check_basename(basename)
        if self._folder is None:
            self._console.say("Did not save checkpoint as output_dir is None")
            return
        self._check_finite()
        parts, members = self._members.take()
        _check_all_finite(parts)
        info = {
            "step": self._step,
            "reported_step": self._reported_step,
            "history": self._history.to_dict(),
            "seed": self._seed,
            "n_rngs": self._n_rngs,
            "world_size": self._world.size,
            "members": members,
        }
        with self._locked():
            generation = self._folder.save(basename, parts, info)
        if basename == "model":
            self._generation = generation
        _log.info("Saved checkpoint %s of step %d", basename, self._step)

    def load_checkpoint(self, directory: str | None = None, filename: str | None = None) -> None:
        """Puts the run where a checkpoint left it; without one, nothing changes.

        Args:
          directory: the checkpoint's folder; by default `output_dir`.
          filename: its name; 'model' by default. Where there is none of that name of ours, but
            Trax's own `<filename>.pkl.gz`, that is read: weights, state, slots, history and step.

        Raises:
          CheckpointError: if it is damaged; nothing has changed then.
          IndexError: if it belongs to another model, optimizer or set of tasks (a `MismatchError`,
            with the first differences); nothing has changed then.
        """
        directory = directory or self._output_dir
        name = _checkpoint.check_basename(str(filename or "model").removesuffix(".pkl.gz"))
        if directory is None:
            return
        directory = os.path.expanduser(directory)
        trax_file = os.path.join(directory, f"{name}.pkl.gz")
        found = _checkpoint.read(directory, name)
        if found is None:
            if os.path.lexists(trax_file):
                from trax_torch.supervised import _trax_resume  # seldom needed

                self._step, history = _trax_resume.put(self._members, trax_file)
                self._reported_step = self._step
                self._history = _history.History.from_dict(history)
                self._console.say(f"Resumed from Trax's {trax_file} at step {self._step}.")
            return
        parts, info = found
        self._members.put(parts, info["members"])
        if self._asked_seed not in (None, info["seed"]):
            self._console.say(
                f"The run's seed is {info['seed']}, as saved; not {self._asked_seed}."
            )
        self._step, self._seed, self._n_rngs = info["step"], info["seed"], info["n_rngs"]
        self._history = _history.History.from_dict(info["history"])
        self._reported_step = info["reported_step"]
        if directory == self._output_dir and name == "model":
            self._generation = _checkpoint.generation_of(directory, name)
        self._console.say(f"Resumed from {directory} at step {self._step}.")

    def update_weights_and_state(self, weights: Any = None, state: Any = None) -> None:
        """Sets the model's weights, its state, or both.

        Args:
          weights: a tree in Trax's order, or a mapping from names as in `state_dict`; None leaves
            them.
          state: likewise, for what is not trained.

        Raises:
          ValueError: if a tree does not fit.
          IndexError: if a mapping does not fit.
        """
        for tree, kind in ((weights, "weights"), (state, "state")):
            if isinstance(tree, Mapping):
                _snapshot.put_named(self._model, kind, tree)
            elif tree is not None:
                setattr(self._model, kind, tree)

    def new_rng(self) -> torch.Generator:
        """Returns a fresh generator, each call another; the same sequence for the same seed."""
        self._n_rngs += 1
        return _seeds.generator(self._seed, "new_rng", self._n_rngs, self._world.rank)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._step

    @property
    def history(self) -> _history.History:
        """What was measured so far."""
        return self._history

    @property
    def n_devices(self) -> int:
        """How many devices train together."""
        return self._world.size

    @property
    def is_chief(self) -> bool:
        """Whether this process speaks, and writes files, for all."""
        return self._world.is_chief

    @property
    def model(self) -> Any:
        """The model in training, as it was given."""
        return _snapshot.bare(self._model)

    @property
    def eval_model(self) -> Any:
        """The model that is measured."""
        return _snapshot.bare(self._eval_model)

    @property
    def tasks(self) -> list[TrainTask]:
        """The training tasks."""
        return self._tasks

    @property
    def eval_tasks(self) -> list[EvalTask]:
        """The eval tasks."""
        return self._eval_tasks

    @property
    def output_dir(self) -> str | None:
        """Where checkpoints and logs go."""
        return self._output_dir

    def _folder_of(self, task: Any, tasks: list[Any], kind: str) -> str | None:
        index = tasks.index(task)
        folder = _summaries.folder_of(self._output_dir, len(tasks), index, task.export_prefix)
        return None if folder is None else os.path.join(folder, kind)

    def _save_best(self) -> None:
        for word, metric in self._best.items():
            values = self._history.get("eval", f"metrics/{metric}") if metric else []
            numbers = [value for _, value in values if math.isfinite(value)]
            is_new = bool(numbers) and values[-1] == (self._step, numbers[-1])
            if is_new and numbers[-1] == (min if word == "lowest" else max)(numbers):
                self.save_checkpoint(f"{word}_{metric}")

    def _check_best_metrics(self) -> None:
        known = [name for task in self._eval_tasks for name in task.metric_names]
        for word, metric in self._best.items():
            if metric is not None:
                if metric not in known:
                    raise ValueError(
                        f"The {word} of a metric can be kept if an eval task measures it; got "
                        f"{metric!r}, and they measure {known}."
                    )
                if known.count(metric) > 1:
                    raise ValueError(
                        f"Several eval tasks measure {metric!r}, so its {word} is not one. Give "
                        f"them metric_names."
                    )
                _checkpoint.check_basename(f"{word}_{metric}")

    def _check_finite(self) -> None:
        for trainer in self._trainers:
            trainer.check()

    def _check_not_overtaken(self) -> None:
        """Refuses to go on where another process has trained since this one read or saved last."""
        if self._output_dir is not None:
            current = _checkpoint.generation_of(self._output_dir, "model")
            if current != self._generation and current is not None:
                raise _checkpoint.CheckpointError(
                    f"Another process has trained into {self._output_dir} since this run saved or "
                    f"loaded last. Call load_checkpoint() to go on from there, or give this one an "
                    f"output_dir of its own."
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._folder is None or self._is_locked:
            yield
            return
        with self._folder.lock():
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    @contextmanager
    def _writers(self, purge_step: int) -> Iterator[_summaries.Writers]:
        writers = _summaries.Writers(purge_step if purge_step > 1 else None)
        try:
            yield writers
        finally:
            writers.close()


def init_host_and_devices(
    n_devices: int | None = None, random_seed: int | None = None
) -> tuple[bool, int, int, int]:
    """Returns `(is_chief, host_count, n_devices, random_seed)` of the world that `Loop` would join.

    Python's, numpy's and torch's global generators are seeded with the seed that is returned.

    Args:
      n_devices: how many devices are counted on; None takes what the launcher gave.
      random_seed: None makes a fresh one.

    Raises:
      ValueError: if more devices are wanted than the launcher gave, with the line to launch them.

    Source: Trax `supervised/training.py::init_host_and_devices`.
    """
    world = _world.join(n_devices)
    seed = _seeds.fresh_seed() if random_seed is None else random_seed
    _seeds.seed_ambient(seed)
    return world.is_chief, 1, world.size, seed


def _check_all_finite(parts: _checkpoint.Parts) -> None:
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            # A buffer may well hold infinities: masks do.
            good = torch.isfinite(tensor) if part == "weights" else ~torch.isnan(tensor)
            if not bool(good.all()):
                raise optimizers.NonFiniteError(
                    f"{name} of the {part} is not finite, so nothing was saved. Go back to the "
                    f"last checkpoint: load_checkpoint()."
                )


def _summaries_of(model: tl.Layer) -> dict[str, Any]:
    """Returns what SummaryScalar and SummaryImage layers saw last, by their 'summary_...' names."""
    found = (getattr(module, "summary", None) for module in model.modules())
    return {name: value for name, value in filter(None, found) if value is not None}
