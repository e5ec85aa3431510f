"""Puts a Loop's parts together: checks what was given, and builds what will run."""

from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch import optimizers, shapes
from trax_torch.supervised import _tasks


def as_tasks(items: Any, kind: type, name: str) -> list[Any]:
    """Returns one task, several or None as a list.

    Raises:
      TypeError: if an item is not of the kind.
    """
    items = [] if items is None else list(items) if isinstance(items, (list, tuple)) else [items]
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{name} are {kind.__name__}s; got {type(item).__name__}.")
    return items


def refuse(**settings: Any) -> None:
    """Raises ValueError if a setting that is not there yet is asked for."""
    for name, value in settings.items():
        if value:
            raise ValueError(f"{name}={value!r} is not there yet; build Loop without it.")


def prepare_model(model: Any, batch: tuple[Any, ...], seed: int, device: torch.device) -> tl.Layer:
    """Returns a model as a layer with weights, on the device; what has weights keeps them.

    Args:
      model: a layer or module.
      batch: a sample, whose first items are the model's inputs.
      seed: of the weights that are made.
      device: where to.
    """
    layer = tl.as_layer(model)
    if not layer.is_initialized:
        if len(batch) < layer.n_in:
            raise ValueError(
                f"The model takes {layer.n_in} inputs, but a batch has {len(batch)} items."
            )
        inputs = shapes.signature(batch[0] if layer.n_in == 1 else batch[: layer.n_in])
        layer.init_missing(inputs, rng=seed)
    return layer.to(device)


def make_trainer(
    model: tl.Layer, task: _tasks.TrainTask, device: torch.device
) -> optimizers.Trainer:
    """Returns the trainer of a task; batch, model and loss are known to fit together then."""
    _tasks.check_fits(model, task.loss_layer, task.sample_batch, is_loss=True)
    both = tl.Serial(model, task.loss_layer)
    if not any(isinstance(m, tl.Wrapped) for m in both.modules()):  # foreign code may need numbers
        outcome = both.output_signature(shapes.signature(task.sample_batch))
        if getattr(outcome, "shape", None) != ():
            raise ValueError(
                f"A loss is one number; {task.loss_name} gives {outcome}. Take its mean."
            )
    return optimizers.Trainer(both.to(device), task.optimizer)


def make_scheduler(task: _tasks.TrainTask, trainer: optimizers.Trainer) -> Any:
    """Returns the torch scheduler of a task whose rates change that way, or None."""
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    if task.scheduler_maker is None:
        if task.learning_rate(1) is not None and len(rates) > 1:
            raise ValueError(
                f"The optimizer has parameter groups of rates {sorted(rates)}, and a schedule of "
                f"steps would set them all to one. Scale them instead: lr_schedule="
                f"functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=...)."
            )
        return None
    try:
        scheduler = task.scheduler_maker(trainer.optimizer)
    except Exception as error:
        raise TypeError(
            f"lr_schedule={task.scheduler_maker!r} is no function of a step, and made no torch "
            f"scheduler of the optimizer either: {error}"
        ) from error
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise TypeError(
            f"lr_schedule, called with the optimizer, made {scheduler!r}; a torch scheduler was "
            f"needed. A function of a step gives a number at step 1."
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError(
            "ReduceLROnPlateau follows a metric, and rates here follow the step. Take another "
            "scheduler, or change the rate from a callback."
        )
    return scheduler
