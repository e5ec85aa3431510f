"""Builds what runs in a Loop, from what was given, and checks that it fits together."""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _seeds, optimizers, shapes
from trax_torch import layers as tl
from trax_torch.layers.metrics import look_at_targets
from trax_torch.supervised import _checkpoint, _logging, _tasks
from trax_torch.supervised._loop import alike, counting, data_parallel, meta
from trax_torch.supervised._loop import losses as _losses
from trax_torch.supervised._loop import meet as _meet
from trax_torch.supervised._loop.evaluator import Evaluator
from trax_torch.supervised._loop.meeting import OWN, Meeting
from trax_torch.supervised._loop.outputs import Computed, Met
from trax_torch.supervised._loop.scheduling import Pacer, make_pacer
from trax_torch.supervised._loop.settings import LoopConfig
from trax_torch.supervised._loop.twin import twin_of
from trax_torch.supervised._loop.unseen import warn_of_unseen


@dataclass(frozen=True)
class Parts:
    """What runs in a Loop.

    Attributes:
      model: the model in training, and eval_model: the one that is measured.
      trainers, pacers, accumulators, meetings: one for each training task.
      evaluators: one for each eval task.
      said: lines about what batches count for.
      unfilled: tensors that no one has given first numbers.
    """

    model: tl.Layer
    eval_model: tl.Layer
    trainers: list[optimizers.Trainer]
    pacers: list[Pacer]
    accumulators: list[_logging.Accumulators]
    evaluators: list[Evaluator]
    meetings: list[Meeting]
    said: list[str]
    unfilled: list[_checkpoint.Unfilled]

    @functools.cached_property
    def _twin(self) -> tl.Layer:
        return twin_of(self.model)

    def evaluated(self) -> nn.Module:
        """Returns the module to predict with, as the user gave it, never in training mode."""
        if self.eval_model is not self.model:
            return _checkpoint.bare(self.renew_measured())
        if self._twin is not self.model:
            _checkpoint.share_buffers(self.model, self._twin)  # those that were renewed since
        return _checkpoint.bare(self._twin)

    def renew_measured(self) -> tl.Layer:
        """Returns the model that is measured, with weights and buffers of that in training."""
        if self.eval_model is not self.model:
            _checkpoint.share_buffers(self.model, self.eval_model)
            data_parallel.copy_parts_(self.model, self.eval_model)
        return self.eval_model

    def says(self) -> list[str]:
        """Returns lines that say what was decided, where it is not Trax's way."""
        lines = [(_named("Batches", i, self.meetings), m.says) for i, m in enumerate(self.meetings)]
        evals = self.evaluators
        lines += [(_named("Evals", i, evals), each.says) for i, each in enumerate(evals)]
        return [*(f"{name}: {says}." for name, says in lines if says), *self.said]

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
            [pacer.scheduler for pacer in self.pacers],
            self.accumulators,
            callbacks,
            self.unfilled,
        )


def _named(what: str, index: int, items: Sequence[Any]) -> str:
    return f"{what} of task {index}" if len(items) > 1 else what


