"""What a run begins with: its tasks, its seed, and when things are due."""

from typing import Any

from trax_torch import _distributed, _seeds
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop.settings import LoopConfig


def as_tasks(tasks: Any, eval_tasks: Any) -> tuple[list[_tasks.TrainTask], list[_tasks.EvalTask]]:
    """Returns training tasks, and eval tasks, as lists.

    Args:
      tasks: one or several.
      eval_tasks: one, several, or None.

    Raises:
      TypeError: if one is no task.
      ValueError: if there is no training task.
    """
    found = _as_list(tasks, _tasks.TrainTask, "tasks")
    evals = _as_list(eval_tasks, _tasks.EvalTask, "eval_tasks")
    if not found:
        raise ValueError("Loop needs at least one TrainTask; got none.")
    return found, evals


def _as_list(items: Any, kind: type, name: str) -> list[Any]:
    items = [] if items is None else list(items) if isinstance(items, (list, tuple)) else [items]
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{name} are {kind.__name__}s; got {type(item).__name__}.")
    return items


def agree_on_seed(seed: int | None, world: _distributed.World) -> int:
    """Returns the chief's seed: the one that was asked for, or a fresh one."""
    seed = _seeds.fresh_seed() if seed is None else seed
    return int(world.from_chief(str(seed).encode()))


def seed_of(config: LoopConfig, world: _distributed.World) -> int:
    """Returns the run's seed; where one was asked for, the process's own generators get it, too."""
    if config.random_seed is not None:
        _seeds.seed_ambient(config.random_seed, world.rank)
    return agree_on_seed(config.random_seed, world)


def events_of(config: LoopConfig, task: _tasks.TrainTask) -> _tasks.Events:
    """Returns what is due when, as was asked for, or else as the first task says."""
    every = _tasks.at_step_1_and_every_nth_step
    by_default = every(task.n_steps_per_checkpoint)
    checkpoint_at = config.checkpoint_at or by_default
    permanent_by_default = every(task.n_steps_per_permanent_checkpoint)
    permanent_at = config.permanent_checkpoint_at or permanent_by_default
    return _tasks.Events(checkpoint_at, permanent_at, config.eval_at or checkpoint_at)


def init_host_and_devices(
    n_devices: int | None = None, random_seed: int | None = None
) -> tuple[bool, int, int, int]:
    """Returns `(is_chief, host_count, n_devices, random_seed)` of the world that `Loop` would join.

    Python's, numpy's and torch's global generators are seeded with the seed that is returned.

    Args:
      n_devices: how many devices are counted on; None takes what the launcher gave.
      random_seed: None makes a fresh one.

    Raises:
      ValueError: if more devices are wanted than the launcher gave, with the line to launch them.

    Source: Trax `supervised/training.py::init_host_and_devices`.
    """
    world = _distributed.join(n_devices)
    seed = agree_on_seed(random_seed, world)
    _seeds.seed_ambient(seed, world.rank)
    return world.is_chief, world.n_hosts, world.size, seed
