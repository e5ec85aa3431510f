"""What to learn from and what to measure: TrainTask and EvalTask."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised._tasks import data_position, events


class TrainTask:
    """Labeled data, a loss, and the optimizer that brings it down.

    Args:
      labeled_data: an iterator of batches, each a tuple of numpy arrays or tensors: inputs,
        targets, and usually weights. An iterable such as a `DataLoader` is gone through again and
        again.
      loss_layer: a layer or module that maps (output, targets) or (output, targets, weights) to a
        scalar.
      optimizer: a recipe such as `optimizers.Adam(0.001)` or its class; or what PyTorch code has: a
        `torch.optim.Optimizer` made of the model's parameters, a class, or a `functools.partial`
        of one.
      lr_schedule: a function from a step, counted from 1, to a learning rate; or a maker of a
        `torch.optim.lr_scheduler`, called with the optimizer. None leaves the optimizer's own rate.
      n_steps_per_checkpoint: how many steps between checkpoints, and evals; None for none.
      n_steps_per_permanent_checkpoint: how many steps between checkpoints that stay.
      loss_name: what the loss is called in logs; the layer's name by default.
      sample_batch: a batch to take shapes from; by default the first of `labeled_data`, which is
        not trained on.
      export_prefix: the folder for logs below `output_dir` where there are several tasks.

    Raises:
      TypeError: if data, loss, optimizer or schedule are not what is needed.
      ValueError: if the data is empty.

    Source: Trax `supervised/training.py::TrainTask`.
    """

    def __init__(
        self,
        labeled_data: Any,
        loss_layer: Any,
        optimizer: Any,
        lr_schedule: Any = None,
        n_steps_per_checkpoint: int | None = 100,
        n_steps_per_permanent_checkpoint: int | None = None,
        loss_name: str | None = None,
        sample_batch: Any = None,
        export_prefix: str | None = None,
    ):
        self._labeled_data = labeled_data
        self.stream = data_position.BatchStream(labeled_data, "TrainTask's labeled_data")
        self._loss_layer = tl.as_layer(loss_layer)
        self._optimizer = optimizer
        self._own_rate = _own_rate(optimizer)
        self._schedule, self._scheduler_maker = _schedule_or_maker(lr_schedule)
        for period in (n_steps_per_checkpoint, n_steps_per_permanent_checkpoint):
            events.at_step_1_and_every_nth_step(period)
        self._n_steps_per_checkpoint = n_steps_per_checkpoint
        self._n_steps_per_permanent_checkpoint = n_steps_per_permanent_checkpoint
        self._loss_name = loss_name or self._loss_layer.name
        self._export_prefix = check_export_prefix(export_prefix)
        self._sample_batch = self.stream.next() if sample_batch is None else tuple(sample_batch)

    @property
    def labeled_data(self) -> Any:
        """The data as it was given."""
        return self._labeled_data

    @property
    def sample_batch(self) -> tuple[Any, ...]:
        """A batch to take shapes from."""
        return self._sample_batch

    def next_batch(self) -> tuple[Any, ...]:
        """Returns the next batch of labeled data."""
        return self.stream.next()

    @property
    def export_prefix(self) -> str | None:
        """The folder for logs where there are several tasks."""
        return self._export_prefix

    @property
    def loss_layer(self) -> tl.Layer:
        """The loss."""
        return self._loss_layer

    @property
    def loss_name(self) -> str:
        """What the loss is called in logs."""
        return self._loss_name

    @property
    def n_steps_per_checkpoint(self) -> int | None:
        """How many steps between checkpoints."""
        return self._n_steps_per_checkpoint

    @property
    def n_steps_per_permanent_checkpoint(self) -> int | None:
        """How many steps between checkpoints that stay."""
        return self._n_steps_per_permanent_checkpoint

    @property
    def optimizer(self) -> Any:
        """The optimizer as it was given."""
        return self._optimizer

    @property
    def scheduler_maker(self) -> Callable[[Any], Any] | None:
        """What makes a `torch.optim.lr_scheduler` of the optimizer, if that is how rates change."""
        return self._scheduler_maker

    def learning_rate(self, step: int) -> float | None:
        """Returns the schedule's rate at `step`, else a recipe's own; None if neither says."""
        if self._schedule is not None:
            return float(self._schedule(step))
        if self._scheduler_maker is not None:
            return None
        return self._own_rate


class EvalTask:
    """Labeled data and the metrics to measure on it.

    Args:
      labeled_data: as for `TrainTask`.
      metrics: layers or modules that map (output, targets) or (output, targets, weights) to a
        scalar; or a single one.
      metric_names: their names in logs; the layers' names by default.
      n_eval_batches: how many batches to take the mean over. Where several ranks measure, the mean
        is over all their batches, and each may have another number of them, or none.
      sample_batch: a batch to take shapes from; by default the first of `labeled_data`.
      export_prefix: the folder for logs below `output_dir` where there are several eval tasks.

    Raises:
      ValueError: if there are not as many names as metrics, a name twice, or no batch to measure.

    Source: Trax `supervised/training.py::EvalTask`.
    """

    def __init__(
        self,
        labeled_data: Any,
        metrics: Any,
        metric_names: Any = None,
        n_eval_batches: int = 1,
        sample_batch: Any = None,
        export_prefix: str | None = None,
    ):
        self._labeled_data = labeled_data
        self.stream = data_position.BatchStream(labeled_data, "EvalTask's labeled_data")
        metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        self._metrics = [tl.as_layer(metric) for metric in metrics]
        names = [metric.name for metric in self._metrics] if metric_names is None else metric_names
        self._metric_names = list(names)
        if len(self._metric_names) != len(self._metrics):
            raise ValueError(
                f"metric_names names each metric; got {len(self._metric_names)} names for "
                f"{len(self._metrics)} metrics."
            )
        if len(set(self._metric_names)) < len(self._metric_names):
            raise ValueError(
                f"Each metric needs a name of its own; got {self._metric_names}. Give metric_names."
            )
        if n_eval_batches < 0:
            raise ValueError(f"n_eval_batches counts batches; got {n_eval_batches}.")
        self._n_eval_batches = n_eval_batches
        self._export_prefix = check_export_prefix(export_prefix)
        if sample_batch is None and n_eval_batches:
            sample_batch = self.stream.next()
        self._sample_batch = None if sample_batch is None else tuple(sample_batch)

    @property
    def labeled_data(self) -> Any:
        """The data as it was given."""
        return self._labeled_data

    @property
    def sample_batch(self) -> tuple[Any, ...] | None:
        """A batch to take shapes from; None where no batch is measured."""
        return self._sample_batch

    def next_batch(self) -> tuple[Any, ...]:
        """Returns the next batch of labeled data."""
        return self.stream.next()

    @property
    def export_prefix(self) -> str | None:
        """The folder for logs where there are several eval tasks."""
        return self._export_prefix

    @property
    def metrics(self) -> list[tl.Layer]:
        """The metrics."""
        return self._metrics

    @property
    def metric_names(self) -> list[str]:
        """Their names in logs."""
        return self._metric_names

    @property
    def n_eval_batches(self) -> int:
        """How many batches the mean is taken over."""
        return self._n_eval_batches


def check_fits(model: tl.Layer, end: tl.Layer, batch: tuple[Any, ...], is_loss: bool) -> None:
    """Raises ValueError if a batch has not the items that model and loss, or metric, take."""
    below = max(0, end.n_in - model.n_out)
    needed, came = model.n_in + below, len(batch)
    if came == needed or (came > needed and not is_loss):
        return
    roles = "output, targets, weights" if end.n_in == 3 else "output, targets"
    takes = (
        f"{end.name} takes {end.n_in} items ({roles}), but the batch has {came} and the model "
        f"takes {model.n_in} of them."
    )
    if came < needed:
        do = (
            "Yield (inputs, targets, weights), or use a loss without weights."
            if end.n_in == 3
            else "Yield (inputs, targets)."
        )
    else:
        do = f"Yield {needed} items a batch, or use a loss that takes them all."
    raise ValueError(f"{takes} {do}")


def check_export_prefix(prefix: str | None) -> str | None:
    """Returns a prefix that is a plain folder name, or None.

    Raises:
      ValueError: if it is not.
    """
    if prefix is None:
        return None
    plain = all(c.isascii() and (c.isalnum() or c in "_.-") for c in prefix)
    if not prefix or not plain or prefix.startswith(".") or len(prefix) > 128:
        raise ValueError(
            f"export_prefix is a plain folder name of letters, digits, '_', '.' and '-'; "
            f"got {prefix!r}."
        )
    return prefix


def _own_rate(optimizer: Any) -> float | None:
    """Returns a recipe's learning rate; None where PyTorch's optimizer keeps its own."""
    if inspect.isclass(optimizer) and issubclass(optimizer, optimizers.Optimizer):
        optimizer = optimizer()
    return optimizer.learning_rate if isinstance(optimizer, optimizers.Optimizer) else None


def _schedule_or_maker(given: Any) -> tuple[Any, Any]:
    """Returns `(schedule, None)` or `(None, maker of a torch scheduler)`."""
    from torch.optim.lr_scheduler import LRScheduler

    if given is None:
        return None, None
    maker = given.func if isinstance(given, functools.partial) else given
    if inspect.isclass(maker) and issubclass(maker, LRScheduler):
        return None, given
    if isinstance(given, LRScheduler):
        raise TypeError(
            "lr_schedule takes what makes a scheduler, not one made already: for example "
            "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1000)."
        )
    if not callable(given):
        raise TypeError(
            f"lr_schedule is a function from a step to a rate, such as lr_schedules.constant(0.1), "
            f"or makes a torch scheduler; got {given!r}."
        )
    try:
        value = given(1)
    except Exception:  # not a function of a step: a maker, which Loop calls with the optimizer
        return None, given
    if isinstance(value, (int, float)) or hasattr(value, "__float__"):
        if not math.isfinite(float(value)):
            raise ValueError(f"lr_schedule gives {value} at step 1; a rate is a finite number.")
        return given, None
    raise TypeError(f"lr_schedule gives {value!r} at step 1; a rate is a number.")
