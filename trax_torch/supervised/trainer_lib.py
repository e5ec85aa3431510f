"""Trax's older ways to train, at their addresses: `Trainer`, `train`, and seeds for everything.

They build a `training.Loop`, and let it run; new programs write one themselves.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from trax_torch import _seeds
from trax_torch import layers as tl
from trax_torch import optimizers as _optimizers
from trax_torch.fastmath import random
from trax_torch.shapes import ShapeDtype
from trax_torch.supervised import _logging, lr_schedules, training

__all__ = ["ShapeDtype", "Trainer", "init_random_number_generators", "train"]

_log = logging.getLogger("trax_torch")

Metrics = Mapping[str, tl.Layer]
Steps = Iterable[int]


def init_random_number_generators(seed: int | None = None) -> Any:
    """Seeds Python's, numpy's and torch's random numbers: of data, first weights, and runs.

    Args:
      seed: a whole number; None draws one.

    Returns:
      A key of `fastmath.random`, which layers take as `rng`, too.

    Example:
      >>> init_random_number_generators(34).tolist()
      [0, 34]
      >>> first = torch.rand(1)
      >>> _ = init_random_number_generators(34)
      >>> bool(first == torch.rand(1))
      True

    Source: Trax 1.3 `supervised/trainer_lib.py::init_random_number_generators`.
    """
    seed = _seeds.ambient_seed() % 2**31 if seed is None else int(seed)
    _seeds.seed_ambient(seed)
    return random.get_prng(seed)


class Trainer:
    """Trains a model epoch by epoch, and measures it after each, as older releases of Trax did.

    An epoch is as many steps as `train_epoch` is asked for. What is saved are `Loop`'s checkpoints;
    where `output_dir` holds one, training goes on from it.

    Args:
      model: makes the model: `model(mode='train')`.
      loss_fn: a layer, as for `TrainTask`.
      optimizer: a recipe's class, such as `optimizers.Adam`.
      lr_schedule: a function from a step to a rate.
      inputs: has `train_stream(n_devices)`, `eval_stream(n_devices)` and
        `train_eval_stream(n_devices)`, iterators of batches; or makes what has them.
      output_dir: where checkpoints and logs go; None writes none.
      random_seed: of all random numbers.
      n_devices: as for `Loop`.
      checkpoints_at: the steps at which a checkpoint is saved that stays, as `model_<step>`.
      should_save_checkpoints: False saves none.
      should_write_summaries: False writes no files for TensorBoard of what is measured.
      metrics: layers by name; by default loss, accuracy, sequence_accuracy, neg_log_perplexity and
        weights_per_batch_per_core, of batches with weights.
      checkpoint_highest: the metric of which the highest so far is kept, as `highest_<metric>`.
      checkpoint_lowest: likewise, `lowest_<metric>`.
      init_checkpoint: a file whose weights to begin with.

    Source: Trax `supervised/trainer_lib.py::Trainer`.
    """

    loop_class: ClassVar[Callable[..., training.Loop]] = training.Loop

    def __init__(
        self,
        model: Callable[..., Any],
        loss_fn: Any,
        optimizer: Any,
        lr_schedule: Callable[[int], float],
        inputs: Any,
        output_dir: str | None = None,
        random_seed: int | None = None,
        n_devices: int | None = None,
        checkpoints_at: Sequence[int] | None = None,
        should_save_checkpoints: bool = True,
        should_write_summaries: bool = True,
        metrics: Metrics | None = None,
        checkpoint_highest: str | None = None,
        checkpoint_lowest: str | None = None,
        init_checkpoint: str | None = None,
    ):
        self._make_model = model
        self._loss, self._optimizer, self._lr_schedule = loss_fn, optimizer, lr_schedule
        self._inputs = _made(inputs)
        self._seed, self._n_devices = random_seed, n_devices
        self._permanent = frozenset(checkpoints_at or ())
        self._saves, self._writes = should_save_checkpoints, should_write_summaries
        self._metrics = dict(
            sorted(_default_metrics().items() if metrics is None else metrics.items())
        )
        self._best = {"highest": checkpoint_highest, "lowest": checkpoint_lowest}
        for metric in filter(None, self._best.values()):
            if metric not in self._metrics:
                raise ValueError(
                    f"A checkpoint is kept by a metric that is measured; got {metric!r}, and there "
                    f"are {', '.join(self._metrics)}. Name one of them."
                )
        self.reset(output_dir, init_checkpoint)

    def reset(self, output_dir: str | None, init_checkpoint: str | None = None) -> None:
        """Begins anew: with the checkpoint in a folder, or with new weights.

        Args:
          output_dir: the folder, or None.
          init_checkpoint: a file whose weights to begin with, where the folder has no checkpoint.
        """
        model = _begun(self._make_model, init_checkpoint)
        n_devices = self._n_devices or 1
        task = training.TrainTask(
            self._inputs.train_stream(n_devices),
            self._loss,
            self._optimizer,
            self._lr_schedule,
            n_steps_per_checkpoint=None,
        )
        self._loop = self.loop_class(
            model,
            task,
            eval_model=self._make_model(mode="eval"),
            output_dir=output_dir if self._saves else None,
            permanent_checkpoint_at=lambda step: step in self._permanent,
            n_devices=self._n_devices,
            random_seed=self._seed,
            save_at_end=False,
            log_every=10,
        )
        self._streams = {
            "train": self._inputs.train_eval_stream(n_devices),
            "eval": self._inputs.eval_stream(n_devices),
        }
        self._writers: dict[str, Any] = dict.fromkeys(self._streams)
        if output_dir and self._writes:
            for mode in self._streams:
                self._writers[mode] = _logging.EventFile(os.path.join(output_dir, mode), _warn)
                self._writers[mode].begin(self.step + 1)

    def train_epoch(self, n_steps: int, n_eval_steps: int) -> None:
        """Takes some steps, measures, and saves.

        Args:
          n_steps: how many steps.
          n_eval_steps: on how many batches to measure.
        """
        self._loop.run(n_steps)
        self.evaluate(n_eval_steps)
        self.save_state(keep=False)
        for which, choose in (("highest", max), ("lowest", min)):
            metric = self._best[which]
            values = metric and self.history.get("eval", f"metrics/{metric}")
            if values and values[-1][1] == choose(value for _, value in values):
                self.save_state(keep=False, prefix=f"{which}_{metric}")

    def evaluate(self, n_eval_steps: int) -> None:
        """Measures on the next batches of both streams, and logs the means over them."""
        for mode, stream in self._streams.items():
            values = self._means(itertools.islice(stream, n_eval_steps))
            self.log_metrics(values, self._writers[mode], mode)

    def _means(self, batches: Iterable[Any]) -> dict[str, float]:
        model = self._loop.eval_model
        measured = tl.Serial(model, tl.Branch(*self._metrics.values()))
        was_training = model.training
        sums, count = torch.zeros(len(self._metrics)), 0
        try:
            measured.eval()
            for batch in batches:
                values = measured(batch)
                sums += torch.stack([torch.as_tensor(v).float() for v in _as_tuple(values)])
                count += 1
        finally:
            model.train(was_training)
        return dict(zip(self._metrics, (sums / max(count, 1)).tolist(), strict=True))

    def save_state(self, keep: bool, prefix: str = "model") -> None:
        """Saves a checkpoint, if there is a folder; `keep` has one stay as `<prefix>_<step>`."""
        if self._loop.output_dir is None:
            return
        self._loop.save_checkpoint(prefix)
        if keep:
            self._loop.save_checkpoint(f"{prefix}_{self.step}")

    def log_step(self, step_message: str) -> None:
        """Prints a line with the step before it."""
        print(f"Step {self.step: 6d}: {step_message}")

    def log_metrics(self, metrics: Mapping[str, float], summ_writer: Any, log_prefix: str) -> None:
        """Prints values, writes them for TensorBoard, and records them as 'metrics/<name>'."""
        self._loop.log_summary(metrics, summ_writer, "metrics/", log_prefix)

    def print_n_weights(self) -> None:
        """Prints how many numbers are trained."""
        count = sum(p.numel() for p in self._loop.model.parameters())
        self.log_step(f"Total number of trainable weights: {count}")

    def close(self) -> None:
        """Does nothing: files are closed whenever they were written to."""

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return self._loop.step

    @property
    def n_devices(self) -> int:
        """How many devices train together."""
        return self._loop.n_devices

    @property
    def history(self) -> Any:
        """What was measured so far."""
        return self._loop.history

    @property
    def learning_rate(self) -> float:
        """The rate at this step."""
        return float(self._lr_schedule(self.step))

    @property
    def loop(self) -> training.Loop:
        """What trains."""
        return self._loop

    @property
    def model_weights(self) -> Any:
        """The model's weights, in Trax's order."""
        return self._loop.model.weights

    @model_weights.setter
    def model_weights(self, weights: Any) -> None:
        self._loop.update_weights_and_state(weights=weights)

    @property
    def model_state(self) -> Any:
        """The model's state, in Trax's order."""
        return self._loop.model.state

    @model_state.setter
    def model_state(self, state: Any) -> None:
        self._loop.update_weights_and_state(state=state)


def train(
    output_dir: str | None,
    model: Callable[..., Any],
    loss_fn: Any = None,
    inputs: Any = None,
    optimizer: Any = _optimizers.Adafactor,
    lr_schedule_fn: Callable[[], Callable[[int], float]] = lr_schedules.multifactor,
    trainer_class: Callable[..., Any] = Trainer,
    steps: int = 1000,
    checkpoints_at: Steps | None = None,
    permanent_checkpoints_at: Steps | None = None,
    eval_steps: int | None = 10,
    eval_frequency: int | None = 100,
    permanent_checkpoint_frequency: int | None = None,
    random_seed: int | None = None,
    save_graphs: bool = True,
    metrics: Metrics | None = None,
    checkpoint_highest: str | None = None,
    checkpoint_lowest: str | None = None,
    use_loop: bool = True,
    **kwargs: Any,
) -> Any:
    """Builds a `Loop` by Trax's older arguments, and trains until so many steps were taken.

    Args:
      output_dir: where checkpoints and logs go.
      model: makes the model: `model(mode='train')`.
      loss_fn: a layer; by default `tl.WeightedCategoryCrossEntropy()`.
      inputs: as for `Trainer`.
      optimizer: a recipe's class.
      lr_schedule_fn: makes a schedule.
      trainer_class: what is built if `use_loop` is False; its `loop_class` is what trains.
      steps: how many steps in all.
      checkpoints_at: at which steps a checkpoint is saved.
      permanent_checkpoints_at: at which steps one that stays.
      eval_steps: on how many batches to measure; 0 or None measures nothing.
      eval_frequency: how many steps between evals, and checkpoints.
      permanent_checkpoint_frequency: how many steps between those that stay.
      random_seed: of all random numbers.
      save_graphs: Trax's, and has no effect: a model is an `nn.Module`, which torch.export exports.
      metrics: as for `Trainer`.
      checkpoint_highest: as for `Trainer`.
      checkpoint_lowest: as for `Trainer`.
      use_loop: False trains with a `Trainer`.
      **kwargs: `init_checkpoint`, `additional_train_tasks`, `additional_eval_tasks`, and what
        `Loop` takes besides: `loss_chunk_size`, `use_memory_efficient_trainer`, `adasum`,
        `callbacks`.

    Returns:
      The `Loop`; or the `Trainer`.

    Raises:
      ValueError: if both ways to ask for permanent checkpoints are used, or inputs are missing.

    Source: Trax `supervised/trainer_lib.py::train`.
    """
    if inputs is None:
        raise ValueError("train needs inputs: what has train_stream(n_devices) and eval_stream.")
    permanent_at = _permanent_at(permanent_checkpoints_at, permanent_checkpoint_frequency)
    loss_fn = tl.WeightedCategoryCrossEntropy() if loss_fn is None else loss_fn
    shared: dict[str, Any] = {"output_dir": output_dir, "random_seed": random_seed, **kwargs}
    if not use_loop:
        made = (model, loss_fn, optimizer, lr_schedule_fn(), inputs)
        best = {"checkpoint_highest": checkpoint_highest, "checkpoint_lowest": checkpoint_lowest}
        trainer = trainer_class(
            *made, checkpoints_at=checkpoints_at, metrics=metrics, **best, **shared
        )
        return _by_epochs(trainer, steps, eval_frequency or steps, eval_steps or 0)
    inputs = _made(inputs)
    more_tasks, more_evals = (
        list(shared.pop(f"additional_{kind}_tasks", None) or ()) for kind in ("train", "eval")
    )
    task = training.TrainTask(
        inputs.train_stream(1),
        loss_fn,
        optimizer,
        lr_schedule_fn(),
        n_steps_per_checkpoint=eval_frequency or None,
        n_steps_per_permanent_checkpoint=permanent_checkpoint_frequency,
    )
    loop_class: Callable[..., Any] = getattr(trainer_class, "loop_class", training.Loop)
    loop = loop_class(
        _begun(model, shared.pop("init_checkpoint", None)),
        [task, *more_tasks],
        eval_model=model(mode="eval"),
        eval_tasks=_eval_tasks(inputs, metrics, eval_steps) + more_evals,
        checkpoint_at=_one_of(checkpoints_at),
        checkpoint_low_metric=checkpoint_lowest,
        checkpoint_high_metric=checkpoint_highest,
        permanent_checkpoint_at=permanent_at,
        **shared,
    )
    loop.run(until=steps)
    return loop


def _by_epochs(trainer: Any, steps: int, n_steps: int, n_eval_steps: int) -> Any:
    """Trains until so many steps were taken, an epoch of `n_steps` after the other."""
    while trainer.step < steps:
        trainer.train_epoch(min(n_steps, steps - trainer.step), n_eval_steps)
    return trainer


def _permanent_at(steps: Steps | None, period: int | None) -> Callable[[int], bool] | None:
    """Returns what tells of a step whether a checkpoint of it stays; None for the task's way."""
    if steps is not None and period is not None:
        raise ValueError(
            "Permanent checkpoints are asked for by permanent_checkpoint_frequency and by "
            "permanent_checkpoints_at. Give one of them."
        )
    return _one_of(steps)


