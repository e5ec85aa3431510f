"""The training loop, and the tasks it runs.

`Loop` conducts: it asks small parts, each with one duty, to take a step, measure, save, and say so.
The order of events at a step is written down once, in `Loop.run`.
"""

import contextlib
import logging
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from trax_torch import _distributed, _seeds, _signals
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.interop._pickle import pickle_to_file, unpickle_from_file
from trax_torch.optimizers import NonFiniteError
from trax_torch.supervised import _checkpoint, _logging, _loop, _tasks
from trax_torch.supervised import history as _history
from trax_torch.supervised._checkpoint import differences, verify_resume
from trax_torch.supervised._tasks import EvalTask, TrainTask

__all__ = [
    "EvalTask",
    "Loop",
    "TrainTask",
    "differences",
    "init_host_and_devices",
    "pickle_to_file",
    "unpickle_from_file",
    "verify_resume",
]

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
      loss_chunk_size: over how many positions at a time, of all (batch * length), the model's last
        Dense and the loss are computed, so that the activations for a large vocabulary never exist
        at once; a model that does not end in a Dense has the loss alone in chunks. Losses and
        gradients are those of the whole. A loss that is neither Trax's nor torch's cross-entropy
        gets whole rows of the batch, as many as have so many positions, at least one; it must be a
        mean or sum over rows, and is refused if two neighbouring rows of the sample batch show
        that it is none. (A mean over what it masks itself is none, which shows only if the sample
        batch has more to mask in some rows. Take weights as a third input called weights.) 0
        computes everything at once.
      use_memory_efficient_trainer: True trains block by block: activations of one block at a time
        take up memory, and its weights are updated, and its gradients freed, in the midst of the
        backward pass. 2 keeps weights and slots in host memory, too, and one block at a time on
        the device, so `loop.model` itself is on the host. Results are those of False. Gradients
        flow through what layers take and give: a loss that reads what a block left on itself gives
        that none. Clipping by the global norm, accumulation, `compile`, `on_nonfinite='skip'` and
        `strategy='fsdp'` are refused.
      adasum: True has ranks merge their gradients by how much they agree, instead of averaging
        them (arXiv:2006.02924); the number of ranks must be a power of 2.
      callbacks: classes, built as `callback(loop)`; see `callbacks.TrainingStepCallback`.
      device: where to compute; by default CUDA if there is any, else the CPU.
      progress: True shows a progress bar, False none; by default one on a terminal.
      precision: 'bf16' computes in bfloat16 where torch's autocast deems it safe, in training and
        evals; weights, slots and losses stay as they are. None computes in the weights' type.
      n_accumulation_steps: into how many parts a batch is cut, along its first axis, that go
        forward and backward one after another, so that the activations of one alone take up
        memory. Loss and gradients are those of the whole batch, however weights are spread over
        the parts. (Batch statistics are those of a part.)
      compile: True compiles the model with `torch.compile`, once for training and once for evals.
      keep_last: how many permanent checkpoints to keep; None keeps all.
      background_saves: True writes checkpoints behind the run, from a copy of the weights and
        slots; one that fails stops the run at the next save or the end of `run`.
      on_nonfinite: what happens to a step whose loss or gradient is not finite, which changes
        nothing in any case: 'raise' raises `NonFiniteError`; a number skips so many such steps
        before it raises; 'skip' stands for 100.
      strategy: where several ranks train: 'ddp' has each keep all weights and slots; 'fsdp' a part
        of each (`torch.distributed.fsdp.fully_shard`), for models too large for one device.
        Checkpoints are the same files.
      find_unused_parameters: where several ranks train: which weights a task's loss depends on is
        found once, on its sample batch; True looks at each step, for models in which that changes.
      timeout: seconds after which a rank that does not answer is given up, with an error; more
        than the chief takes to save or load. A process group that is there already keeps its own.
      resume_data: 'exact' goes on with the batch after the last one that was seen, and draws those
        before it again where the data does not keep its own place; 'restart' begins anew.

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
        checkpoint_at: _tasks.At | None = None,
        checkpoint_low_metric: str | None = None,
        checkpoint_high_metric: str | None = None,
        permanent_checkpoint_at: _tasks.At | None = None,
        eval_at: _tasks.At | None = None,
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
        precision: str | None = None,
        n_accumulation_steps: int = 1,
        compile: bool = False,
        keep_last: int | None = None,
        background_saves: bool = False,
        on_nonfinite: str | int = "raise",
        resume_data: str = "exact",
        strategy: str = "ddp",
        find_unused_parameters: bool = False,
        timeout: float = 300.0,
    ):
        settings = _loop.Settings(
            precision,
            n_accumulation_steps,
            compile,
            on_nonfinite,
            adasum,
            strategy,
            find_unused_parameters,
            loss_chunk_size,
            use_memory_efficient_trainer,
        )
        if resume_data not in ("exact", "restart"):
            raise ValueError(f"resume_data is 'exact' or 'restart'; got {resume_data!r}.")
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last is at least 1, or None to keep all; got {keep_last}.")
        self._world = world = _distributed.join(n_devices, device, timeout)
        self._tasks = _loop.as_tasks(tasks, TrainTask, "tasks")
        self._eval_tasks = _loop.as_tasks(eval_tasks, EvalTask, "eval_tasks")
        if not self._tasks:
            raise ValueError("Loop needs at least one TrainTask; got none.")
        self._asked_seed = None if random_seed is None else operator.index(random_seed)
        if self._asked_seed is not None:
            _seeds.seed_ambient(self._asked_seed, world.rank)
        seed = _seeds.fresh_seed() if self._asked_seed is None else self._asked_seed
        self._seed = int(world.from_chief(str(seed).encode()))
        self._n_rngs = 0
        self._step = 0
        self._reported_step = 0
        self._history = _history.History()
        self._console = _logging.Console(self._world.is_chief)
        self._progress = progress
        self._background_saves = background_saves
        self._resume_data = resume_data
        self._stopping = _loop.Stopping(world)

        default_at = _tasks.at_step_1_and_every_nth_step(self._tasks[0].n_steps_per_checkpoint)
        self._checkpoint_at = checkpoint_at or default_at
        self._permanent_checkpoint_at = (
            permanent_checkpoint_at
            or _tasks.at_step_1_and_every_nth_step(self._tasks[0].n_steps_per_permanent_checkpoint)
        )
        self._eval_at = eval_at or self._checkpoint_at
        self._best = _loop.Best(checkpoint_low_metric, checkpoint_high_metric, self._eval_tasks)

        sample, device = self._tasks[0].sample_batch, world.device
        init_seed = _seeds.derive(self._seed, "init")
        self._model = _loop.prepare_model(model, sample, init_seed, device, settings)
        residence = _loop.to_residence(self._model, self._tasks, world, settings)
        world.compare(
            {
                "random_seed": self._asked_seed,
                "the number of tasks": [len(self._tasks), len(self._eval_tasks)],
                "the settings": str(settings),
                "the model's weights": _checkpoint.forms_of(self._model),
                "what is measured": [task.metric_names for task in self._eval_tasks],
                "whether output_dir is given": output_dir is not None,
            }
        )
        _loop.check_world(world, settings)  # no rank leaves before all have come
        for task in self._tasks:
            _loop.check_task(self._model, task, settings)
        apart = _loop.shard(self._model, self._tasks, world, settings)
        running = _loop.running(self._model, settings, residence)
        body, head = _loop.cut_for_chunks(self._model, running, settings)
        with world.watched():
            self._trainers = [
                _loop.make_trainer(self._model, body, head, task, world, settings, apart, residence)
                for task in self._tasks
            ]
        world.compare({"the optimizers": _checkpoint.settings_of(self._trainers)})
        self._schedulers = [
            _loop.make_scheduler(task, trainer)
            for task, trainer in zip(self._tasks, self._trainers, strict=True)
        ]
        self._tallies = [_logging.Tally() for _ in self._tasks]
        self._stepping = _loop.Stepping(
            world,
            self._tasks,
            self._trainers,
            self._schedulers,
            self._tallies,
            which_task or (lambda step: step % len(self._tasks)),
            self._stopping,
        )
        self._eval_model = self._model
        if eval_model is not None:
            _loop.refuse_eval_model(settings)
            self._eval_model = _loop.prepare_model(eval_model, sample, init_seed, device, settings)
            _checkpoint.share_weights(self._model, self._eval_model)
            running = _loop.running(self._eval_model, settings, residence)
        self._evaluators = [
            _loop.Evaluator(running, task, world, settings.autocast(device))
            for task in self._eval_tasks
        ]
        self._callbacks: list[Any] = []
        self._members = _checkpoint.Members(
            self._model,
            self._tasks,
            self._eval_tasks,
            self._trainers,
            self._schedulers,
            self._tallies,
            self._callbacks,
        )

        self._output_dir = None if output_dir is None else os.path.expanduser(output_dir)
        self._reports = _logging.Reports(
            self._console,
            self._tasks,
            self._eval_tasks,
            self._output_dir if world.is_chief else None,
            world,
        )
        self._saver: _checkpoint.Saver | None = None
        self._saved_step: int | None = None  # that 'model' is of
        if self._output_dir is None:
            self._console.say("Will not write evaluation metrics, because output_dir is None.")
        else:
            self._saver = _checkpoint.Saver(self._output_dir, world, keep_last)
            with self._saver.locked():
                self.load_checkpoint()
        makers = (
            callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] * bool(callbacks)
        )
        with world.together():
            for callback in makers:  # they may look at the loop, which is ready now
                self._callbacks.append(callback(self))
        self._members.fill_callbacks()
        (n_callbacks,) = world.sum([len(self._callbacks)])
        self._callbacks_anywhere = n_callbacks > 0

    def run(self, n_steps: int = 1) -> None:
        """Trains for `n_steps` more steps.

        SIGTERM and SIGINT end the run after the step under way: a checkpoint is saved and the
        process exits with 143 or 130, as `SystemExit`. A second signal, a second or more later,
        ends it at once.

        Raises:
          NonFiniteError: if a loss or gradient is not finite; that step has changed nothing. With
            use_memory_efficient_trainer a gradient that is not finite may be found when some
            weights are updated; the error says so then, and where to go back to.
          ValueError: if the data ends.
          CheckpointError: if a checkpoint cannot be saved, or another process writes here.
        """
        if n_steps < 0:
            raise ValueError(f"A run takes 0 steps or more; got {n_steps}.")
        self._check_whole()
        self._model.train()
        for trainer in self._trainers:
            trainer.renew_params()
        self._step_seed = _seeds.derive(self._seed, "step", self._world.rank)
        first = self._step + 1
        with _signals.Stopper() as stopper:
            self._stopping.begin(stopper)
            with (
                self._saver.running() if self._saver is not None else contextlib.nullcontext(),
                self._writers(purge_step=self._step if self._report_is_due() else first) as writers,
                self._console.progress(first, n_steps, self._progress) as steps,
                self._clocks(),
                self._callbacks_told_of_the_end(),
            ):
                if self._saver is not None:
                    self._saver.check_not_overtaken()
                    self._save(self._names_missed(), blocking=True)
                if self._report_is_due():  # the checkpoint gone on from was saved before its evals
                    names = self._names_due_at(self._step)
                    self._report(writers, saves_best="model" in names)
                self._world.compare({"the step": self._step, "n_steps": n_steps})
                self._stopping.agree()
                for step in steps:
                    if self._stopping.is_due:
                        break
                    report, names = bool(self._eval_at(step)), self._names_due_at(step)
                    self._take_step(step, report, names)
                    self._save(names, blocking=not self._background_saves)
                    if report and self._stopping.signum is None:
                        self._report(writers, saves_best="model" in names)
                        self._stopping.agree()  # a callback may have asked to stop
            self._stopping.agree()
            if self._stopping.signum is not None:  # a save in the background is known to be done
                self._leave(self._stopping.signum)

    def stop(self, why: str = "") -> None:
        """Ends `run` after the step under way; for callbacks.

        Args:
          why: is printed, so that nobody takes the run for a whole one.
        """
        self._stopping.ask()
        if why:
            self._console.say_step(self._step, f"Stopped: {why}")

    def _leave(self, signum: int) -> None:
        """Saves what was done, and ends the process."""
        if self._saver is not None:
            if self._saved_step != self._step:
                self._save(["model"], blocking=True)
            self._saver.wait()  # one that failed is an error, not an orderly end
        self._console.say_step(self._step, f"Stopped by signal {signum}.")
        raise SystemExit(_signals.exit_code(signum))

    def _take_step(self, step: int, report: bool, names: list[str]) -> None:
        due = {"what is reported": report, "what is saved": len(names)}
        try:
            trainer, called = self._stepping.take(
                step, self._step_seed, self._callbacks, report, due
            )
        except NonFiniteError as raised:
            if not all(each.is_whole for each in self._trainers):
                raised.args = (f"{raised} {self._way_back()}",)
            raise
        self._step = step
        trainer.is_whole = True
        error = None
        try:
            for callback in called:
                callback.on_step_end(step)
        except Exception as raised:
            error = raised
        if self._callbacks_anywhere and self._world.size > 1:
            self._stopping.agree(error=error)
        elif error is not None:
            raise error

    def _names_due_at(self, step: int) -> list[str]:
        """Returns the names to save under at a step, which no eval has seen yet."""
        due = {"model": self._checkpoint_at, f"model_{step}": self._permanent_checkpoint_at}
        return [name for name, at in due.items() if self._saver is not None and at(step)]

    def _names_missed(self) -> list[str]:
        """Returns the names that a crash kept from being saved beside 'model', gone on from now."""
        names = self._names_due_at(self._step) if self._saved_step == self._step else []
        return [name for name in names if self._saver and not self._saver.has(name)]

    def _report(self, writers: _logging.Writers, saves_best: bool) -> None:
        """Logs training since the last report, runs evals, and saves the best so far."""
        self._stepping.check_finite()
        self._console.say("")
        if self._step == 1:
            count = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            self._console.say_step(1, f"Total number of trainable weights: {count}")
        more: dict[str, Any] = {}
        for callback in self._callbacks:
            more |= {name: float(x) for name, x in callback.training_values().items()}
        if skipped := sum(trainer.n_skipped for trainer in self._trainers):
            more["skipped steps"] = skipped
        self._reports.log_training(self._history, self._step, self._tallies, writers, more)
        self.run_evals(self._reports.eval_writers(writers))
        self._reported_step = self._step
        for tally in self._tallies:
            tally.clear()
        if saves_best:
            best = self._best.names_at(self._step, self._history)
            self._save(best, blocking=not self._background_saves)

    def _report_is_due(self) -> bool:
        return self._step != self._reported_step and bool(self._eval_at(self._step))

    def run_evals(self, summary_writers: Any = None) -> None:
        """Measures the model on every eval task, and logs and records what it finds.

        Args:
          summary_writers: one for each eval task, as `log_summary` takes; None writes no files.

        Raises:
          CheckpointError: if an update was broken off, with the way back.
        """
        self._check_whole()
        summary_writers = summary_writers or [None] * len(self._eval_tasks)
        with contextlib.ExitStack() as measured:
            for callback in self._callbacks:
                callback.on_evals_begin(self._step)
                measured.callback(callback.on_evals_end, self._step)
            self._run_evals(summary_writers)

    def _run_evals(self, summary_writers: Any) -> None:
        if self._eval_model is not self._model:
            _checkpoint.share_buffers(self._model, self._eval_model)
        self._world.copy_from_chief_(list(self._eval_model.buffers()))
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
        self._reports.log(
            self._history, self._step, values, summary_writer, value_prefix, log_prefix, stdout
        )

    def save_checkpoint(self, basename: str, *, blocking: bool = True) -> None:
        """Saves the run as it is now under a name, in the place of an earlier one of that name.

        Args:
          basename: the name.
          blocking: False copies the tensors and returns, and writes in the background. A failure is
            raised by the next save, or at the end of `run`.

        Raises:
          ValueError: if the name is not a plain file name.
          CheckpointError: if it cannot be written; what was saved before is intact.
          NonFiniteError: if a step since the last report was not finite, or a weight is not;
            nothing is saved then.
        """
        _checkpoint.check_basename(basename)
        if self._saver is None:
            self._console.say("Did not save checkpoint as output_dir is None")
            return
        self._save([basename], blocking)

    def _save(self, basenames: Sequence[str], blocking: bool) -> None:
        if not basenames:
            return
        assert self._saver is not None
        self._stepping.check_finite()
        self._check_whole()
        with self._world.together():
            ranks = [self._members.take_own(self._world.rank)]
        if self._world.size > 1:
            gathered = self._world.gather(_checkpoint.to_bytes(*ranks[0]))
            ranks = [_checkpoint.from_bytes(data) for data in gathered]
        parts, members = self._members.take()
        for tensors, _ in ranks:
            parts["state"] |= tensors
        info = {
            "step": self._step,
            "reported_step": self._reported_step,
            "history": self._history.to_dict(),
            "seed": self._seed,
            "n_rngs": self._n_rngs,
            "world_size": self._world.size,
            "members": members,
            "ranks": [info for _, info in ranks],
        }
        self._saver.save(basenames, parts, info, blocking, self._members.frozen())
        if "model" in basenames:
            self._saved_step = self._step
        _log.info("Saved checkpoint %s of step %d", ", ".join(basenames), self._step)

    def _check_whole(self) -> None:
        """Raises CheckpointError if an update was broken off."""
        if not all(trainer.is_whole for trainer in self._trainers):
            raise CheckpointError(
                f"The update of step {self._step + 1} was broken off, so the weights in memory "
                f"belong to no step: they are not saved, nor measured, nor trained on. "
                f"{self._way_back()}"
            )

    def _way_back(self) -> str:
        """Says where the run can go on from."""
        if self._saved_step is None:
            return "Nothing was saved to go back to: build Loop again."
        return (
            f"Go back to step {self._saved_step}, saved in {self._output_dir}: load_checkpoint()."
        )

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
        if self._saver is not None:
            self._saver.wait()
        parts, info = _checkpoint.read(directory, name, self._world)
        with self._world.together(CheckpointError):
            self._go_on_from(parts, info, directory, name)
        self._world.compare({"the step": self._step, "the seed": self._seed})

    def _go_on_from(
        self, parts: _checkpoint.Parts, info: dict[str, Any] | None, directory: str, name: str
    ) -> None:
        if info is not None:
            self._go_on_from_ours(parts, info, directory, name)
        elif os.path.lexists(trax_file := os.path.join(directory, f"{name}.pkl.gz")):
            self._step, history = _checkpoint.load_from_trax(self._members, trax_file)
            self._reported_step = self._step
            self._history = _history.History.from_dict(history)
            self._console.say(f"Resumed from Trax's {trax_file} at step {self._step}.")

    def _go_on_from_ours(
        self, parts: _checkpoint.Parts, info: dict[str, Any], directory: str, name: str
    ) -> None:
        self._members.put(
            parts,
            info["members"],
            info["ranks"],
            self._world.rank,
            self._world.size,
            self._resume_data == "exact",
        )
        if self._asked_seed not in (None, info["seed"]):
            self._console.say(
                f"The run's seed is {info['seed']}, as saved; not {self._asked_seed}."
            )
        self._step, self._seed, self._n_rngs = info["step"], info["seed"], info["n_rngs"]
        self._history = _history.History.from_dict(info["history"])
        self._reported_step = info["reported_step"]
        is_own = directory == self._output_dir and name == "model"
        if self._saver is not None and is_own:
            self._saver.goes_on_from(name)
        self._saved_step = self._step if is_own else None
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
                _checkpoint.put_named(self._model, kind, tree)
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
    def batch(self) -> Any:
        """The batch of the step under way, or of the last one, as tensors; for callbacks."""
        return self._stepping.batch

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
        return _checkpoint.bare(self._model)

    @property
    def eval_model(self) -> Any:
        """The model that is measured."""
        return _checkpoint.bare(self._eval_model)

    @property
    def tasks(self) -> list[TrainTask]:
        """The training tasks."""
        return self._tasks

    @property
    def eval_tasks(self) -> list[EvalTask]:
        """The eval tasks."""
        return self._eval_tasks

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks, as they were built."""
        return self._callbacks

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizer of each training task, bound to its weights; for callbacks."""
        return [trainer.optimizer for trainer in self._trainers]

    @property
    def seconds(self) -> float:
        """How long the loop has run since the last report, evals left out; for callbacks."""
        return max(tally.seconds() for tally in self._tallies)

    @property
    def output_dir(self) -> str | None:
        """Where checkpoints and logs go."""
        return self._output_dir

    @contextlib.contextmanager
    def _clocks(self) -> Iterator[None]:
        for tally in self._tallies:
            tally.start_clock()
        try:
            yield
        finally:
            for tally in self._tallies:
                tally.stop_clock()

    @contextlib.contextmanager
    def _callbacks_told_of_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            with contextlib.ExitStack() as ends:  # one that fails keeps no other from its end
                for callback in self._callbacks:
                    ends.callback(callback.on_run_end, self._step)

    @contextlib.contextmanager
    def _writers(self, purge_step: int) -> Iterator[_logging.Writers]:
        writers = _logging.Writers(purge_step if purge_step > 1 else None)
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
    world = _distributed.join(n_devices)
    seed = _seeds.fresh_seed() if random_seed is None else random_seed
    seed = int(world.from_chief(str(seed).encode()))
    _seeds.seed_ambient(seed, world.rank)
    return world.is_chief, world.n_hosts, world.size, seed


def _summaries_of(model: tl.Layer) -> dict[str, Any]:
    """Returns what SummaryScalar and SummaryImage layers saw last, by their 'summary_...' names."""
    found = (getattr(module, "summary", None) for module in model.modules())
    return {name: value for name, value in filter(None, found) if value is not None}
