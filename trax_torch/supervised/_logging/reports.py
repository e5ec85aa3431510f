"""What is said of a run at a report, and under which names: to people, files and the history."""

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from trax_torch import _distributed, _nest
from trax_torch.supervised import _tasks
from trax_torch.supervised import history as _history
from trax_torch.supervised._logging import writers as _writers
from trax_torch.supervised._logging.accumulators import Accumulators

# Names of values that the clock decides: they differ between two runs that are otherwise equal.
PER_SECOND = "per second"
WAITING = "share of time waiting for data"


def of_the_clock(name: str) -> bool:
    """Tells whether the clock decides a value of this name."""
    return name.endswith((PER_SECOND, WAITING))


class Reports:
    """Names values, and hands them on.

    Args:
      console: prints lines.
      tasks: the training tasks.
      eval_tasks: the eval tasks.
      output_dir: where TensorBoard's folders lie, which the chief writes; None for none.
      world: the ranks that train together; what one of them says, all record.
    """

    def __init__(
        self,
        console: _writers.Console,
        tasks: list[_tasks.TrainTask],
        eval_tasks: list[_tasks.EvalTask],
        output_dir: str | None,
        world: _distributed.World,
    ):
        self._console = console
        self._world = world
        self._tasks = tasks
        names = [task.loss_name for task in tasks]
        names += [name for task in eval_tasks for name in task.metric_names]
        self._width = max(map(len, names))
        if output_dir is None:
            console.say("Will not write evaluation metrics, because output_dir is None.")
        if not world.is_chief:
            output_dir = None
        self._train_folders = self._folders_of(output_dir, tasks, "train")
        self._eval_folders = self._folders_of(output_dir, eval_tasks, "eval")

    def log(
        self,
        history: _history.History,
        step: int,
        values: Mapping[str, Any],
        writer: Any,
        value_prefix: str,
        log_prefix: str,
        stdout: bool = True,
    ) -> None:
        """Prints, writes and records values; `Loop.log_summary` tells of them."""
        for name, value in values.items():
            if getattr(value, "ndim", 0):
                if writer is not None:
                    writer.image(value_prefix + name, _nest.to_arrays(value), step)
                continue
            value = float(value)
            text = f"{log_prefix:5s} {name:>{self._width}s} | {value: .8f}"
            self._console.say_step(step, text, stdout)
            if writer is not None:
                writer.scalar(value_prefix + name, value, step)
            history.append(log_prefix, value_prefix + name, step, value)
        if writer is not None:
            writer.flush()

    def begin(self, step: int, model: nn.Module) -> None:
        """Begins a report, at step 1 with the number of weights."""
        self._console.say("")
        if step == 1:
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            self._console.say_step(1, f"Total number of trainable weights: {count}")

    def log_training(
        self,
        history: _history.History,
        step: int,
        accumulators: list[Accumulators],
        writers: _writers.Writers,
        more: Mapping[str, Any],
    ) -> None:
        """Tells of training since the last report, for every task that ran.

        Args:
          history: what was measured so far.
          step: the step that was taken last.
          accumulators: one for each training task.
          writers: of TensorBoard's files.
          more: further values by name.
        """
        n_steps = sum(each.n_steps for each in accumulators)
        seconds = max(each.seconds() for each in accumulators)
        self._console.say_step(step, f"Ran {n_steps} train steps in {seconds:0.2f} secs")
        for task, sums, folder in zip(self._tasks, accumulators, self._train_folders, strict=True):
            if not sums.n_steps:
                continue
            writer = writers.at(folder)
            sums.reduce(self._world)
            means = sums.means()
            parameters = {
                "learning_rate": sums.learning_rate,
                f"steps {PER_SECOND}": sums.n_steps / max(sums.seconds(), 1e-9),
                WAITING: sums.seconds_waited / max(sums.seconds(), 1e-9),
                **means,
                **more,
            }
            parameters = json.loads(self._world.from_chief(json.dumps(parameters).encode()))
            if "loss" in parameters:
                loss = {task.loss_name: parameters["loss"]}
                self.log(history, step, loss, writer, "metrics/", "train")
            self.log(history, step, parameters, writer, "training/", "train", stdout=False)

    def eval_writers(self, writers: _writers.Writers) -> list[Any]:
        """Returns what writes each eval task's values."""
        return [writers.at(folder) for folder in self._eval_folders]

    def _folders_of(self, output_dir: str | None, tasks: list[Any], kind: str) -> list[str | None]:
        if output_dir is None:
            return [None] * len(tasks)
        prefixes = [task.export_prefix or str(i) for i, task in enumerate(tasks)]
        if len(tasks) < 2:
            prefixes = [""] * len(tasks)
        return [os.path.join(output_dir, prefix, kind) for prefix in prefixes]


def summaries_of(model: nn.Module) -> dict[str, Any]:
    """Returns what SummaryScalar and SummaryImage layers saw last, by their 'summary_...' names."""
    found = (getattr(module, "summary", None) for module in model.modules())
    return {name: value for name, value in filter(None, found) if value is not None}
