"""The training loop, and the tasks it runs.

`Loop` conducts: it asks small parts, each with one duty, to take a step, measure, save, and say so.
The order of events at a step is written down once, in `Loop.run`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trax_torch import _distributed, _seeds, _signals
from trax_torch.interop._pickle import pickle_to_file, unpickle_from_file
from trax_torch.optimizers import NonFiniteError
from trax_torch.supervised import _checkpoint, _logging, _loop, _tasks
from trax_torch.supervised._checkpoint import differences, verify_resume
from trax_torch.supervised._loop import init_host_and_devices
from trax_torch.supervised._tasks import EvalTask, TrainTask
from trax_torch.supervised.history import History

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
        backward pass. 2 offloads weights and slots to host memory, too: one block at a time is on
        the device, and `loop.model` on the host. Results are those of False. Gradients flow through
        what layers take and give: a loss that reads what a block left on itself gives that none.
        Clipping by the global norm, accumulation, `compile`, `on_nonfinite='skip'` and
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
        self._config = config = _loop.LoopConfig.of(locals())  # while nothing else has a name
        self._world = world = _distributed.join(n_devices, device, timeout)
        self._tasks, self._eval_tasks = _loop.as_tasks(tasks, eval_tasks)
        self._state = state = _checkpoint.RunState(_loop.seed_of(config, world))
        self._console = _logging.Console(world.is_chief, config)
        self._events = _loop.events_of(config, self._tasks[0])
        self._best = _loop.Best(checkpoint_low_metric, checkpoint_high_metric, self._eval_tasks)
        self._parts = parts = _loop.build(
            model, self._tasks, eval_model, self._eval_tasks, config, world, state.seed
        )
        self._stopping = _loop.Stopping(world)
        self._stepper = _loop.Stepper(world, self._tasks, parts, which_task, self._stopping)
        self._callbacks = _loop.CallbackList(world, self._stopping)
        members = parts.members(self._tasks, self._eval_tasks, self._callbacks.items)
        self._reports = _logging.Reports(
            self._console, self._tasks, self._eval_tasks, config.output_dir, world
        )
        self._saver = _checkpoint.Checkpointer(state, members, world, self._console, config)
        with self._saver.locked():
            self.load_checkpoint()
        self._callbacks.build(callbacks, self)
        members.fill_callbacks()

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
        self._saver.check_whole()
        self._parts.model.train()
        for trainer in self._parts.trainers:
            trainer.renew_params()
        self._step_seed = _seeds.derive(self._state.seed, "step", self._world.rank)
        first = self.step + 1
        with _signals.Stopper() as stopper:
            self._stopping.begin(stopper)
            with (
                self._saver.running(),
                _logging.Writers(self.step if self._report_is_due() else first) as writers,
                self._console.progress(first, n_steps, self._config.progress) as steps,
                _logging.clocks_running(self._parts.accumulators),
                self._callbacks.run(self),
            ):
                self._catch_up(writers)
                self._world.compare({"the step": self.step, "n_steps": n_steps})
                self._stopping.agree()
                for step in steps:
                    if self._stopping.is_due:
                        break
                    report, names = bool(self._events.eval_at(step)), self._names_at(step)
                    self._take_step(step, report, names)
                    self._save(names)
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
            self._console.say_step(self.step, f"Stopped: {why}")

    def _catch_up(self, writers: _logging.Writers) -> None:
        """Does what was due at the step that the run goes on from, if a crash kept it from that."""
        self._saver.check_not_overtaken()
        if self._saver.saved_step == self.step:
            missing = self._saver.missing(self._names_at(self.step))
            self._save(missing, blocking=True)
        if self._report_is_due():  # a checkpoint is saved before the evals of its step
            self._report(writers, saves_best="model" in self._names_at(self.step))

    def _leave(self, signum: int) -> None:
        """Saves what was done, and ends the process."""
        if self._saver.saved_step != self.step:
            self._save(["model"], blocking=True)
        self._saver.wait()  # a save that failed is an error, not an orderly end
        self._console.say_step(self.step, f"Stopped by signal {signum}.")
        raise SystemExit(_signals.exit_code(signum))

    def _take_step(self, step: int, report: bool, names: list[str]) -> None:
        due = {"what is reported": report, "what is saved": len(names)}
        try:
            trainer, called = self._stepper.take(
                step, self._step_seed, self._callbacks.items, report, due
            )
        except NonFiniteError as raised:
            if not all(each.is_whole for each in self._parts.trainers):
                raised.args = (f"{raised} {self._saver.way_back()}",)
            raise
        self._state.step = step
        trainer.is_whole = True
        self._callbacks.step_ended(called, step)

    def _names_at(self, step: int) -> list[str]:
        """Returns the names to save under at a step, before its evals."""
        return [] if self.output_dir is None else self._events.names_at(step)

    def _report(self, writers: _logging.Writers, saves_best: bool) -> None:
        """Logs training since the last report, runs evals, and saves the best so far."""
        self._stepper.check_finite()
        self._reports.begin(self.step, self._parts.model)
        more = self._callbacks.values() | self._stepper.counts()
        accumulators = self._parts.accumulators
        self._reports.log_training(self.history, self.step, accumulators, writers, more)
        self.run_evals(self._reports.eval_writers(writers))
        self._state.reported_step = self.step
        for each in accumulators:
            each.clear()
        if saves_best:
            self._save(self._best.names_at(self.step, self.history))

    def _report_is_due(self) -> bool:
        return self.step != self._state.reported_step and bool(self._events.eval_at(self.step))

    def run_evals(self, summary_writers: Any = None) -> None:
        """Measures the model on every eval task, and logs and records what it finds.

        Args:
          summary_writers: one for each eval task, as `log_summary` takes; None writes no files.

        Raises:
          CheckpointError: if an update was broken off, with the way back.
        """
        self._saver.check_whole()
        summary_writers = summary_writers or [None] * len(self._eval_tasks)
        with self._callbacks.evals(self.step):
            self._run_evals(summary_writers)

    def _run_evals(self, summary_writers: Any) -> None:
        model = self._parts.eval_model
        if model is not self._parts.model:
            _checkpoint.share_buffers(self._parts.model, model)
        self._world.copy_from_chief_(list(model.buffers()))
        for index, evaluator in enumerate(self._parts.evaluators):
            seed = _seeds.derive(self._state.seed, "eval", self.step, index, self._world.rank)
            self.log_summary(evaluator.means(seed), summary_writers[index], "metrics/", "eval")
            seen = _logging.summaries_of(model)
            self.log_summary(seen, summary_writers[index], "", "eval", stdout=False)

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
            self.history, self.step, values, summary_writer, value_prefix, log_prefix, stdout
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
        if self.output_dir is None:
            self._console.say("Did not save checkpoint as output_dir is None")
        self._save([basename], blocking)

    def _save(self, names: list[str], blocking: bool | None = None) -> None:
        if names and self.output_dir is not None:
            blocking = not self._config.background_saves if blocking is None else blocking
            self._stepper.check_finite()
            self._saver.save(names, blocking)

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
        self._saver.load(directory, filename)

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
                _checkpoint.put_named(self._parts.model, kind, tree)
            elif tree is not None:
                setattr(self._parts.model, kind, tree)

    def new_rng(self) -> torch.Generator:
        """Returns a fresh generator, each call another; the same sequence for the same seed."""
        self._state.n_rngs += 1
        return _seeds.generator(self._state.seed, "new_rng", self._state.n_rngs, self._world.rank)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._state.step

    @property
    def batch(self) -> Any:
        """The batch of the step under way, or of the last one, as tensors; for callbacks."""
        return self._stepper.batch

    @property
    def history(self) -> History:
        """What was measured so far."""
        return self._state.history

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
        return _checkpoint.bare(self._parts.model)

    @property
    def eval_model(self) -> Any:
        """The model that is measured."""
        return _checkpoint.bare(self._parts.eval_model)

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
        return self._callbacks.items

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizer of each training task, bound to its weights; for callbacks."""
        return [trainer.optimizer for trainer in self._parts.trainers]

    @property
    def seconds(self) -> float:
        """How long the loop has run since the last report, evals left out; for callbacks."""
        return max(each.seconds() for each in self._parts.accumulators)

    @property
    def output_dir(self) -> str | None:
        """Where checkpoints and logs go."""
        return self._config.output_dir
