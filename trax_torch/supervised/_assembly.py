"""Puts a Loop's parts together: checks what was given, and builds what will run."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _nest, _world, optimizers, shapes
from trax_torch import layers as tl
from trax_torch.layers import _stack
from trax_torch.layers._modes import modes_kept
from trax_torch.supervised import _snapshot, _tasks

_SKIPS = 100  # how many steps on_nonfinite='skip' stands for


@dataclass(frozen=True)
class Settings:
    """How steps are computed.

    Attributes:
      precision: 'bf16' computes in bfloat16 where torch's autocast deems it safe; None, as the
        weights are.
      n_accumulation_steps: into how many parts a batch is cut.
      compile: whether the model is compiled.
      on_nonfinite: 'raise', 'skip', or how many steps may be skipped.
      adasum: whether ranks merge their gradients by Adasum instead of averaging them.
      strategy: 'ddp' has every rank keep all weights; 'fsdp' a part of each.
      find_unused_parameters: whether ranks look at each step for weights without a gradient.
      loss_chunk_size: over how many positions at a time the last Dense and the loss are computed;
        0 computes them whole.
      memory_efficient: 1 updates weights block by block in the backward pass; 2 keeps them in host
        memory, too; 0 does neither.

    Raises:
      ValueError: if one is out of range.
    """

    precision: str | None = None
    n_accumulation_steps: int = 1
    compile: bool = False
    on_nonfinite: str | int = "raise"
    adasum: bool = False
    strategy: str = "ddp"
    find_unused_parameters: bool = False
    loss_chunk_size: int = 0
    memory_efficient: int = 0

    def __post_init__(self) -> None:
        if self.precision not in (None, "bf16"):
            raise ValueError(f"precision is 'bf16' or None; got {self.precision!r}.")
        if not isinstance(self.n_accumulation_steps, int) or self.n_accumulation_steps < 1:
            raise ValueError(
                f"n_accumulation_steps is how many parts a batch is cut into, at least 1; got "
                f"{self.n_accumulation_steps}."
            )
        if not isinstance(self.loss_chunk_size, int) or self.loss_chunk_size < 0:
            raise ValueError(
                f"loss_chunk_size is how many positions a chunk has, or 0 for no chunks; got "
                f"{self.loss_chunk_size}."
            )
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"strategy is 'ddp' or 'fsdp'; got {self.strategy!r}.")
        for other in ("adasum", "compile", "loss_chunk_size"):
            value = getattr(self, other)
            if self.strategy == "fsdp" and value:
                raise ValueError(
                    f"{other}={value} does not go with strategy='fsdp' yet. Leave one of them out."
                )
        is_count = isinstance(self.on_nonfinite, int) and self.on_nonfinite >= 0
        if self.on_nonfinite not in ("raise", "skip") and not is_count:
            raise ValueError(
                f"on_nonfinite is 'raise', 'skip', or how many steps may be skipped; got "
                f"{self.on_nonfinite!r}."
            )
        if self.memory_efficient not in (0, 1, 2):
            raise ValueError(
                f"use_memory_efficient_trainer is False, True or 2; got {self.memory_efficient!r}."
            )
        if self.memory_efficient:
            self._check_memory_efficient()

    def _check_memory_efficient(self) -> None:
        """Raises ValueError if a setting needs all gradients at once, or all weights in place."""
        reasons = {
            "n_accumulation_steps": (
                self.n_accumulation_steps > 1,
                "gradients of several parts would have to be kept until the last one. Make batches "
                "smaller; activations of one block at a time take up memory as it is",
            ),
            "on_nonfinite": (
                self.on_nonfinite not in ("raise", 0),
                "when a gradient is found not to be finite, other weights are updated already. "
                "Leave it out, and go back to the last checkpoint if that happens",
            ),
            "compile": (self.compile, "blocks run one by one. Leave it out"),
            "strategy": (
                self.strategy == "fsdp",
                "blocks bring and update their weights themselves. Choose one of the two",
            ),
        }
        for name, (is_asked, reason) in reasons.items():
            if is_asked:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with "
                    f"use_memory_efficient_trainer={self.memory_efficient!r}: {reason}."
                )

    @property
    def n_skips(self) -> int:
        """How many steps that are not finite may be skipped."""
        words = {"raise": 0, "skip": _SKIPS}
        return words[self.on_nonfinite] if self.on_nonfinite in words else int(self.on_nonfinite)

    def autocast(self, device: torch.device) -> Callable[[], Any]:
        """Returns what makes the context to compute in."""
        if self.precision is None:
            return contextlib.nullcontext
        return functools.partial(torch.autocast, device.type, dtype=torch.bfloat16)


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
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _world.World, settings: Settings
) -> optimizers.Residence:
    """Puts the weights where they are to be while they are not used."""
    losses = [task.loss_layer.to(world.device) for task in tasks]
    if settings.memory_efficient != 2:
        return optimizers.Residence()
    return optimizers.HostMemory(tl.Serial(model, *losses).parameters(), world.device)


def check_world(world: _world.World, settings: Settings) -> None:
    """Raises ValueError if the ranks cannot do what is wanted of them."""
    if settings.adasum and world.size & (world.size - 1):
        raise ValueError(
            f"adasum=True merges gradients of pairs of ranks, of pairs of pairs, and so on, so the "
            f"number of ranks must be a power of 2; there are {world.size}."
        )


def running(model: tl.Layer, settings: Settings, residence: optimizers.Residence) -> tl.Layer:
    """Returns what runs for a model, with the same weights: itself, or a compiled twin, say."""
    if settings.memory_efficient == 2:
        return optimizers.InBlocks(model, residence)
    return tl.Accelerate(model) if settings.compile else model


def cut_for_chunks(
    model: tl.Layer, running_model: tl.Layer, settings: Settings
) -> tuple[tl.Layer, tl.Layer | None]:
    """Returns `(body, head)`: what runs on whole batches, and what runs on chunks of positions.

    The head is the model's last Dense, if it ends in one and chunks are wanted; else None.
    """
    if not settings.loss_chunk_size:
        return running_model, None
    layers, head = optimizers.split_head(model)
    if head is None:
        return running_model, None
    body = tl.Serial(*layers)
    return tl.Accelerate(body) if settings.compile and layers else body, head


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


def shard(
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _world.World, settings: Settings
) -> Callable[[], Any]:
    """Cuts the weights into parts, one for each rank, if that is wanted.

    Returns:
      What makes a context in which backward passes stay with their rank.
    """
    if world.size == 1 or settings.strategy != "fsdp":
        return contextlib.nullcontext
    losses = [task.loss_layer for task in tasks if any(True for _ in task.loss_layer.parameters())]
    aparts = [world.shard(_snapshot.bare(layer)) for layer in (model, *losses)]

    @contextlib.contextmanager
    def apart() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for each in aparts:
                stack.enter_context(each())
            yield

    return apart


def make_trainer(
    model: tl.Layer,
    body: tl.Layer,
    head: tl.Layer | None,
    task: _tasks.TrainTask,
    world: _world.World,
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
            _refuse_if_chunks_differ(both, head, task)
    module: torch.nn.Module = both
    if last is not loss or body is not model or settings.precision is not None:
        module = _LossOf(body, last, autocast)
    shares = optimizers.Shares(model, loss)
    if settings.n_accumulation_steps > 1 or world.size > 1:
        _warn_of_uneven(both, shares, task)
    ranks = blocks = None
    if world.size > 1:
        module, ranks = _over_ranks(module, both, task, world, settings, apart)
    if settings.memory_efficient:
        layers = [model] if head is None else optimizers.split_head(model)[0]
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


def _refuse_if_chunks_differ(both: tl.Layer, head: tl.Layer | None, task: _tasks.TrainTask) -> None:
    """Raises ValueError if a loss, of which nothing is known, is another one in chunks.

    Two rows of the sample batch are looked at, each a chunk.
    """
    model, loss = both.sublayers
    layers = [model] if head is None else optimizers.split_head(model)[0]
    in_chunks = _LossOf(
        tl.Serial(*layers), optimizers.ChunkedLoss(head, loss, 1), contextlib.nullcontext
    )
    rows = _nest.map_leaves(
        lambda x: x[:2] if getattr(x, "ndim", 0) else x,
        _nest.to_tensors(task.sample_batch, _device_of(both)),
    )
    cause: Exception | None = None
    with modes_kept(both), torch.no_grad():
        both.eval()
        try:
            whole = float(both(rows))
            chunks = float(in_chunks(rows))
            what = f"is {whole:.6g} for two rows of the sample batch and {chunks:.6g} for them"
        except Exception as error:
            cause, what = error, f"cannot be computed for two rows of the sample batch ({error})"
    if cause is None and (
        whole == chunks
        or (math.isnan(whole) and math.isnan(chunks))  # which tells nothing
        or abs(chunks - whole) <= 1e-3 * max(abs(whole), 1e-6)
    ):
        return
    raise ValueError(
        f"Chunks need a loss that is a mean over items, and {task.loss_name} {what} in chunks. "
        f"Leave loss_chunk_size at 0; or write the loss as a mean over items, and where they have "
        f"weights, take these as a third input called weights."
    ) from cause


def _warn_of_uneven(both: tl.Layer, shares: optimizers.Shares, task: _tasks.TrainTask) -> None:
    """Warns if a loss, of whose items nothing is known, is another one for a batch in parts."""
    if not shares.counts_rows or not any(isinstance(m, tl.Wrapped) for m in both.modules()):
        return
    batch = _nest.to_tensors(task.sample_batch, _device_of(both))
    try:
        halves = shares.cut(batch, 2)
    except ValueError:  # a batch that is never cut
        return
    with modes_kept(both), torch.no_grad():
        both.eval()
        whole = float(both(batch))
        parts = sum(float(both(part)) * share for part, share in halves)
    if not abs(parts - whole) <= 1e-3 * max(abs(whole), 1e-6):  # which NaN is not either
        warnings.warn(
            f"{task.loss_name} is {whole:.6g} for the sample batch and {parts:.6g} for its halves "
            f"together, each counting by its rows; so gradients of parts of a batch, or of ranks, "
            f"are not those of the whole. Take the weights of items as a third input called "
            f"weights, or nn.CrossEntropyLoss, which tells which targets it ignores.",
            stacklevel=3,
        )


def _device_of(layer: tl.Layer) -> torch.device:
    """Returns where a layer's weights are, which may be host memory."""
    return next((p.device for p in layer.parameters()), torch.device("cpu"))


