"""What is said of a run at a report, and under which names: to people, files and the history."""

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from trax_torch import _distributed, _nest
from trax_torch.supervised import _tasks
from trax_torch.supervised import history as _history
from trax_torch.supervised._logging.accumulators import Accumulators
from trax_torch.supervised._logging.console import Console
from trax_torch.supervised._logging.event_files import EventFiles
from trax_torch.supervised._logging.logger_list import Logger, LoggerList

# Names of values that the clock decides: they differ between two runs that are otherwise equal.
PER_SECOND = "per second"
WAITING = "share of time waiting for data"
_METRICS = "metrics/"  # goes before the names of losses and metrics


def of_the_clock(name: str) -> bool:
    """Tells whether the clock decides a value of this name."""
    return name.endswith((PER_SECOND, WAITING))


class Reports:
    """Names values, and hands them on.

    What one task alone records has Trax's name in the history. Where several tasks would record
    values under one name, each has its `export_prefix`, or its number, and a slash before it: as
    its folder has that TensorBoard's files are in.

    Args:
      console: prints lines.
      tasks: the training tasks.
      eval_tasks: the eval tasks.
      output_dir: where TensorBoard's folders lie, which the chief writes; None for none.
      world: the ranks that train together; what one of them says, all record.
      loggers: what the user gave to hand values to.
    """

    def __init__(
        self,
        console: Console,
        tasks: list[_tasks.TrainTask],
        eval_tasks: list[_tasks.EvalTask],
        output_dir: str | None,
        world: _distributed.World,
        loggers: Logger | Sequence[Logger] | None = None,
    ):
        self._loggers = LoggerList(loggers, console, world.is_chief)
        self._news: dict[str, float] = {}  # that loggers were not given yet
        self._is_gathering = False
        self._console = console
        self._files = EventFiles(console)
        self._world = world
        self._tasks = tasks
        self._owners = {
            "train": _owners([[task.loss_name] for task in tasks], tasks),
            "eval": _owners([task.metric_names for task in eval_tasks], eval_tasks),
        }
        self._owner = _Owner()
        owners = [owner for each in self._owners.values() for owner in each]
        self._width = max(len(owner.shown(name)) for owner in owners for name in owner.names)
        if output_dir is None:
            console.say("Will not write evaluation metrics, because output_dir is None.")
        if not world.is_chief:
            output_dir = None
        self._train_folders = self._folders_of(output_dir, tasks, "train")
        self._eval_folders = self._folders_of(output_dir, eval_tasks, "eval")

    def log(
        self,
        history: _history.History | None,
        step: int,
        values: Mapping[str, Any],
        writer: Any,
        value_prefix: str,
        log_prefix: str,
        stdout: bool = True,
    ) -> None:
        """Prints, writes and records values; `Loop.log_summary` tells of them.

        Loggers get what the history gets, by its names behind 'train/' or 'eval/', and images.
        """
        with self.gathered(step):
            self._log(history, step, values, writer, value_prefix, log_prefix, stdout)

    def _log(
        self,
        history: _history.History | None,
        step: int,
        values: Mapping[str, Any],
        writer: Any,
        value_prefix: str,
        log_prefix: str,
        stdout: bool,
    ) -> None:
        for name, value in values.items():
            recorded = self._owner.recorded(value_prefix, name)
            if getattr(value, "ndim", 0):
                if writer is not None:
                    writer.image(value_prefix + name, _nest.to_arrays(value), step)
                if self._loggers:
                    image = _nest.to_arrays(value)
                    self._loggers.log_image(f"{log_prefix}/{recorded}", image, step)
                continue
            value = float(value)
            shown = self._owner.shown(name) if value_prefix == _METRICS else name
            text = f"{log_prefix:5s} {shown:>{self._width}s} | {value: .8f}"
            self._console.say_step(step, text, stdout)
            if writer is not None:
                writer.scalar(value_prefix + name, value, step)
            if history is not None:
                history.append(log_prefix, recorded, step, value)
                self._news[f"{log_prefix}/{recorded}"] = value
        if writer is not None:
            writer.flush()

    @contextlib.contextmanager
    def gathered(self, step: int) -> Generator[dict[str, float] | None]:
        """Hands on the numbers of its block together, when it ends; the outermost one counts.

        Returns:
          These numbers by the names that loggers see, at the end; None for an inner one.
        """
        if self._is_gathering:
            yield None
            return
        self._is_gathering = True
        try:
            yield self._news
        finally:
            self._is_gathering = False
            news, self._news = self._news, {}
            if news:
                self._loggers.log(news, step)

    @contextlib.contextmanager
    def of_task(self, mode: str, index: int) -> Generator[Callable[[str, str], str]]:
        """Has what is logged in its block be a task's.

        Args:
          mode: 'train' or 'eval'.
          index: the task's number.

        Returns:
          What tells of a value's prefix and name under which name the history has it.
        """
        self._owner = self._owners[mode][index]
        try:
            yield self._owner.recorded
        finally:
            self._owner = _Owner()

    def begin_run(self, first_step: int, hparams: Callable[[], Mapping[str, Any]]) -> None:
        """Begins a run, in whose files nothing of `first_step` and later is left of another.

        Args:
          first_step: the step.
          hparams: returns the settings of the run, for loggers.
        """
        self._files.begin(first_step)
        self._loggers.begin(first_step, hparams)

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Closes the loggers at the end of its block, in which a run takes place."""
        error = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._loggers.close(error)

    def unrecorded(self, step: int) -> Callable[..., None]:
        """Returns what logs values of a step as `Loop.log_summary` does, but keeps none.

        Nor do loggers get them: what goes on from there tells of that step as if nothing had been.
        """
        return functools.partial(self.log, None, step)

    def begin(self, step: int, model: nn.Module) -> None:
        """Begins a report, at step 1 with the number of weights."""
        self._console.say("")
        if step == 1:
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            self._console.say_step(1, f"Total number of trainable weights: {count}")

    def log_training(
        self,
        step: int,
        accumulators: list[Accumulators],
        more: Mapping[str, Any],
        log_summary: Callable[..., None],
    ) -> None:
        """Tells of training since the last report, for every task that ran.

        Args:
          step: the step that was taken last.
          accumulators: one for each training task.
          more: further values by name, of all tasks together.
          log_summary: logs values, as `Loop.log_summary` does.
        """
        n_steps = sum(each.n_steps for each in accumulators)
        seconds = max(each.seconds() for each in accumulators)
        self._console.say_step(step, f"Ran {n_steps} train steps in {seconds:0.2f} secs")
        tasks = zip(self._tasks, accumulators, self._train_folders, strict=True)
        for index, (task, sums, folder) in enumerate(tasks):
            if not sums.n_steps:
                continue
            writer = self._files.at(folder)
            rate = sums.learning_rate
            parameters = {
                **({} if rate is None else {"learning_rate": rate}),
                f"steps {PER_SECOND}": sums.n_steps / max(sums.seconds(), 1e-9),
                WAITING: sums.seconds_waited / max(sums.seconds(), 1e-9),
                **sums.means(self._world),
            }
            told = self._world.from_chief(json.dumps([parameters, dict(more)]).encode())
            parameters, of_the_run = json.loads(told)
            with self.of_task("train", index):
                if "loss" in parameters:
                    loss = {task.loss_name: parameters["loss"]}
                    log_summary(loss, writer, _METRICS, "train")
                log_summary(parameters, writer, "training/", "train", stdout=False)
            if of_the_run:  # each task's files show it, too
                log_summary(of_the_run, writer, "training/", "train", stdout=False)

    def eval_writers(self) -> list[Any]:
        """Returns what writes each eval task's values."""
        return [self._files.at(folder) for folder in self._eval_folders]

    def _folders_of(self, output_dir: str | None, tasks: list[Any], kind: str) -> list[str | None]:
        if output_dir is None:
            return [None] * len(tasks)
        prefixes = [task.export_prefix or str(i) for i, task in enumerate(tasks)]
        if len(tasks) < 2:
            prefixes = [""] * len(tasks)
        return [os.path.join(output_dir, prefix, kind) for prefix in prefixes]