def _made(inputs: Any) -> Any:
    """Returns inputs, which may come as what makes them."""
    return inputs() if callable(inputs) else inputs


def _begun(make_model: Callable[..., Any], init_checkpoint: str | None) -> Any:
    """Returns the model to train, with the weights in a file, if one is given."""
    model = make_model(mode="train")
    if init_checkpoint:
        model.init_from_file(init_checkpoint, weights_only=True)
    return model


def _eval_tasks(
    inputs: Any, metrics: Metrics | None, n_batches: int | None
) -> list[training.EvalTask]:
    if not n_batches:
        return []
    measured = _default_metrics() if metrics is None else metrics
    stream = inputs.eval_stream(1)
    return [training.EvalTask(stream, list(measured.values()), list(measured), n_batches)]


def _default_metrics() -> dict[str, tl.Layer]:
    return {
        "loss": tl.WeightedCategoryCrossEntropy(),
        "accuracy": tl.WeightedCategoryAccuracy(),
        "sequence_accuracy": tl.MaskedSequenceAccuracy(),
        "neg_log_perplexity": tl.Serial(tl.WeightedCategoryCrossEntropy(), tl.Negate()),
        "weights_per_batch_per_core": tl.Serial(tl.Drop(), tl.Drop(), tl.Sum()),
    }


def _one_of(steps: Steps | None) -> Callable[[int], bool] | None:
    """Returns what tells of a step whether it is one of these; None for the default."""
    if steps is None:
        return None
    return frozenset(steps).__contains__


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def _warn(error: OSError) -> None:
    _log.warning("TensorBoard's files cannot be written: %s.", error)
