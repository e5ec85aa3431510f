"""The settings of a run as plain values by name, for loggers."""

import numbers
from typing import Any

from trax_torch.supervised._loop.settings import LoopConfig


def hparams_of(loop: Any, config: LoopConfig) -> dict[str, Any]:
    """Returns how steps are computed, the seed, and each task's loss and optimizer.

    Args:
      loop: the `Loop`.
      config: its settings.

    Returns:
      Numbers, strings, truth values and None by names such as 'precision', 'n_parameters' and
      'optimizer/lr'. Where there are several, parameter groups and tasks are told apart, as in
      'task0/optimizer/group1/lr'.
    """
    params = list(loop.model.parameters())
    found: dict[str, Any] = {
        **config.of_steps(),
        "random_seed": loop.random_seed,
        "n_devices": loop.n_devices,
        "n_parameters": sum(p.numel() for p in params),
        "n_trainable_parameters": sum(p.numel() for p in params if p.requires_grad),
    }
    for i, (task, optimizer) in enumerate(zip(loop.tasks, loop.optimizers, strict=True)):
        whose = f"task{i}/" if len(loop.tasks) > 1 else ""
        found[f"{whose}loss"] = task.loss_name
        found[f"{whose}optimizer/name"] = type(optimizer).__name__
        groups = optimizer.param_groups
        for j, group in enumerate(groups):
            which = f"group{j}/" if len(groups) > 1 else ""
            for name, value in group.items():
                if name not in ("params", "param_names"):
                    found[f"{whose}optimizer/{which}{name}"] = value
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    """Returns a value as Python's own number, or as text."""
    if getattr(value, "ndim", None) == 0:  # numpy's and torch's numbers
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value) if isinstance(value, numbers.Real) else str(value)
