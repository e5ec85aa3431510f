"""What to learn from and what to measure: TrainTask and EvalTask."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from trax_torch import _mistakes, optimizers
from trax_torch import layers as tl
from trax_torch.data import _streams
from trax_torch.supervised._tasks import events, habits, losses, words
from trax_torch.supervised._tasks import metrics as _metrics
from trax_torch.supervised._tasks.argument_types import (
    AnyOptimizer,
    Data,
    Loss,
    Metrics,
    Schedule,
)


class TrainTask:
    """Labeled data, a loss, and the optimizer that brings it down.

    Args:
      labeled_data: an iterator of batches, each a tuple of numpy arrays or tensors: inputs,
        targets, and usually weights; or a mapping, dataclass or namedtuple, whose items go to the
        arguments of the model's forward that have their names. An iterable such as a `DataLoader`
        is gone through again and again.
      loss_layer: a layer, module or function such as `F.cross_entropy` that maps (output, targets)
        or (output, targets, weights) to a scalar; a function of what the model returned and the
        batch, as `lambda outputs, batch: ...`, known by the name batch; or None or 'model' for the
        loss that the model computes itself.
      optimizer: a recipe such as `optimizers.Adam(0.001)` or its class; or what PyTorch code has: a
        `torch.optim.Optimizer` made of the model's parameters, a class, or a `functools.partial`
        of one.
      lr_schedule: a function from a step, counted from 1, to a learning rate; or a maker of a
        scheduler, called with the optimizer: of `torch.optim.lr_scheduler`, of timm, or a partial
        of transformers' `get_..._schedule_with_warmup`. None leaves the optimizer's own rate.
        One that follows a metric, as `ReduceLROnPlateau` does, is stepped after each eval that
        is due in a run, and not after one that a run's end or `run_evals` adds.
      n_steps_per_checkpoint: how many steps between checkpoints, and evals; None for none.
      n_steps_per_permanent_checkpoint: how many steps between checkpoints that stay.
      loss_name: what the loss is called in logs; the layer's name by default.
      sample_batch: a batch to take shapes from; by default the first of `labeled_data`, which is
        not trained on, but comes last where an iterator ends.
      export_prefix: the folder for logs below `output_dir` where there are several tasks; and what
        the history tells their values apart by where they have one name: '<prefix>/training/loss'.
      loss: another name for `loss_layer`.
      lr_schedule_every: after what a scheduler is stepped: 'step', or 'epoch'; see `epoch`. timm's
        say themselves by t_in_epochs.
      monitor: name of the metric that a scheduler follows; by default the only one there is.
      epochs: how many epochs `Loop.run()` trains in all, where it is not told another length; so a
        run that is resumed trains those that are left. `labeled_data` must have a length.

    Raises:
      TypeError: if data, loss, optimizer or schedule are not what is needed.
      ValueError: if the data is empty.

    Source: Trax `supervised/training.py::TrainTask`.
    """

    @_mistakes.door("TrainTask", habits.OF_TRAIN_TASK)
    def __init__(
        self,
        labeled_data: Data,
        loss_layer: Loss | None = None,
        optimizer: AnyOptimizer | None = None,
        lr_schedule: Schedule | None = None,
        n_steps_per_checkpoint: int | None = 100,
        n_steps_per_permanent_checkpoint: int | None = None,
        loss_name: str | None = None,
        sample_batch: Any = None,
        export_prefix: str | None = None,
        *,
        loss: Loss | None = None,
        lr_schedule_every: Literal["step", "epoch"] = "step",
        monitor: str | None = None,
        epochs: int | None = None,
    ):
        if loss is not None and loss_layer is not None:
            raise TypeError("loss is another name for loss_layer. Give one of them.")
        self._labeled_data = labeled_data
        self.stream = _streams.BatchStream(labeled_data, "TrainTask's labeled_data")
        self._loss_layer = losses.as_loss(loss if loss_layer is None else loss_layer)
        if optimizer is None:
            raise TypeError(
                "TrainTask needs an optimizer: a recipe such as optimizers.Adam(0.001), or one of "
                "torch.optim. Write TrainTask(data, loss, optimizer)."
            )
        self._optimizer = optimizer
        self._own_rate = _own_rate(optimizer)
        self._lr_schedule, self._scheduler_maker = _schedule_or_maker(lr_schedule)
        self._lr_schedule_every, self._monitor = lr_schedule_every, monitor
        for period in (n_steps_per_checkpoint, n_steps_per_permanent_checkpoint):
            events.at_step_1_and_every_nth_step(period)
        self._n_steps_per_checkpoint = n_steps_per_checkpoint
        self._n_steps_per_permanent_checkpoint = n_steps_per_permanent_checkpoint
        self._loss_name = loss_name or self._loss_layer.name
        self._export_prefix = check_export_prefix(export_prefix)
        self._sample_batch = self.stream.sample(sample_batch)
        self._n_sampled = self.stream.n_taken
        self._epochs = epochs
        self._check_scheduling()

    def _check_scheduling(self) -> None:
        """Raises ValueError if a scheduler is asked for what it, or the data, cannot do."""
        every = self._lr_schedule_every
        if every not in ("step", "epoch"):
            raise ValueError(f"lr_schedule_every is 'step' or 'epoch'; got {every!r}.")
        if self._scheduler_maker is None and (every == "epoch" or self._monitor is not None):
            what = "lr_schedule_every='epoch'" if every == "epoch" else f"monitor={self._monitor!r}"
            raise ValueError(
                f"{what} is for a scheduler, which lr_schedule makes of the optimizer, and it "
                f"makes none. A function of the step counts epochs itself: lambda step: "
                f"rate((step - 1) // len(loader))."
            )
        if every == "epoch" and self.epoch is None:
            raise ValueError(
                "lr_schedule_every='epoch' needs epochs, and labeled_data is an iterator, which "
                "has none. Give what can be gone through again, such as a DataLoader."
            )

    @property
    def labeled_data(self) -> Any:
        """The data as it was given."""
        return self._labeled_data

    @property
    def sample_batch(self) -> Any:
        """A batch to take shapes from."""
        return self._sample_batch

    def next_batch(self) -> Any:
        """Returns the next batch of labeled data."""
        return self.stream.next()

    @property
    def export_prefix(self) -> str | None:
        """The folder for logs where there are several tasks."""
        return self._export_prefix

    @property
    def lr_schedule_every(self) -> str:
        """After what a scheduler is stepped, 'step' or 'epoch'."""
        return self._lr_schedule_every

    @property
    def monitor(self) -> str | None:
        """The metric that a scheduler follows, as it was named."""
        return self._monitor

    @property
    def n_steps(self) -> int:
        """How many steps took a batch of the data, since it began."""
        return self.stream.n_taken - self._n_sampled

    @property
    def steps_per_epoch(self) -> int | None:
        """How many steps an epoch has: the batches of `labeled_data`, if it says how many."""
        return self.stream.n_batches

    @property
    def epochs(self) -> int | None:
        """How many epochs a run trains in all, where it is not told another length."""
        return self._epochs

    @property
    def epoch(self) -> float | None:
        """How many epochs were trained.

        An epoch is as many steps as `labeled_data` has batches. (The first batch of all is the
        sample, and not trained on; so an epoch of steps ends one batch into the next pass.) Where
        the data does not say how many, it is the number of passes that are complete, which is
        known when the next one has begun; of an iterator there is none, and it is None.
        """
        if not self.stream.repeats:
            return None
        n = self.steps_per_epoch
        return float(self.stream.n_passes) if not n else self.n_steps / n

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
        result: Callable[[Any], Any] | None = self._scheduler_maker
        return result

    @property
    def schedule(self) -> Any:
        """What the rate is by the step: a function, or a recipe's own number; None if neither."""
        return self._own_rate if self._lr_schedule is None else self._lr_schedule

    def learning_rate(self, step: int) -> float | None:
        """Returns the schedule's rate at `step`, else a recipe's own; None if neither says."""
        if self._lr_schedule is not None:
            return float(self._lr_schedule(step))
        if self._scheduler_maker is not None:
            return None
        return self._own_rate

    def __repr__(self) -> str:
        parts = [
            words.of_data(self._labeled_data, self.stream.n_batches),
            f"loss={self._loss_name}",
            f"optimizer={words.of_maker(self._optimizer)}",
        ]
        how = self._lr_schedule or self._scheduler_maker
        if how is not None:
            parts.append(f"lr_schedule={words.of_maker(how)}")
        return f"TrainTask({', '.join(parts)})"