def _over_ranks(
    module: torch.nn.Module,
    both: tl.Layer,
    task: _tasks.TrainTask,
    world: _world.World,
    settings: Settings,
    apart: Callable[[], Any],
) -> tuple[torch.nn.Module, optimizers.Ranks]:
    """Returns what computes the loss where several ranks train, and what they do about gradients.

    Parameters that the task leaves unused, such as another task's head, are found once. Two passes
    that are thrown away settle the order in which gradients are added up, which is then the same in
    a resumed run.
    """
    buffers, unused = list(both.buffers()), list[torch.nn.Parameter]()

    def take_buffers() -> None:
        world.copy_from_chief_(buffers)

    def leave(params: list[torch.nn.Parameter]) -> None:
        """Changes nothing: they are added up already, but for those that nobody waits for."""
        if any(p.grad is not None for p in unused):
            raise ValueError(
                "The loss depends on weights that it did not depend on in the sample batch, so "
                "their gradients are not added up over ranks. Give "
                "Loop(find_unused_parameters=True), which looks for them at each step."
            )

    def ranks(
        begin: Callable[[], None],
        apart: Callable[[], Any],
        merge: Callable[[list[torch.nn.Parameter]], None],
    ) -> optimizers.Ranks:
        return optimizers.Ranks(world.rank, world.size, begin, apart, merge, world.all_agree)

    if settings.strategy == "fsdp":
        return module, ranks(take_buffers, apart, leave)
    world.copy_from_chief_([*both.parameters(), *buffers])
    if settings.adasum or settings.memory_efficient:

        def merge(params: list[torch.nn.Parameter]) -> None:
            used = world.sum([float(p.grad is not None) for p in params])
            merged = [p for p, n in zip(params, used, strict=True) if n]
            for p in merged:
                if p.grad is None:  # another rank's loss depends on it
                    p.grad = torch.zeros_like(p)
            gradients = [p.grad for p in merged if p.grad is not None]
            if settings.adasum:
                optimizers.adasum_(gradients, world.rank, world.size, world.exchange, world.mean_)
            else:
                world.means_(gradients)

        return module, ranks(take_buffers, apart, merge)
    batch = _nest.to_tensors(task.sample_batch, world.device)
    params = [p for p in both.parameters() if p.requires_grad]
    used = world.sum([float(u) for u in optimizers.try_out(module, both, batch, seed=0)])
    find_unused = settings.find_unused_parameters or any(0 < n < world.size for n in used)
    if not find_unused:
        unused += [p for p, n in zip(params, used, strict=True) if not n]
    parallel = world.parallel(module, unused, find_unused)
    for _ in range(2):
        optimizers.try_out(parallel, both, batch, seed=0)
    no_sync: Any = parallel.no_sync
    # DistributedDataParallel sees to buffers itself.
    return parallel, ranks(lambda: None, no_sync, leave)


class _LossOf(torch.nn.Module):
    """Computes the loss of a batch as model and loss in series do, in a context of its own."""

    def __init__(
        self,
        model: tl.Layer,
        loss: tl.Layer | optimizers.ChunkedLoss,
        autocast: Callable[[], Any],
    ):
        super().__init__()
        self.model = model
        self.loss = loss
        self._autocast = autocast

    def forward(self, batch: tuple[Any, ...]) -> torch.Tensor:
        with self._autocast():
            outputs = self.model(_stack.take(batch, self.model.n_in))
            stack = _stack.put(outputs, batch, self.model.n_in)
            result: torch.Tensor = self.loss(_stack.take(stack, self.loss.n_in))
        return result


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
