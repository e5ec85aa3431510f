"""Data parallelism: whose weights a rank has (DDP, FSDP), and how gradients are all-reduced."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _distributed, _nest, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised._loop.settings import LoopConfig


def check_world(world: _distributed.World, config: LoopConfig) -> None:
    """Raises ValueError if the ranks cannot do what is wanted of them."""
    if config.adasum and world.size & (world.size - 1):
        raise ValueError(
            f"adasum=True merges gradients of pairs of ranks, of pairs of pairs, and so on, so the "
            f"number of ranks must be a power of 2; there are {world.size}."
        )


def shard(
    model: tl.Layer, tasks: list[_tasks.TrainTask], world: _distributed.World, config: LoopConfig
) -> Callable[[], Any]:
    """Cuts the weights into parts, one for each rank, if that is wanted.

    Returns:
      What makes a context in which backward passes stay with their rank.
    """
    if world.size == 1 or config.strategy != "fsdp":
        return contextlib.nullcontext
    losses = [task.loss_layer for task in tasks if any(True for _ in task.loss_layer.parameters())]
    aparts = [world.shard(_checkpoint.bare(layer)) for layer in (model, *losses)]

    @contextlib.contextmanager
    def apart() -> Generator[None]:
        with contextlib.ExitStack() as stack:
            for each in aparts:
                stack.enter_context(each())
            yield

    return apart


def over_ranks(
    module: torch.nn.Module,
    both: tl.Layer,
    sample: tuple[Any, ...],
    world: _distributed.World,
    config: LoopConfig,
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

    if config.strategy == "fsdp":
        return module, ranks(take_buffers, apart, leave)
    world.copy_from_chief_([*both.parameters(), *buffers])
    if config.adasum or config.use_memory_efficient_trainer:

        def merge(params: list[torch.nn.Parameter]) -> None:
            used = world.sum([float(p.grad is not None) for p in params])
            merged = [p for p, n in zip(params, used, strict=True) if n]
            for p in merged:
                if p.grad is None:  # another rank's loss depends on it
                    p.grad = torch.zeros_like(p)
            gradients = [p.grad for p in merged if p.grad is not None]
            if config.adasum:
                optimizers.adasum_(gradients, world.rank, world.size, world.exchange, world.mean_)
            else:
                world.means_(gradients)

        return module, ranks(take_buffers, apart, merge)
    batch = _nest.to_tensors(sample, world.device)
    params = [p for p in both.parameters() if p.requires_grad]
    used = world.sum([float(u) for u in optimizers.try_out(module, both, batch, seed=0)])
    find_unused = config.find_unused_parameters or any(0 < n < world.size for n in used)
    if not find_unused:
        unused += [p for p, n in zip(params, used, strict=True) if not n]
    parallel = world.parallel(module, unused, find_unused)
    for _ in range(2):
        optimizers.try_out(parallel, both, batch, seed=0)
    no_sync: Any = parallel.no_sync
    # DistributedDataParallel sees to buffers itself.
    return parallel, ranks(lambda: None, no_sync, leave)