class EvalTask:
    """Labeled data and the metrics to measure on it.

    The value of a metric is that of all rows that an eval measures, also where batches are uneven:
    the mean over batches, and over ranks, each weighed by its rows; by the sum of its weights where
    the metric takes weights, so that it is sum(w * value) / sum(w); by the targets that
    `nn.CrossEntropyLoss` and `nn.NLLLoss` do not ignore, and by the labels that count in a model's
    own loss, or in a loss of one's own, as is found out by gradients on some rows of the sample.
    (As `Loop` weighs the parts of a training batch.) A metric that is a sum, as `tl.WeightedSum` or
    one with `reduction='sum'`, gives the mean of the batches' sums. One that is no mean over rows,
    an F-score or a correlation, say, gives the mean of the batches' values by rows, which is not
    its value for all rows together.

    That is what metrics with a state are for: those of torchmetrics as they are, any object with
    `reset`, `update` and `compute`, and functions of all outputs and targets: scikit-learn's as
    they are, others as `supervised.EpochMetric(function)`. They are reset before each eval, updated
    with each batch, and computed once, from all batches of all ranks; they keep their state until
    the next eval.
    `update` gets outputs and targets, and weights if it needs three arguments. One that computes
    a dict is called '<metric>/<key>' for each of its numbers, one that computes a vector
    '<metric>/<index>'.

    Several ranks measure each its own batches, however many, and none is one of the numbers. Rows
    that a `DataLoader`'s `DistributedSampler` repeats, to give all ranks equally many, are left
    out; what an iterator repeats counts again.

    Args:
      labeled_data: as for `TrainTask`.
      metrics: layers, modules or functions that map (output, targets) or (output, targets,
        weights), or outputs and batch, to a scalar, as a loss does in `TrainTask`; 'loss' for the
        model's own; metrics with a state; or a single one.
      metric_names: their names in logs; the layers' names by default.
      n_eval_batches: how many batches to measure at an eval, the next ones each time. By default,
        and where it is their number, all of them from the first one on, if `labeled_data` can be
        gone through anew and has a length: a `DataLoader`, a list, `share_of` such. Of an iterator,
        and of data without a length, 1.
      sample_batch: a batch to take shapes from; by default the first of `labeled_data`.
      export_prefix: as for `TrainTask`.

    Raises:
      ValueError: if there are not as many names as metrics, a name twice, or no batch to measure.

    Source: Trax `supervised/training.py::EvalTask`.
    """

    @_mistakes.door("EvalTask", habits.OF_EVAL_TASK)
    def __init__(
        self,
        labeled_data: Data,
        metrics: Metrics,
        metric_names: Sequence[str] | None = None,
        n_eval_batches: int | None = None,
        sample_batch: Any = None,
        export_prefix: str | None = None,
    ):
        self._labeled_data = labeled_data
        self.stream = _streams.BatchStream(labeled_data, "EvalTask's labeled_data")
        several: Any = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        self._metrics = [
            _metrics.as_stateful(metric) or losses.as_loss(metric, "metric") for metric in several
        ]
        _metrics.check_apart(self._metrics)
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
        if n_eval_batches is not None and n_eval_batches < 0:
            raise ValueError(f"n_eval_batches counts batches; got {n_eval_batches}.")
        n_batches = self.stream.n_batches
        self._measures_all = n_batches is not None and n_eval_batches in (None, n_batches)
        self.stream.keeps_position = not self._measures_all
        self._export_prefix = check_export_prefix(export_prefix)
        if sample_batch is None and n_eval_batches != 0:
            sample_batch = self._first()
        elif sample_batch is not None:
            sample_batch = self.stream.sample(sample_batch)
        if n_eval_batches is None:
            n_eval_batches = 1 if n_batches is None else n_batches
        self._n_eval_batches = n_eval_batches
        self._sample_batch = sample_batch

    @property
    def labeled_data(self) -> Any:
        """The data as it was given."""
        return self._labeled_data

    @property
    def sample_batch(self) -> Any:
        """A batch to take shapes from; None where no batch is measured."""
        return self._sample_batch

    def next_batch(self) -> Any:
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
        """How many batches an eval measures, as far as the data knows."""
        return self._n_eval_batches

    def measures(self, name: str) -> bool:
        """Tells whether a value of this name is measured: a metric's, or one of several of it."""
        return any(
            name == own
            or (isinstance(metric, _metrics.StatefulMetric) and _metrics.is_of(own, name))
            for own, metric in zip(self._metric_names, self._metrics, strict=True)
        )

    def batches(self) -> Generator[Any, None, None]:
        """Yields the batches of one eval."""
        if self._measures_all:
            yield from self.stream.epoch()
            return
        for _ in range(self._n_eval_batches):
            batch = self.stream.next_own()
            if batch is not None:
                yield batch

    def __repr__(self) -> str:
        measured = words.of_layers(self._metrics, self._metric_names)
        data = words.of_data(self._labeled_data, self.stream.n_batches)
        return f"EvalTask({data}, {measured}, n_eval_batches={self._n_eval_batches})"

    def _first(self) -> Any:
        """Returns a batch to take shapes from."""
        if not self._measures_all:
            return self.stream.next()
        with contextlib.closing(self.stream.epoch()) as epoch:
            for batch in epoch:
                return batch
        raise ValueError(
            f"EvalTask's labeled_data is empty: going through it gives no batch."
            f"{_streams.why_empty(self._labeled_data)} On a rank that has none, give a "
            f"sample_batch to take shapes from."
        )


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
    if inspect.isclass(maker) and hasattr(maker, "load_state_dict"):  # torch's have it, too
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
        value: Any = given(1)
    except Exception:  # not a function of a step: a maker, which Loop calls with the optimizer
        return None, given
    if isinstance(value, (int, float)) or hasattr(value, "__float__"):
        if not 0 <= float(value) < math.inf:
            raise ValueError(
                f"lr_schedule gives {value} at step 1; a rate is a finite number, 0 or more."
            )
        return given, None
    raise TypeError(f"lr_schedule gives {value!r} at step 1; a rate is a number.")
