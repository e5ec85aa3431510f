"""Builds what runs in a Loop, from what was given, and checks that it fits together."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _distributed, _seeds, optimizers, shapes
from trax_torch import layers as tl
from trax_torch.supervised import _checkpoint, _logging, _tasks
from trax_torch.supervised._loop import data_parallel
from trax_torch.supervised._loop import losses as _losses
from trax_torch.supervised._loop.evaluator import Evaluator
from trax_torch.supervised._loop.settings import LoopConfig


@dataclass(frozen=True)
class Parts:
    """What runs in a Loop.

    Attributes:
      model: the model in training, and eval_model: the one that is measured.
      trainers, schedulers, accumulators: one for each training task.
      evaluators: one for each eval task.
    """

    model: tl.Layer
    eval_model: tl.Layer
    trainers: list[optimizers.Trainer]
    schedulers: list[Any]
    accumulators: list[_logging.Accumulators]
    evaluators: list[Evaluator]

    def members(
        self,
        tasks: list[_tasks.TrainTask],
        eval_tasks: list[_tasks.EvalTask],
        callbacks: list[Any],
    ) -> _checkpoint.Members:
        """Returns what of the run remembers something."""
        return _checkpoint.Members(
            self.model,
            tasks,
            eval_tasks,
            self.trainers,
            self.schedulers,
            self.accumulators,
            callbacks,
        )


def build(
    model: Any,
    tasks: list[_tasks.TrainTask],
    eval_model: Any,
    eval_tasks: list[_tasks.EvalTask],
    config: LoopConfig,
    world: _distributed.World,
    seed: int,
) -> Parts:
    """Returns what runs, on the device and spread over the ranks.

    Args:
      model, tasks, eval_model, eval_tasks: what the user gave; a model may be any module.
      config: the settings.
      world: the ranks that train together.
      seed: the run's.

    Raises:
      ValueError: if what was given does not fit together, or differs between ranks.
    """
    sample = tasks[0].sample_batch
    seed = _seeds.derive(seed, "init")
    layer = prepare_model(model, sample, seed, world.device, config)
    residence = to_residence(layer, tasks, world, config)
    world.compare(
        {
            "random_seed": config.random_seed,
            "the number of tasks": [len(tasks), len(eval_tasks)],
            "the settings": ", ".join(f"{k}={v!r}" for k, v in config.of_steps().items()),
            "the model's weights": _checkpoint.forms_of(layer),
            "what is measured": [task.metric_names for task in eval_tasks],
            "whether output_dir is given": config.output_dir is not None,
        }
    )
    data_parallel.check_world(world, config)  # no rank leaves before all have come
    for task in tasks:
        check_task(layer, task, config)
    apart = data_parallel.shard(layer, tasks, world, config)
    runs = running(layer, config, residence)
    body, head = _losses.cut_for_chunks(layer, runs, config)
    with world.watched():
        trainers = [
            make_trainer(layer, body, head, task, world, config, apart, residence) for task in tasks
        ]
    world.compare({"the optimizers": _checkpoint.settings_of(trainers)})
    schedulers = [make_scheduler(*pair) for pair in zip(tasks, trainers, strict=True)]
    measured = layer
    if eval_model is not None:
        refuse_eval_model(config)
        measured = prepare_model(eval_model, sample, seed, world.device, config)
        _checkpoint.share_weights(layer, measured)
        runs = running(measured, config, residence)
    autocast = config.autocast(world.device)
    evaluators = [Evaluator(runs, task, world, autocast) for task in eval_tasks]
    accumulators = [_logging.Accumulators() for _ in tasks]
    return Parts(layer, measured, trainers, schedulers, accumulators, evaluators)


def prepare_model(
    model: Any, batch: tuple[Any, ...], seed: int, device: torch.device, config: LoopConfig
) -> tl.Layer:
    """Returns a model as a layer with weights, on the device; what has weights keeps them.

    Args:
      model: a layer or module.
      batch: a sample, whose first items are the model's inputs.
      seed: of the weights that are made.
      device: where to.
      config: says whether weights go there.
    """
    layer = tl.as_layer(model)
    if not layer.is_initialized:
        if len(batch) < layer.n_in:
            raise ValueError(
                f"The model takes {layer.n_in} inputs, but a batch has {len(batch)} items."
            )
        inputs = shapes.signature(batch[0] if layer.n_in == 1 else batch[: layer.n_in])
        layer.init_missing(inputs, rng=seed)
    if config.use_memory_efficient_trainer != 2:
        return layer.to(device)
    for module in layer.modules():  # weights stay: there may be no room for them
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return layer


def to_residence(
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _distributed.World, config: LoopConfig
) -> optimizers.Residence:
    """Puts the weights where they are to be while they are not used."""
    losses = [task.loss_layer.to(world.device) for task in tasks]
    if config.use_memory_efficient_trainer != 2:
        return optimizers.Residence()
    return optimizers.HostMemory(tl.Serial(model, *losses).parameters(), world.device)


def running(model: tl.Layer, config: LoopConfig, residence: optimizers.Residence) -> tl.Layer:
    """Returns what runs for a model, with the same weights: itself, or a compiled twin, say."""
    if config.use_memory_efficient_trainer == 2:
        return optimizers.InBlocks(model, residence)
    return tl.Accelerate(model) if config.compile else model


def check_task(model: tl.Layer, task: _tasks.TrainTask, config: LoopConfig) -> None:
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
    if config.use_memory_efficient_trainer:
        _check_optimizer_for_blocks(task.optimizer)
    if config.strategy == "fsdp" and isinstance(task.optimizer, torch.optim.Optimizer):
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


def refuse_eval_model(config: LoopConfig) -> None:
    """Raises ValueError if a second model cannot use the first one's weights."""
    if config.strategy == "fsdp":
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
    config: LoopConfig,
    apart: Callable[[], Any],
    residence: optimizers.Residence,
) -> optimizers.Trainer:
    """Returns the trainer of a task; batch, model and loss are known to fit together.

    Body and head are what runs for the model, as `cut_for_chunks` has it.
    """
    loss, autocast = task.loss_layer, config.autocast(world.device)
    both = tl.Serial(model, loss)
    last: Any = loss
    if config.loss_chunk_size:
        last = optimizers.ChunkedLoss(head, loss, config.loss_chunk_size)
        if not last.is_known:
            _losses.refuse_if_chunks_differ(both, head, task)
    module: torch.nn.Module = both
    if last is not loss or body is not model or config.precision is not None:
        module = _losses.LossOf(both, body, last, autocast)
    shares = optimizers.Shares(model, loss)
    if config.n_accumulation_steps > 1 or world.size > 1:
        _losses.warn_of_uneven(both, shares, task)
    ranks = blocks = None
    if world.size > 1:
        module, ranks = data_parallel.over_ranks(module, both, task, world, config, apart)
    if config.use_memory_efficient_trainer:
        layers = [model] if head is None else body.sublayers
        blocks = optimizers.Blocks(layers, last, world.device, autocast, residence)
    return optimizers.Trainer(
        both,
        task.optimizer,
        forward=module,
        shares=shares,
        n_accumulation_steps=config.n_accumulation_steps,
        n_skips=config.n_skips,
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
