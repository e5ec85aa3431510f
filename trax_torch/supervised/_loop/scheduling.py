"""When a task's learning-rate scheduler is stepped: after a step, an epoch, or an eval.

Schedulers are torch's, those that transformers' functions make, and timm's. What a rate is, they
decide; here it is made sure that each is told what it asks for, and no more.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trax_torch import optimizers
from trax_torch.supervised import _tasks
from trax_torch.supervised.history import History

_Plateau = torch.optim.lr_scheduler.ReduceLROnPlateau


class Pacer:
    """Steps the scheduler of a task.

    Args:
      scheduler: the scheduler; None where rates do not go by one.
      task: the task.
      monitor: the name of the metric that it follows, if it does.

    Attributes:
      scheduler: the scheduler.
      drawn: is to be called when the batch of a step was drawn; None if nothing is to be done.
      stepped: is to be called after a step; likewise.
    """

    def __init__(self, scheduler: Any, task: _tasks.TrainTask, monitor: str | None = None):
        self.scheduler = scheduler
        self.drawn: Callable[[], None] | None = None
        self.stepped: Callable[[], None] | None = None
        self._task = task
        self._monitor = monitor
        self._n_passes = 0
        if scheduler is None or monitor is not None:
            return
        counts_updates = isinstance(scheduler, UpdatesAndEpochs)
        self._step_at_once = scheduler.update if counts_updates else _nothing
        if not counts_updates and task.lr_schedule_every == "step":
            self.stepped = scheduler.step
        elif task.steps_per_epoch is not None:
            self.stepped = self._after_step
        else:
            self.drawn = self._before_step if task.epoch is not None else None
            self.stepped = self._step_at_once if counts_updates else None

    def begin_run(self) -> None:
        """Takes note of where the data is."""
        self._n_passes = self._task.stream.n_passes

    def _after_step(self) -> None:
        self._step_at_once()
        if self._task.n_steps % (self._task.steps_per_epoch or 1) == 0:
            self.scheduler.step()

    def _before_step(self) -> None:
        n_passes = self._task.stream.n_passes
        if n_passes == self._n_passes:
            return
        with warnings.catch_warnings():  # torch has not seen a resumed run's steps
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
            for _ in range(self._n_passes, n_passes):
                self.scheduler.step()
        self._n_passes = n_passes

    def follow(self, eval_tasks: Sequence[_tasks.EvalTask], history: History, step: int) -> None:
        """Tells a scheduler that follows a metric what the evals of a step have measured.

        Raises:
          ValueError: if the metric came to other numbers than the one that is followed.
        """
        if self._monitor is None:
            return
        values = history.get("eval", f"metrics/{self._monitor}")
        if values and values[-1][0] == step:
            self.scheduler.step(values[-1][1])
        else:
            _tasks.check_comes_to(self._monitor, eval_tasks, history, step)


def _nothing() -> None:
    """Does nothing."""


class UpdatesAndEpochs:
    """A scheduler of timm, which is told how many updates there were, and how many epochs.

    Args:
      scheduler: has `step_update(n_updates)` and `step(n_epochs)`.
    """

    def __init__(self, scheduler: Any):
        self._scheduler = scheduler
        self._n_updates = self._n_epochs = 0

    def update(self) -> None:
        """Tells that there was an update."""
        self._n_updates += 1
        self._scheduler.step_update(self._n_updates)

    def step(self) -> None:
        """Tells that an epoch is complete."""
        self._n_epochs += 1
        self._scheduler.step(self._n_epochs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts, and the scheduler's own state."""
        counts = {"kind": type(self._scheduler).__name__, "n_updates": self._n_updates}
        return {**self._scheduler.state_dict(), **counts, "n_epochs": self._n_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        own = dict(state)
        del own["kind"]
        self._n_updates, self._n_epochs = own.pop("n_updates"), own.pop("n_epochs")
        self._scheduler.load_state_dict(own)


def make_pacer(
    task: _tasks.TrainTask, trainer: optimizers.Trainer, eval_tasks: Sequence[_tasks.EvalTask]
) -> Pacer:
    """Returns what steps the scheduler of a task.

    Args:
      task: the task, which may make a scheduler.
      trainer: holds its optimizer.
      eval_tasks: measure what a scheduler may follow.

    Raises:
      TypeError: if what the task was given makes no scheduler.
      ValueError: if it cannot be told when to step it, or which metric it follows.
    """
    scheduler = make_scheduler(task, trainer)
    if scheduler is None:
        return Pacer(None, task)
    name = type(scheduler).__name__
    if follows_a_metric(scheduler):
        if task.lr_schedule_every == "epoch":
            raise ValueError(
                f"{name} follows a metric, and is stepped after each eval that measures it. Leave "
                f"lr_schedule_every out, and say by n_steps_per_checkpoint, or Loop(eval_at=), "
                f"when evals are."
            )
        return Pacer(scheduler, task, monitored(name, task.monitor, eval_tasks))
    if task.monitor is not None:
        raise ValueError(
            f"monitor={task.monitor!r} is what a scheduler such as ReduceLROnPlateau follows, and "
            f"{name} follows steps. Leave it out."
        )
    if not hasattr(scheduler, "step_update"):
        return Pacer(scheduler, task)
    in_epochs = bool(getattr(scheduler, "t_in_epochs", True))
    if task.lr_schedule_every == "epoch" and not in_epochs:
        raise ValueError(
            f"{name} was made with t_in_epochs=False, so that it goes by steps, and "
            f"lr_schedule_every='epoch' asks for epochs. Leave one of them out."
        )
    if in_epochs and task.epoch is None:
        raise ValueError(
            f"{name} goes by epochs, and labeled_data is an iterator, which has none. Make it with "
            f"t_in_epochs=False, or give data that can be gone through again."
        )
    return Pacer(UpdatesAndEpochs(scheduler), task)


def make_scheduler(task: _tasks.TrainTask, trainer: optimizers.Trainer) -> Any:
    """Returns the scheduler of a task whose rates change that way, or None."""
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    if task.scheduler_maker is None:
        if task.learning_rate(1) is not None and len(rates) > 1:
            raise ValueError(
                f"The optimizer has parameter groups of rates {sorted(rates)}, and a schedule of "
                f"steps would set them all to one. Scale them instead: lr_schedule="
                f"functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=...)."
            )
        return None
    _give_each_group_a_rate(trainer.optimizer)
    try:
        scheduler = task.scheduler_maker(trainer.optimizer)
    except Exception as error:
        raise TypeError(
            f"lr_schedule={task.scheduler_maker!r} is no function of a step, and made no torch "
            f"scheduler of the optimizer either: {error}"
        ) from error
    if not all(hasattr(scheduler, name) for name in ("step", "state_dict", "load_state_dict")):
        raise TypeError(
            f"lr_schedule, called with the optimizer, made {scheduler!r}; a scheduler was needed, "
            f"with step, state_dict and load_state_dict, as torch's are. A function of a step "
            f"gives a number at step 1."
        )
    if isinstance(getattr(scheduler, "lr_scheduler", None), _Plateau):
        raise TypeError(
            f"{type(scheduler).__name__} does not save what it remembers of the metric, so a run "
            f"could not go on alike. Give functools.partial(torch.optim.lr_scheduler."
            f"ReduceLROnPlateau, ...), and TrainTask(monitor=...)."
        )
    return scheduler


def _give_each_group_a_rate(optimizer: torch.optim.Optimizer) -> None:
    """Copies a rate that is one tensor in several groups: schedulers write over it for each."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(rate := group["lr"], torch.Tensor) and id(rate) in seen:
            group["lr"] = rate.clone()
        seen.add(id(rate))


def follows_a_metric(scheduler: Any) -> bool:
    """Tells whether a scheduler's step needs a value, as ReduceLROnPlateau's does."""
    if isinstance(scheduler, _Plateau):
        return True
    if hasattr(scheduler, "step_update"):  # timm's take the number of an epoch
        return False
    parameters = inspect.signature(scheduler.step).parameters.values()
    return any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def monitored(scheduler: str, asked: str | None, eval_tasks: Sequence[_tasks.EvalTask]) -> str:
    """Returns the name of the metric that a scheduler follows.

    Args:
      scheduler: what the scheduler is called.
      asked: the name that was given, also as the history has it, 'metrics/L2Loss'; None takes the
        only metric there is.
      eval_tasks: what is measured.

    Raises:
      ValueError: if no eval task measures it, or several do, or there are several metrics.
    """
    known = [name for task in eval_tasks for name in task.metric_names]
    if not known:
        raise ValueError(
            f"{scheduler} follows a metric, and none is measured. Give Loop(eval_tasks="
            f"EvalTask(loader, metric))."
        )
    if asked is None and len(known) == 1:
        return known[0]
    name = (asked or "").removeprefix("metrics/")
    if sum(task.measures(name) for task in eval_tasks) != 1:
        came = "none was named" if asked is None else f"got monitor={asked!r}"
        raise ValueError(
            f"{scheduler} follows a metric that one eval task measures; {came}, and they measure "
            f"{known}. Give TrainTask(monitor={known[0]!r}), say, and EvalTask(metric_names=) "
            f"where two have one name."
        )
    return name