def build(
    model: Any,
    eval_model: Any,
    tasks: list[_tasks.TrainTask],
    eval_tasks: list[_tasks.EvalTask],
    config: LoopConfig,
    world: _distributed.World,
    seed: int,
    compute_loss: Callable[[Any, Any], Any] | None = None,
) -> Parts:
    """Returns what runs, on the device and spread over the ranks.

    Args:
      model, eval_model, tasks, eval_tasks: what the user gave; a model may be any module.
      config: the settings.
      world: the ranks that train together.
      seed: the run's.
      compute_loss: computes the loss of tasks from model and batch, if it is given.

    Raises:
      ValueError: if what was given does not fit together, or differs between ranks.
    """
    seeds = _seeds.derive(seed, "init"), seed
    layer = tl.as_layer(model)
    data_parallel.check_whole(layer)
    warn_of_unseen(layer)
    with world.together():
        meetings = [_met(layer, task, compute_loss) for task in tasks]
    sample = tasks[0].sample_batch
    filling = meta.begin(layer, meetings[0], sample, seeds, world, config)
    residence = to_residence(layer, tasks, world, config)
    alike.check_given(layer, meetings, tasks, eval_tasks, config, world)
    data_parallel.check_world(world, config)  # no rank leaves before all have come
    models = [met.model(layer) for met in meetings]
    with filling.lent(layer):
        for each, met, task in zip(models, meetings, tasks, strict=True):
            check_task(each, met, task, config)
        shares, said = counting.shares_of_all(models, meetings, tasks, config, world)
        counts = counting.counts_in_evals(layer, eval_tasks, sample, world)
    samples = [_sample(*each) for each in zip(models, meetings, tasks, strict=True)]
    measured, own = layer, None
    if eval_model is not None:
        measured = tl.as_layer(eval_model)
        met = _met(measured, tasks[0], compute_loss)
        meta.begin(measured, met, sample, seeds, world, config)
        _checkpoint.share_weights(layer, measured)
        own = (measured, *_sample(met.model(measured), met, tasks[0]))
    sharded = data_parallel.shard(layer, tasks, samples, own, world, config, filling)
    blocks = data_parallel.recomputed_blocks(layer, sharded, config)
    runs = Running(config, residence, blocks)
    with world.watched():
        trainers = [
            make_trainer(each, runs, met, task, share, world, config, sharded, residence)
            for each, met, task, share in zip(models, meetings, tasks, shares, strict=True)
        ]
    world.compare({"the optimizers": _checkpoint.settings_of(trainers)})
    with world.together():
        pacers = [make_pacer(*pair, eval_tasks) for pair in zip(tasks, trainers, strict=True)]
    alike.check_schedulers([pacer.scheduler for pacer in pacers], world)
    autocast = config.autocast(world.device)
    with world.together():
        evaluators = [
            Evaluator(measured, task, world, autocast, runs.of, sample, count)
            for task, count in zip(eval_tasks, counts, strict=True)
        ]
    accumulators = [_logging.Accumulators() for _ in tasks]
    if config.stays_in_float32(world.device):
        said.append("This CPU multiplies no bfloat16: precision='bf16' computes as without it.")
    runs_on = trainers, pacers, accumulators, evaluators, meetings
    return Parts(layer, measured, *runs_on, said, filling.unfilled)


def _met(
    layer: tl.Layer, task: _tasks.TrainTask, compute_loss: Callable[[Any, Any], Any] | None
) -> Meeting:
    if compute_loss is not None:
        return _meet.hooked(compute_loss, layer, task.loss_layer, task.sample_batch)
    return _meet.meet(layer, task.loss_layer, task.sample_batch)


def _sample(model: tl.Layer, met: Meeting, task: _tasks.TrainTask) -> tuple[tl.Layer, Any]:
    """Returns model and loss in series, and a sample that is arranged for them."""
    loss = met.loss if met.compute is None else _tasks.OwnLoss()
    return tl.Serial(model, loss), met.arranged(task.sample_batch)


def to_residence(
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _distributed.World, config: LoopConfig
) -> optimizers.Residence:
    """Puts the weights where they are to be while they are not used."""
    losses = [task.loss_layer.to(world.device) for task in tasks]
    if config.use_memory_efficient_trainer != 2:
        return optimizers.Residence()
    return optimizers.HostMemory(tl.Serial(model, *losses).parameters(), world.device)


class Running:
    """Knows what runs for a model, with the same weights: itself, or a compiled twin, say.

    Args:
      config: the settings.
      residence: where weights are while they are not used.
      blocks: whose activations are computed again.
    """

    def __init__(
        self,
        config: LoopConfig,
        residence: optimizers.Residence,
        blocks: Sequence[torch.nn.Module] = (),
    ):
        self._blocks = list(blocks)
        self._config = config
        self._residence = residence
        self._twins: dict[Any, tl.Layer] = {}

    def context(self, autocast: Callable[[], Any]) -> Callable[[], Any]:
        """Returns what makes the context of a loss in training, given that to compute in."""
        if not self._blocks:
            return autocast

        @contextlib.contextmanager
        def both() -> Generator[None]:
            offload = self._config.activation_checkpointing == "offload"
            with autocast(), optimizers.recomputed(self._blocks, offload):
                yield

        return both

    def of(self, model: tl.Layer) -> tl.Layer:
        """Returns what runs for a model; asked again, the same."""
        if self._config.use_memory_efficient_trainer == 2:
            return optimizers.InBlocks(model, self._residence)
        if not self._config.compile or any(map(_distributed.is_shard, model.parameters())):
            return model
        key = model.key if isinstance(model, Met) else id(model)
        return self._twins.setdefault(key, tl.Accelerate(model))


