"""Puts a Loop's parts together: checks what was given, and builds what will run."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from trax_torch import _distributed, optimizers, shapes
from trax_torch import layers as tl
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop import data_parallel
from trax_torch.supervised._loop import losses as _losses
from trax_torch.supervised._loop.settings import Settings


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


def prepare_model(
    model: Any, batch: tuple[Any, ...], seed: int, device: torch.device, settings: Settings
) -> tl.Layer:
    """Returns a model as a layer with weights, on the device; what has weights keeps them.

    Args:
      model: a layer or module.
      batch: a sample, whose first items are the model's inputs.
      seed: of the weights that are made.
      device: where to.
      settings: say whether weights go there.
    """
    layer = tl.as_layer(model)
    if not layer.is_initialized:
        if len(batch) < layer.n_in:
            raise ValueError(
                f"The model takes {layer.n_in} inputs, but a batch has {len(batch)} items."
            )
        inputs = shapes.signature(batch[0] if layer.n_in == 1 else batch[: layer.n_in])
        layer.init_missing(inputs, rng=seed)
    if settings.memory_efficient != 2:
        return layer.to(device)
    for module in layer.modules():  # weights stay: there may be no room for them
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return layer


def to_residence(
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _distributed.World, settings: Settings
) -> optimizers.Residence:
    """Puts the weights where they are to be while they are not used."""
    losses = [task.loss_layer.to(world.device) for task in tasks]
    if settings.memory_efficient != 2:
        return optimizers.Residence()
    return optimizers.HostMemory(tl.Serial(model, *losses).parameters(), world.device)


def running(model: tl.Layer, settings: Settings, residence: optimizers.Residence) -> tl.Layer:
    """Returns what runs for a model, with the same weights: itself, or a compiled twin, say."""
    if settings.memory_efficient == 2:
        return optimizers.InBlocks(model, residence)
    return tl.Accelerate(model) if settings.compile else model


def check_task(model: tl.Layer, task: _tasks.TrainTask, settings: Settings) -> None:
    """Raises ValueError if batch, model, loss and optimizer of a task do not fit together."""
    loss = task.loss_layer
    _tasks.check_fits(model, loss, task.sample_batch, is_loss=True)
    both = tl.Serial(model, loss)
    if not any(isinstance(m, tl.Wrapped) for m in both.modules()):  # foreign code may need numbers
        outcome = both.output_signature(shapes.signature(task.sample_batch))
        if getattr(outcome, "shape", None) != ():
            raise ValueError(
                f"A loss is one number; {task.loss_name} gives {outcome}. Take its mean."
            )
    if settings.memory_efficient:
        _check_optimizer_for_blocks(task.optimizer)
    if settings.strategy == "fsdp" and isinstance(task.optimizer, torch.optim.Optimizer):
        raise ValueError(
            "strategy='fsdp' puts parts of weights in their places, which this optimizer does not "
            "know. Give a recipe such as optimizers.Adam(0.001), or a class of torch.optim."
        )


def _check_optimizer_for_blocks(optimizer: Any) -> None:
    """Raises ValueError if an optimizer looks at all gradients at once, or may do so."""
    if optimizers.clip_norm_of(optimizer) is not None:
        raise ValueError(
            "clip_grad_norm does not go with use_memory_efficient_trainer: the norm of all "
            "gradients is known when most weights are updated already. Leave it out; Adafactor "
            "clips each weight's update by itself."
        )
    maker = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    kind = maker if isinstance(maker, type) else type(maker)
    if kind.__module__.split(".")[:2] != ["torch", "optim"] and not (
        issubclass(kind, optimizers.Optimizer)
    ):
        raise ValueError(
            f"use_memory_efficient_trainer has the optimizer update a block's weights at a time; "
            f"{kind.__name__} may look at all of them. Give a recipe such as "
            f"optimizers.Adafactor, or one of torch.optim."
        )


def refuse_eval_model(settings: Settings) -> None:
    """Raises ValueError if a second model cannot use the first one's weights."""
    if settings.strategy == "fsdp":
        raise ValueError(
            "strategy='fsdp' cuts the weights of one model into parts, which an eval_model of its "
            "own cannot use. Leave it out: the model is measured in eval mode."
        )


def make_trainer(
    model: tl.Layer,
    body: tl.Layer,
    head: tl.Layer | None,
    task: _tasks.TrainTask,
    world: _distributed.World,
    settings: Settings,
    apart: Callable[[], Any],
    residence: optimizers.Residence,
) -> optimizers.Trainer:
    """Returns the trainer of a task; batch, model and loss are known to fit together.

    Body and head are what runs for the model, as `cut_for_chunks` has it.
    """
    loss, autocast = task.loss_layer, settings.autocast(world.device)
    both = tl.Serial(model, loss)
    last: Any = loss
    if settings.loss_chunk_size:
        last = optimizers.ChunkedLoss(head, loss, settings.loss_chunk_size)
        if not last.is_known:
            _losses.refuse_if_chunks_differ(both, head, task)
    module: torch.nn.Module = both
    if last is not loss or body is not model or settings.precision is not None:
        module = _losses.LossOf(both, body, last, autocast)
    shares = optimizers.Shares(model, loss)
    if settings.n_accumulation_steps > 1 or world.size > 1:
        _losses.warn_of_uneven(both, shares, task)
    ranks = blocks = None
    if world.size > 1:
        module, ranks = data_parallel.over_ranks(module, both, task, world, settings, apart)
    if settings.memory_efficient:
        layers = [model] if head is None else body.sublayers
        blocks = optimizers.Blocks(layers, last, world.device, autocast, residence)
    return optimizers.Trainer(
        both,
        task.optimizer,
        forward=module,
        shares=shares,
        n_accumulation_steps=settings.n_accumulation_steps,
        n_skips=settings.n_skips,
        ranks=ranks,
        blocks=blocks,
    )


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
            "scheduler; or, with a torch optimizer, change the rate from a callback."
        )
    return scheduler
