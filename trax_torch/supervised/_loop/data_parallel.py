"""Data parallelism: whose weights a rank has (DDP, FSDP), and how gradients are all-reduced."""

import contextlib
import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _distributed, _nest, _sharding, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised._loop import compiled_groups, shard_groups, sharded_update
from trax_torch.supervised._loop.meta import Filling
from trax_torch.supervised._loop.settings import LoopConfig


def check_whole(model: torch.nn.Module) -> None:
    """Raises ValueError if a model's weights are cut into parts already."""
    if any(map(_distributed.is_shard, model.parameters())):
        raise ValueError(
            "The model's weights are cut into parts already, by an earlier Loop or by "
            "fully_shard, and Loop takes whole ones. Build the model anew, and fill it: "
            "supervised.load_weights(model, 'run') reads a checkpoint; or go on with that Loop."
        )


def check_world(world: _distributed.World, config: LoopConfig) -> None:
    """Raises ValueError if the ranks cannot do what is wanted of them."""
    if config.adasum and world.size & (world.size - 1):
        raise ValueError(
            f"adasum=True merges gradients of pairs of ranks, of pairs of pairs, and so on, so the "
            f"number of ranks must be a power of 2; there are {world.size}."
        )


@dataclass(frozen=True)
class Sharded:
    """What was cut into parts.

    Attributes:
      apart: makes a context in which backward passes stay with their rank.
      groups: what of the model is brought together at a time, with no other group in it; empty
        where nothing was cut.
      parts_ways: whether ranks may use other weights than each other.
    """

    apart: Callable[[], Any] = contextlib.nullcontext
    groups: tuple[torch.nn.Module, ...] = ()
    parts_ways: bool = False


def shard(
    model: tl.Layer,
    tasks: list[_tasks.TrainTask],
    samples: list[tuple[tl.Layer, Any]],
    measured: tuple[tl.Layer, tl.Layer, Any] | None,
    world: _distributed.World,
    config: LoopConfig,
    filling: Filling,
) -> Sharded:
    """Cuts the weights into parts, one for each rank, if that is wanted.

    Args:
      model: whose weights.
      tasks: their losses may have weights, too.
      samples: for each task model and loss in series, and a sample that is arranged for them.
      measured: a model that is measured instead, with the same weights, and its own such pair.
      world: the ranks.
      config: says whether.
      filling: of weights that have no memory yet, which get it when they are cut.

    Raises:
      ValueError: if weights cannot be cut into parts, with the reason.
    """
    if world.size == 1 or not config.is_sharded:
        return Sharded()
    bares, found = _groups(model, tasks, samples, measured, world, config, filling)
    n_replicas = _n_replicas(world) if config.strategy == "hsdp" else 1
    aparts = [
        _sharding.shard(world, module, each.modules, each.whole, n_replicas, each.parts_ways)
        for module, each in zip(bares, found, strict=True)
    ]
    filling.fill(world, *bares)

    innermost = shard_groups.innermost(bares[0], found[0].modules)
    if config.compile:
        compiled_groups.compile_(innermost)
        if measured is not None:
            compiled_groups.compile_(shard_groups.innermost(bares[-1], found[-1].modules))
    for (both, _), task in zip(samples, tasks, strict=True):
        sharded_update.check(task.optimizer, list(both.parameters()), world)

    @contextlib.contextmanager
    def apart() -> Generator[None]:
        with contextlib.ExitStack() as stack:
            for each in aparts:
                stack.enter_context(each())
            yield

    return Sharded(apart, tuple(module for module, _ in innermost), found[0].parts_ways)


def _groups(
    model: tl.Layer,
    tasks: list[_tasks.TrainTask],
    samples: list[tuple[tl.Layer, Any]],
    measured: tuple[tl.Layer, tl.Layer, Any] | None,
    world: _distributed.World,
    config: LoopConfig,
    filling: Filling,
) -> tuple[list[torch.nn.Module], list[shard_groups.ShardGroups]]:
    """Returns the modules whose weights are cut, and what of each is brought together at a time."""
    device = world.device
    bares = [_checkpoint.bare(model)]
    with filling.lent(model, *(measured or ())[:1]) as lent:
        batches = [(both, _nest.to_tensors(sample, device)) for both, sample in samples]
        passes = [functools.partial(optimizers.run_through, *each, 0, True) for each in batches]
        passes += [functools.partial(_measured, *each) for each in batches]
        found = [shard_groups.find(bares[0], passes, world, config.find_unused_parameters)]
        for task in tasks:
            if any(True for _ in task.loss_layer.parameters()):
                bares.append(_checkpoint.bare(task.loss_layer))
                found.append(shard_groups.alone(bares[-1]))
        if measured is not None:
            layer, both, sample = measured
            run = functools.partial(_measured, both, _nest.to_tensors(sample, device))
            bares.append(_checkpoint.bare(layer))
            found.append(shard_groups.find(bares[-1], [run], world))
    for each in found:
        each.whole[:] = [lent.get(id(p), p) for p in each.whole]
    return bares, found


