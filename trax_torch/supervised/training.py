"""The training loop, and the tasks it runs.

`Loop` conducts: it asks small parts, each with one duty, to take a step, measure, save, and say so.
The order of events at a step is written down once, in `Loop.run`.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, cast

import torch
from torch import nn
from typing_extensions import TypeVar

from trax_torch import _distributed, _mistakes, _seeds, _signals
from trax_torch.interop._pickle import pickle_to_file, unpickle_from_file
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

Model = TypeVar("Model", bound=nn.Module, default=Any, covariant=True)
CallbackMaker = Callable[["Loop[Any]"], _loop.Callback]  # a class, or a partial of one


class Loop(_loop.Described, Generic[Model]):
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
      checkpoint_low_metric: of this metric, the lowest so far is kept as `lowest_<metric>`.
      checkpoint_high_metric: likewise, `highest_<metric>`.
      permanent_checkpoint_at: tells whether to save one that stays, as `model_<step>`; by default
        as the first task's `n_steps_per_permanent_checkpoint` says.
      eval_at: tells whether to report and run evals; by default when checkpoints are due.
      which_task: tells of a step which task is trained; by default they take turns.
      n_devices: how many devices the caller counts on; the launcher decides.
      random_seed: of all random numbers, kept in checkpoints; by default one that is drawn from
        torch's generator, so that `torch.manual_seed` before it repeats a run. It is printed then.
      loss_chunk_size: over how many positions at a time, of all (batch * length), the model's last
        Dense, if it ends in one, and the loss are computed, so that the activations for a large
        vocabulary never exist at once; losses and gradients are those of the whole. A loss that is
        neither Trax's nor torch's cross-entropy gets whole rows of the batch; it must be a mean or
        sum over rows, and is refused if the sample batch shows that it is none. (A mean over what
        it masks itself is none: take a third input called weights.) 0 computes all at once.
      use_memory_efficient_trainer: True trains block by block: activations of one block at a time
        take up memory, and its weights are updated, and its gradients freed, in the midst of the
        backward pass. 2 offloads weights and slots to host memory, too: one block at a time is on
        the device, and `loop.model` on the host. Gradients flow through what layers take and give,
        not to what a block leaves on itself. What needs all gradients at once is refused.
      adasum: True has ranks merge their gradients by how much they agree, instead of averaging
        them (arXiv:2006.02924); the number of ranks must be a power of 2.
      callbacks: classes, built as `callback(loop)`; see `callbacks.TrainingStepCallback`.
      best_at: 'evals' keeps the lowest and highest of a metric whenever it is measured;
        'checkpoints', as Trax does, at steps alone at which a checkpoint is saved.
      device: where to compute; by default CUDA if there is any, else the CPU.
      progress: True shows a bar, False none; by default one on a terminal and in a notebook.
      verbose: False prints nothing; what is said goes to the logger 'trax_torch' in any case.
      loggers: of `supervised.loggers`, or what has their methods: what the history gets is given
        to them, too, by its names behind 'train/' or 'eval/'. One that fails ends no run.
      log_every: after how many steps training is logged, besides at evals, with means over the
        steps since the last time. None logs it with evals alone.
      precision: 'bf16' computes in bfloat16 where torch's autocast deems it safe, in training and
        evals; weights, slots and losses keep theirs. (A CPU that multiplies none says so, and goes
        by None.) 'fp16' computes in float16, losses scaled as by `torch.amp.GradScaler`: steps that
        overflow are skipped, and counted. 'fp32' has CUDA multiply float32 in full, 'tf32' may
        round to TensorFloat-32. None computes in the weights' type, as torch is set.
      n_accumulation_steps: into how many parts a batch is cut, along its first axis, that go
        forward and backward one after another: activations of one alone take up memory. Loss and
        gradients are those of the whole batch, or it is refused. (Batch statistics are a part's.)
      compile: True compiles the model with `torch.compile`, once for training and once for evals.
      keep_last: how many permanent checkpoints of this run, `model_<step>`, to keep; None: all.
      background_saves: True writes checkpoints behind the run, from a copy of the weights and
        slots; one that fails stops the run at the next save or the end of `run`.
      on_nonfinite: a step whose loss or gradient is not finite changes nothing: 'raise' raises
        `NonFiniteError`; a number skips so many steps before it raises; 'skip' stands for 100.
      strategy: 'ddp' has each rank keep all weights and slots; 'fsdp' a part of each (torch's
        `fully_shard`), for models too large for one device; 'hsdp' has each machine keep them all.
      find_unused_parameters: where several ranks train: which weights a task's loss depends on is
        found once, on its sample batch; True looks at each step, for models in which that changes.
      timeout: seconds after which a rank that does not answer is given up, with an error; more
        than the chief takes to save or load. A process group already there keeps its own.
      save_at_end: True saves the last step of a run, however it ends, reports it with evals, and
        keeps what is best then. False leaves it at what is due, as Trax: for many short runs.
      resume_data: 'exact' goes on with the batch after the last one that was seen, and draws those
        before it again where the data does not keep its own place; 'restart' begins anew.
      resume_from: which checkpoint to start from, each time: a name in `output_dir`, such as
        'model_2000', or a path, 'other/model'; by default 'model', if `output_dir` has it. Later
        ones stay until the run saves under the same names.
      clip_grad_norm: scales all gradients down to this global norm where theirs reaches it, with
        any optimizer; `training/gradients_l2` is the norm before. A recipe's own does the same.
      clip_grad_value: brings elements of gradients into [-clip_grad_value, clip_grad_value], last.
      activation_checkpointing: True keeps what repeated blocks take in alone, and computes the rest
        again in the backward pass; 'offload' keeps that in host memory.

    Raises:
      ValueError: if arguments, model and batches do not fit together.
      CheckpointError: if `output_dir` cannot be written to, or its checkpoint cannot be read.

    Source: Trax `supervised/training.py::Loop`.
    """

    @_mistakes.door("Loop", _loop.habits.OF_LOOP, _loop.habits.OF_TRAX_1_3_4)
    def __init__(
        self,
        model: Model,
        tasks: TrainTask | Sequence[TrainTask],
        eval_model: Model | None = None,
        eval_tasks: EvalTask | Sequence[EvalTask] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
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
        callbacks: "CallbackMaker | Sequence[CallbackMaker] | None" = None,
        *,
        best_at: _loop.BestAt = "evals",
        device: str | torch.device | None = None,
        progress: bool | None = None,
        precision: _loop.Precision | None = None,
        n_accumulation_steps: int = 1,
        compile: bool = False,
        keep_last: int | None = None,
        background_saves: bool = False,
        on_nonfinite: _loop.OnNonfinite | int = "raise",
        save_at_end: bool = True,
        resume_data: _loop.ResumeData = "exact",
        resume_from: str | None = None,
        strategy: _loop.Strategy = "ddp",
        find_unused_parameters: bool = False,
        timeout: float = 300.0,
        verbose: bool = True,
        loggers: _logging.Logger | Sequence[_logging.Logger] | None = None,
        log_every: int | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        activation_checkpointing: _loop.ActivationCheckpointing = False,
    ):
        config = _loop.LoopConfig.of(locals())  # while nothing else has a name
        self._build(config, model, eval_model, tasks, eval_tasks, callbacks, loggers)

    def _build(self, config: _loop.LoopConfig, model: Any, eval_model: Any, *given: Any) -> None:
        """Builds the parts, in the order in which they need each other, and goes on from a save."""
        tasks, eval_tasks, callbacks, loggers = given
        self._config = config
        self._world = world = _distributed.join(config.n_devices, config.device, config.timeout)
        self._tasks, self._eval_tasks = both = _loop.as_tasks(tasks, eval_tasks)
        self._state = state = _checkpoint.RunState(_loop.seed_of(config, world, *both))
        self._console = console = _logging.Console(world.is_chief, config, config.verbose)
        events, best = _loop.events_of(config, both[0][0]), _loop.Best(config, both[1])
        hook = None if type(self).compute_loss is Loop.compute_loss else self.compute_loss
        self._parts = parts = _loop.build(model, eval_model, *both, config, world, state.seed, hook)
        self._stopping = stopping = _loop.Stopping(world)
        self._callbacks = told = _loop.CallbackList(world, stopping, config, lambda: state.step)
        members = parts.members(*both, told.items)
        self._reports = reports = _logging.Reports(console, *both, self.output_dir, world, loggers)
        self._saver = saver = _checkpoint.Checkpointer(state, members, world, console, config)
        self._stepper = stepper = _loop.Stepper(
            world, self._tasks, parts, state, config.which_task, told, stopping, saver.way_back
        )
        self._saves = saves = _loop.Saves(saver, stepper.check_finite, told.saved)
        self._after = _loop.AfterStep(
            self, config, state, events, best, stepper, told, reports, console, saves, saver
        )
        with self._saver.locked():
            self.load_checkpoint(*config.start())
        _loop.greet(console, parts.says(), self.random_seed, is_drawn=config.random_seed is None)
        self._callbacks.build(callbacks, self, saves, members.fill_callbacks)

    @_mistakes.door("Loop.run", _loop.habits.OF_RUN)
    def run(
        self, n_steps: int | None = None, *, until: int | None = None, n_epochs: int | None = None
    ) -> None:
        """Trains for some more steps, or until so many have been taken in all.

        A script that may be started again asks for `until`, and ends where it would have if nothing
        had stopped it. The last step is saved, then reported with evals; see `save_at_end`. So a
        checkpoint holds the run before that, and one that goes on is the one that never ended.

        SIGTERM and SIGINT end the run after the step under way: a checkpoint is saved, training is
        reported, and the process exits with 143 or 130, as `SystemExit`. A second signal, a second
        or more later, ends it at once. At a prompt or in a notebook SIGINT is `KeyboardInterrupt`.

        Args:
          n_steps: how many more steps; by default those of the task's `epochs`, else 1.
          until: how many in all, and n_epochs: how many more `TrainTask.epoch`s, instead.

        Raises:
          NonFiniteError: if a loss or gradient is not finite; that step has changed nothing. With
            use_memory_efficient_trainer a gradient that is not finite may be found when some
            weights are updated; the error says so then, and where to go back to.
          ValueError: if the data ends, or several of n_steps, until and n_epochs are given.
          CheckpointError: if a checkpoint cannot be saved, or another process writes here.
        """
        n_steps = _loop.n_steps_of(n_steps, until, n_epochs, self.step, self._tasks)
        self._saver.check_whole()
        self._stepper.begin_run()
        first = self.step + 1
        with _signals.Stopper() as stopper, self._world.call("run()"):
            self._stopping.begin(stopper)
            with (
                self._saver.running(),
                self._console.progress(first, n_steps, self._config.progress, self) as steps,
                _logging.clocks_running(self._parts.accumulators),
                _loop.float32_precision(self._config),
                self._reports.running(),
                self._callbacks.run(self._saves),
            ):
                self._after.catch_up(n_steps)
                self._world.compare({"the step": self.step, "n_steps": n_steps})
                self._stopping.agree()
                for step in steps:
                    if self._stopping.is_due:
                        break
                    due = self._after.due_at(step)
                    with self._saves:
                        trainer = self._stepper.take(step, due)
                    self._saver.check_can_save(trainer)
                    self._after.save(due.names)
                    if due.training and self._stopping.signum is None:
                        self._after.report(due.evals, "model" in due.names)
                        self._stopping.agree()  # a callback may have asked to stop
                self._stopping.agree()
                self._after.end(self.step >= first, self._stopping.signum)
            self._stopping.agree()
            if self._stopping.signum is not None:  # a save in the background is known to be done
                self._after.leave(self._stopping.signum)

    def compute_loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Returns the loss of a batch; a subclass overrides it where no rule of `TrainTask` does.

        It is then asked in the place of the task's loss in training, of each part of a batch, also
        when the Loop is built, so what it reads of `self` is set before `super().__init__`. Evals
        measure as their tasks say.

        Args:
          model: the module, in train mode.
          batch: a batch, or a part of it, as the data yields it, as tensors.

        Returns:
          A scalar: a mean over the rows of the batch, so that parts and ranks make up the whole.
        """
        raise NotImplementedError("Override compute_loss(model, batch) in a class of your own.")

    def stop(self, why: str = "") -> None:
        """Ends `run` after the step under way; for callbacks.

        Args:
          why: is printed, so that nobody takes the run for a whole one.
        """
        self._stopping.ask()
        if why:
            self._console.say_step(self.step, f"Stopped: {why}")

    @_mistakes.door("Loop.run_evals", _loop.habits.OF_RUN)
    def run_evals(self, summary_writers: Any = None) -> dict[str, float]:
        """Measures the model on every eval task, and logs and records what it finds.

        Args:
          summary_writers: one for each eval task, as `log_summary` takes; None writes no files.

        Returns:
          The metrics' values by their names in the history, such as 'metrics/L2Loss'.

        Raises:
          CheckpointError: if an update was broken off, with the way back.
        """
        self._saver.check_whole()
        writers = summary_writers or [None] * len(self._eval_tasks)
        values: dict[str, float] = {}
        with self._world.call("run_evals()"), self._saves, self._after.told_of_evals():
            found = _loop.measured(self._parts, self._world, self._state.seed, self.step)
            for index, (means, seen) in enumerate(found):
                with self._reports.of_task("eval", index) as recorded:
                    self.log_summary(means, writers[index], "metrics/", "eval")
                    self.log_summary(seen, writers[index], "", "eval", stdout=False)
                values |= {recorded("metrics/", name): mean for name, mean in means.items()}
        return values

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
          value_prefix: goes before the names in files and history, such as 'metrics/'. What several
            tasks would record under one name has the task's `export_prefix`, or its number, before
            that in the history: '0/metrics/L2Loss', '1/training/loss'.
          log_prefix: 'train' or 'eval'.
          stdout: False prints nothing.
        """
        self._reports.log(
            self.history, self.step, values, summary_writer, value_prefix, log_prefix, stdout
        )

    def save_checkpoint(self, basename: str, *, blocking: bool = True) -> None:
        """Saves the run as it is now under a name, in the place of an earlier one of that name.

        Where callbacks are being made, or told of a step, evals or the end of a run, or averages
        are applied, it is saved after that, so that their order does not matter. If that fails, so
        does the save, and the error says it.

        Args:
          basename: the name.
          blocking: False copies the tensors and returns, and writes in the background. A failure is
            raised by the next save, or at the end of `run`.

        Raises:
          ValueError: if the name is no plain file name, or a state_dict asks that is being saved.
          CheckpointError: if it cannot be written; what was saved before is intact.
          NonFiniteError: if a step since the last report was not finite, or a weight is not;
            nothing is saved then.
        """
        _checkpoint.check_basename(basename)
        if self.output_dir is None:
            self._console.say("Did not save checkpoint as output_dir is None")
            warnings.warn(
                f"save_checkpoint({basename!r}) saved nothing: this Loop has no output_dir. Build "
                f"it with one, Loop(..., output_dir='run').",
                stacklevel=2,
            )
            return
        self._saves.save(basename, blocking)

    def saves_later(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context at whose end is saved what is asked for inside; for callbacks.

        It is for what changes the model for a while, such as its weights for averages of them.
        """
        return self._saves

    def load_checkpoint(self, directory: str | None = None, filename: str | None = None) -> None:
        """Puts the run where a checkpoint left it; an `output_dir` without one changes nothing.

        Args:
          directory: its folder, or a place such as 'run/model_5'; by default `output_dir`.
          filename: its name; 'model' by default. Where there is none of that name of ours, but
            Trax's own `<filename>.pkl.gz`, that is read: weights, state, slots, history and step.

        Raises:
          CheckpointError: if it is damaged, or not where it is said to be; nothing has changed.
          IndexError: if it belongs to another model, optimizer or set of tasks (a `MismatchError`,
            with the first differences); nothing has changed then.
          ValueError: if callbacks are being told of a step, evals, or the end of a run.
        """
        self._saves.check_outside("load_checkpoint")
        with self._world.call("load_checkpoint()"), self._saves:
            if self._saver.load(directory, filename):
                self._callbacks.loaded()

    def update_weights_and_state(self, weights: Any = None, state: Any = None) -> None:
        """Sets the model's weights, its state, or both.

        Args:
          weights: a tree in Trax's order, or a mapping from names as in `state_dict`; None leaves
            them.
          state: likewise, for what is not trained.

        Raises:
          ValueError: if a tree does not fit; or an IndexError, if a mapping does not.
        """
        _checkpoint.put_trees(self._parts.model, weights, state)

    def new_rng(self) -> torch.Generator:
        """Returns a fresh generator, each call another; the same sequence for the same seed."""
        self._state.n_rngs += 1
        return _seeds.generator(self._state.seed, "new_rng", self._state.n_rngs, self._world.rank)

    if not TYPE_CHECKING:  # a checker finds by itself what is not there

        def __getattr__(self, name):
            """Says, of what other libraries have, what to write here."""
            _mistakes.no_attribute(self, name, _loop.habits.OF_ATTRIBUTES)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._state.step

    @property
    def epoch(self) -> float | None:
        """How many epochs of the first task were trained; see `TrainTask.epoch`."""
        return self._tasks[0].epoch

    @property
    def random_seed(self) -> int:
        """The seed of all random numbers: the one that was asked for, drawn or loaded."""
        return self._state.seed

    @property
    def batch(self) -> Any:
        """The batch of the step under way, or of the last one, as tensors; for callbacks."""
        return self._stepper.batch

    @property
    def loss(self) -> float | None:
        """The loss of the last step, which is waited for now; None before this process took one.

        Where several ranks train, each has its share times their number, whose mean is the loss.
        """
        loss = self._stepper.loss
        return None if loss is None else float(loss) * self._world.size

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
    def model(self) -> Model:
        """The model in training, as it was given."""
        return cast(Model, _checkpoint.bare(self._parts.model))

    @property
    def eval_model(self) -> Model:
        """What predicts: `eval_model`, or else the model in eval mode, with the same weights."""
        return cast(Model, self._parts.evaluated())

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