def check_task(model: tl.Layer, met: Meeting, task: _tasks.TrainTask, config: LoopConfig) -> None:
    """Raises ValueError if batch, model, loss and optimizer of a task do not fit together."""
    sample = met.arranged(task.sample_batch)
    if met.compute is None:
        try:
            _tasks.check_fits(model, met.loss, sample, is_loss=True)
        except ValueError as error:
            raise met.refusal(error, sample) from None
    if config.loss_chunk_size and met.kind == OWN:
        raise ValueError(
            f"loss_chunk_size={config.loss_chunk_size} has the loss computed in chunks, but here "
            f"the model computes it itself. Leave it out, or give the loss to TrainTask."
        )
    both = tl.Serial(model, met.loss)
    foreign = (tl.Wrapped, _tasks.FunctionLoss, Computed)  # whose code may need numbers
    if not any(isinstance(m, foreign) for m in both.modules()):
        signature = shapes.signature(sample)
        output = tl.Serial(model).output_signature(signature[: model.n_in])
        outputs = output if isinstance(output, tuple) else (output,)
        outcome = tl.Serial(met.loss).output_signature((*outputs, *signature[model.n_in :]))
        if getattr(outcome, "shape", None) != ():
            raise ValueError(
                f"A loss is one number; {task.loss_name} gives {outcome}. Take its mean."
            )
        if model.n_out == 1 and met.compute is None:
            look_at_targets(met.loss, outputs[0].shape[-1], *sample[model.n_in :][:2])
    if config.use_memory_efficient_trainer:
        _check_optimizer_for_blocks(task.optimizer)
    if config.is_sharded and isinstance(task.optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"strategy={config.strategy!r} puts parts of weights in their places, which this "
            f"optimizer does not know. Give a recipe such as optimizers.Adam(0.001), or a class "
            f"of torch.optim."
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


def make_trainer(
    model: tl.Layer,
    runs: Running,
    met: Meeting,
    task: _tasks.TrainTask,
    shares: optimizers.Shares,
    world: _distributed.World,
    config: LoopConfig,
    sharded: data_parallel.Sharded,
    residence: optimizers.Residence,
) -> optimizers.Trainer:
    """Returns the trainer of a task; batch, model and loss are known to fit together."""
    autocast = config.autocast(world.device)
    loss = met.loss if met.compute is None else _tasks.OwnLoss()
    both = tl.Serial(model, loss)
    body, head = _losses.cut_for_chunks(model, runs.of(model), config)
    sample = met.arranged(task.sample_batch)
    last: Any = loss
    if config.loss_chunk_size:
        last = optimizers.ChunkedLoss(head, loss, config.loss_chunk_size)
        if not last.is_known:
            _losses.refuse_if_chunks_differ(both, head, task, sample)
    module: torch.nn.Module = both
    context = runs.context(autocast)
    if last is not loss or body is not model or context is not contextlib.nullcontext:
        module = _losses.LossOf(both, body, last, context)
    ranks = blocks = None
    forward: Any = module
    if world.size > 1:
        forward, ranks = data_parallel.over_ranks(module, both, sample, world, config, sharded)
    elif module is both and _losses.Straight.can_take(both):
        forward = _losses.Straight(both)
    if config.use_memory_efficient_trainer:
        layers = [model] if head is None else body.sublayers
        blocks = optimizers.Blocks(layers, last, world.device, autocast, residence)
    return optimizers.Trainer(
        both,
        task.optimizer,
        forward=forward,
        shares=shares,
        n_accumulation_steps=config.n_accumulation_steps,
        n_skips=config.n_skips,
        ranks=ranks,
        blocks=blocks,
        clip_grad_norm=config.clip_grad_norm,
        clip_grad_value=config.clip_grad_value,
        scales_loss=config.precision == "fp16",
    )