def recomputed_blocks(
    model: tl.Layer, sharded: Sharded, config: LoopConfig
) -> list[torch.nn.Module]:
    """Returns the modules whose activations are computed again, if that is wanted.

    Where weights are in parts, these are what is brought together at a time.

    Raises:
      ValueError: if the model has no blocks that are repeated.
    """
    if not config.activation_checkpointing:
        return []
    found = [m for m in sharded.groups if any(True for _ in m.children())]
    found = found or shard_groups.repeated(_checkpoint.bare(model))
    if not found:
        raise ValueError(
            f"activation_checkpointing={config.activation_checkpointing!r} computes blocks again "
            f"that are repeated in the model, and made of modules, as layers of a Transformer are; "
            f"it has none. Leave it out."
        )
    return found


def copy_parts_(source: tl.Layer, target: tl.Layer) -> None:
    """Sets this rank's parts of a model's weights to those of another, if they are parts."""
    theirs = dict(_checkpoint.bare(source).named_parameters())
    with torch.no_grad():
        for name, p in _checkpoint.bare(target).named_parameters():
            if p is not theirs[name]:
                _distributed.local(p).copy_(_distributed.local(theirs[name]))


def _n_replicas(world: _distributed.World) -> int:
    """Returns on how many machines the ranks are, each of which holds all weights.

    Raises:
      ValueError: if they are not as many on each.
    """
    n_local = world.size // world.n_hosts
    counts = world.each(n_local)
    if len({*counts}) > 1 or n_local * world.n_hosts != world.size:
        raise ValueError(
            f"strategy='hsdp' has the ranks of each machine hold all weights together, so there "
            f"must be as many on each; there are {world.size} in all, and of its own machine each "
            f"says: {', '.join(f'{n:g}' for n in counts)}. Start torchrun with the same "
            f"--nproc-per-node everywhere, or give strategy='fsdp'."
        )
    return world.n_hosts


def _measured(both: tl.Layer, batch: Any) -> None:
    """Runs a model in eval mode, where that can be done with a batch of training."""
    with contextlib.suppress(Exception):
        optimizers.run_through(both, batch, 0, False)


def over_ranks(
    module: torch.nn.Module,
    both: tl.Layer,
    sample: tuple[Any, ...],
    world: _distributed.World,
    config: LoopConfig,
    sharded: Sharded,
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

    if config.is_sharded:
        whole = [p for p in both.parameters() if not _distributed.is_shard(p)]
        merge = leave
        if whole or sharded.parts_ways:
            merge = functools.partial(_merge, whole, sharded.parts_ways, world)
        return module, ranks(take_buffers, sharded.apart, merge)
    world.copy_from_chief_([*both.parameters(), *buffers])
    if config.adasum or config.use_memory_efficient_trainer:

        def merge_all(params: list[torch.nn.Parameter]) -> None:
            gradients = _gradients_anywhere(params, world)
            if config.adasum:
                optimizers.adasum_(gradients, world.rank, world.size, world.exchange, world.mean_)
            else:
                world.means_(gradients)

        return module, ranks(take_buffers, sharded.apart, merge_all)
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


def _merge(
    whole: list[torch.nn.Parameter],
    parts_ways: bool,
    world: _distributed.World,
    params: list[torch.nn.Parameter],
) -> None:
    """Adds up the gradients of weights that are whole on all ranks, where others are in parts.

    Weights that no rank has used have none; where ranks may part ways, torch has made them 0.
    """
    if whole:
        world.means_(_gradients_anywhere([p for p in whole if p.requires_grad], world))
    if parts_ways:
        grads = [None if p.grad is None else _distributed.local(p.grad) for p in params]
        used = world.sum([float(g is not None and bool(g.any())) for g in grads])
        for p, n in zip(params, used, strict=True):
            if not n:
                p.grad = None


def _gradients_anywhere(
    params: list[torch.nn.Parameter], world: _distributed.World
) -> list[torch.Tensor]:
    """Returns the gradients of weights that have one on any rank."""
    used = world.sum([float(p.grad is not None) for p in params])
    merged = [p for p, n in zip(params, used, strict=True) if n]
    for p in merged:
        if p.grad is None:  # another rank's loss depends on it
            p.grad = torch.zeros_like(p)
    return [p.grad for p in merged if p.grad is not None]
