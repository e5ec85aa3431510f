"""What a run begins with: its tasks, its seed, and when things are due."""

import operator
from typing import Any

import torch

from trax_torch import _distributed, _seeds
from trax_torch.supervised import _logging, _tasks
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
            raise TypeError(
                f"{name} are {kind.__name__}s; got {type(item).__name__}. {_instead(item, name)}"
            )
    result: list[Any] = items
    return result


def _instead(item: Any, name: str) -> str:
    """Returns what to write for what is no task of the kind."""
    if isinstance(item, torch.nn.Module):
        return "The model comes first: Loop(model, tasks)."
    if isinstance(item, _tasks.EvalTask):
        return "What is measured has a name of its own: Loop(model, tasks, eval_tasks=...)."
    if isinstance(item, _tasks.TrainTask):
        return "To measure on its data, write EvalTask(loader, metrics)."
    if name == "eval_tasks":
        return "Put data and metrics in one: EvalTask(loader, metrics)."
    return "Put data, loss and optimizer in one: TrainTask(loader, loss, optimizer)."


def whole(value: Any, name: str) -> int:
    """Returns a whole number as Python's own.

    Raises:
      TypeError: if it is none, with the one to write.
    """
    try:
        return operator.index(value)
    except TypeError:
        near = f" Write {int(value)}." if isinstance(value, float) and value == value // 1 else ""
        raise TypeError(f"{name} is a whole number; got {value!r}.{near}") from None


def agree_on_seed(seed: int | None, world: _distributed.World) -> int:
    """Returns the chief's seed: the one that was asked for, or one from torch's generator."""
    seed = _seeds.ambient_seed() % 2**31 if seed is None else seed  # a number that one can type
    return int(world.from_chief(str(seed).encode()))


def greet(console: _logging.Console, lines: list[str], seed: int, is_drawn: bool) -> None:
    """Says how batches meet the model, where that is worth a line, and the seed if it was drawn."""
    for line in lines:
        console.say(line)
    console.say(f"Random seed: {seed}", stdout=is_drawn)


def seed_of(
    config: LoopConfig,
    world: _distributed.World,
    tasks: list[_tasks.TrainTask],
    eval_tasks: list[_tasks.EvalTask],
) -> int:
    """Returns the run's seed; where one was asked for, the process's own generators get it, too.

    Each task's data draws by a seed of its own from then on.
    """
    if config.random_seed is not None:
        _seeds.seed_ambient(config.random_seed, world.rank)
    seed = agree_on_seed(config.random_seed, world)
    streams = {"task": [t.stream for t in tasks], "eval": [t.stream for t in eval_tasks]}
    for kind, several in streams.items():
        for i, stream in enumerate(several):
            stream.key(config.random_seed, "data", kind, i, rank=world.rank)
    return seed


def n_steps_of(
    n_steps: int | None,
    until: int | None,
    n_epochs: int | None,
    step: int,
    tasks: list[_tasks.TrainTask],
) -> int:
    """Returns how many steps a run takes, as `Loop.run` tells.

    Args:
      n_steps: how many more were asked for, or None.
      until: how many in all, or None.
      n_epochs: how many more epochs, or None.
      step: how many have been taken.
      tasks: the training tasks; epochs are those of the only one.
    """
    asked = {"n_steps": n_steps, "until": until, "n_epochs": n_epochs}
    given = [f"{name}={x}" for name, x in asked.items() if x is not None]
    if len(given) > 1:
        raise ValueError(
            f"A run takes n_steps more, or n_epochs, or as many as are left until so many steps "
            f"were taken in all; got {' and '.join(given)}. Give one of them."
        )
    if not given and any(task.epochs is not None for task in tasks):
        until = _steps_in_all(tasks)
    n_steps = None if n_steps is None else whole(n_steps, "n_steps, how many more to train,")
    until = None if until is None else whole(until, "until, how many steps in all,")
    n_epochs = None if n_epochs is None else whole(n_epochs, "n_epochs, how many more to train,")
    n = next((x for x in (n_steps, until, n_epochs) if x is not None), 1)
    if n < 0:
        raise ValueError(f"A run takes 0 steps or more; got {n}.")
    if until is not None:
        return max(until - step, 0)
    return n if n_epochs is None else n * _steps_per_epoch(tasks)


def _steps_in_all(tasks: list[_tasks.TrainTask]) -> int:
    """Returns how many steps the epochs have that the only task asks for."""
    per_epoch = _steps_per_epoch(tasks, "epochs")
    n = whole(tasks[0].epochs, "A task's epochs")
    if n < 0:
        raise ValueError(f"A task asks for 0 epochs or more; got {n}.")
    return n * per_epoch


def _steps_per_epoch(tasks: list[_tasks.TrainTask], name: str = "n_epochs") -> int:
    if len(tasks) > 1:
        raise ValueError(
            f"{name} counts passes through the data of one task, and there are {len(tasks)}. "
            f"Give n_steps, of all tasks together."
        )
    n = tasks[0].steps_per_epoch
    if n is None:
        raise ValueError(
            f"{name} needs labeled_data that says how many batches it has, as a DataLoader of a "
            f"dataset with a length does. Give n_steps."
        )
    return n


def events_of(config: LoopConfig, task: _tasks.TrainTask) -> _tasks.Events:
    """Returns what is due when, as was asked for, or else as the first task says."""
    every = _tasks.at_step_1_and_every_nth_step
    by_default = every(task.n_steps_per_checkpoint)
    checkpoint_at = config.checkpoint_at or by_default
    permanent_by_default = every(task.n_steps_per_permanent_checkpoint)
    permanent_at = config.permanent_checkpoint_at or permanent_by_default
    eval_at = config.eval_at or checkpoint_at
    return _tasks.Events(checkpoint_at, permanent_at, eval_at, config.log_every)


def init_host_and_devices(
    n_devices: int | None = None, random_seed: int | None = None
) -> tuple[bool, int, int, int]:
    """Returns `(is_chief, host_count, n_devices, random_seed)` of the world that `Loop` would join.

    Python's, numpy's and torch's global generators are seeded with the seed that is returned.

    Args:
      n_devices: how many devices are counted on; None takes what the launcher gave.
      random_seed: None draws one from torch's generator.

    Raises:
      ValueError: if more devices are wanted than the launcher gave, with the line to launch them.

    Source: Trax `supervised/training.py::init_host_and_devices`.
    """
    world = _distributed.join(n_devices)
    seed = agree_on_seed(random_seed, world)
    _seeds.seed_ambient(seed, world.rank)
    return world.is_chief, world.n_hosts, world.size, seed