@dataclass(frozen=True)
class _Owner:
    """The task that values are of.

    Attributes:
      prefix: tells it from others; '' where there is none.
      names: of its metrics, or its loss.
      own: those of them that no other task has.
    """

    prefix: str = ""
    names: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    def shown(self, name: str) -> str:
        """Returns the name of a metric as people see it."""
        return f"{self.prefix}/{name}" if self.prefix and not self._is_own(name) else name

    def recorded(self, value_prefix: str, name: str) -> str:
        """Returns a value's name in the history."""
        if not self.prefix or (value_prefix == _METRICS and self._is_own(name)):
            return value_prefix + name
        return f"{self.prefix}/{value_prefix}{name}"

    def _is_own(self, name: str) -> bool:
        """Tells whether a metric, or one of several values of it, is this task's alone."""
        return any(name == own or name.startswith(f"{own}/") for own in self.own)


def _owners(names: Sequence[Sequence[str]], tasks: Sequence[Any]) -> list[_Owner]:
    """Returns who has which names, one for each task."""
    if len(tasks) < 2:
        return [_Owner(names=tuple(each)) for each in names]
    prefixes = [task.export_prefix or str(i) for i, task in enumerate(tasks)]
    if len(set(prefixes)) < len(prefixes):
        prefixes = [str(i) for i in range(len(tasks))]
    counts = Counter(name for each in names for name in each)
    return [
        _Owner(prefix, tuple(each), frozenset(name for name in each if counts[name] == 1))
        for prefix, each in zip(prefixes, names, strict=True)
    ]


def summaries_of(model: nn.Module) -> dict[str, Any]:
    """Returns what SummaryScalar and SummaryImage layers saw last, by their 'summary_...' names."""
    found = (getattr(module, "last_summary", None) for module in model.modules())
    return {name: value for name, value in filter(None, found) if value is not None}
