"""Learning-rate schedules: from a training step to a learning rate.

Steps count from 1; 0 is defined too. A schedule is a value: it can be compared, printed and
pickled, and it goes into `torch.optim.lr_scheduler.LambdaLR` as it is.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trax_torch import _pictures

_FACTORS = (
    "constant",
    "two_constants",
    "linear_warmup",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)


def constant(value: float) -> "Constant":
    """Returns the schedule that is `value` at every step.

    Example:
      >>> constant(0.5)(1000)
      0.5

    Source: Trax `supervised/lr_schedules.py::constant`, which is 0 at step 0.
    """
    return Constant(value)


def warmup(n_warmup_steps: int, max_value: float) -> "Warmup":
    """Returns a schedule that rises on a line from 0 at step 0, then stays.

    lr(step) = max_value * min(1, step / (n_warmup_steps + 1))

    Args:
      n_warmup_steps: how many steps are below the maximum; may be 0.
      max_value: the rate from step n_warmup_steps + 1 on.

    Example:
      >>> [warmup(3, 1.0)(step) for step in (0, 1, 2, 3, 4, 100)]
      [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Trax `supervised/lr_schedules.py::warmup`.
    """
    return Warmup(n_warmup_steps, max_value)


def warmup_and_rsqrt_decay(n_warmup_steps: int, max_value: float) -> "WarmupAndRsqrtDecay":
    """Returns a schedule that rises like `warmup`, then falls with the root of the step.

    lr(step) = max_value * min(step / n, sqrt(n / step)), with n = n_warmup_steps + 1

    Example:
      >>> [warmup_and_rsqrt_decay(3, 1.0)(step) for step in (2, 4, 16)]
      [0.5, 1.0, 0.5]

    Source: Trax `supervised/lr_schedules.py::warmup_and_rsqrt_decay`.
    """
    return WarmupAndRsqrtDecay(n_warmup_steps, max_value)


def multifactor(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    constant: float = 0.1,
    warmup_steps: int = 400,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    second_constant: float = 0.01,
    second_constant_step: int = 10000,
    minimum: float = 0,
) -> "Multifactor":
    """Returns the product of named factors.

    Args:
      factors: names with `*` between them:
        `constant`;
        `two_constants`: `constant` before step `second_constant_step`, then `second_constant`;
        `linear_warmup`: min(1, step / warmup_steps);
        `rsqrt_decay`: 1 / sqrt(max(step, warmup_steps));
        `rsqrt_normalized_decay`: sqrt(warmup_steps) times that;
        `decay_every`: decay_factor ** (step // steps_per_decay);
        `cosine_decay`: (1 + cos(pi * p)) / 2, where p is the place in the cycle that step is in:
        max(0, (step - warmup_steps) / steps_per_cycle) modulo 1.
      constant, warmup_steps, decay_factor, steps_per_decay, steps_per_cycle, second_constant,
        second_constant_step: what the factors say.
      minimum: the schedule never goes below.

    Raises:
      ValueError: if a factor has no such name, or counts steps by a number below 1.

    Example:
      >>> multifactor('constant * decay_every', constant=8., steps_per_decay=10)(25)
      2.0

    Source: Trax `supervised/lr_schedules.py::multifactor`, which finds an unknown factor only when
      it is called.
    """
    return Multifactor(
        factors,
        constant,
        warmup_steps,
        decay_factor,
        steps_per_decay,
        steps_per_cycle,
        second_constant,
        second_constant_step,
        minimum,
    )


def plot(schedule: Any, n_steps: int) -> Any:
    """Returns a picture of a schedule, or of several: the rate at each step from 1 to `n_steps`.

    Args:
      schedule: a function from a step to a learning rate; or several, by the names of their lines.
      n_steps: how many steps; at least 1.

    Returns:
      A `matplotlib.figure.Figure`, which a notebook shows, and `savefig(path)` writes.

    Raises:
      ImportError: if there is no matplotlib; says how to install it.

    Example: `plot({'short': warmup(10, 0.1), 'long': warmup(500, 0.1)}, 1000)`.
    """
    _check_steps("n_steps", n_steps, 1)
    several = dict(schedule) if isinstance(schedule, Mapping) else {"": schedule}
    figure, (panel,) = _pictures.figure(1, "lr_schedules.plot", size=(7, 3))
    steps = sorted({round(1 + i * (n_steps - 1) / 1999) for i in range(2000)})
    for i, (name, each) in enumerate(several.items()):
        color = _pictures.COLORS[i % len(_pictures.COLORS)]
        panel.plot(steps, [float(each(step)) for step in steps], color=color, label=name)
    _pictures.label(panel, "step", "learning rate", legend=len(several) > 1 or "" not in several)
    return figure


def lambda_lr(optimizer: Any, schedule: Callable[[int], float]) -> Any:
    """Returns a `LambdaLR` with which the k-th `optimizer.step()` uses `schedule(k)`.

    LambdaLR counts from 0, where a warm-up is 0: a first step that moves nothing, and says nothing.
    This one counts from 1, and sets the base rate of every parameter group to 1, so that the
    schedule alone decides. Call its `step()` after each `optimizer.step()`, as usual.

    Args:
      optimizer: a `torch.optim.Optimizer`.
      schedule: a function from a step to a learning rate.

    Example:
      >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=123.)
      >>> scheduler = lambda_lr(optimizer, warmup(3, 1.0))
      >>> optimizer.param_groups[0]['lr']
      0.25
    """
    from torch.optim.lr_scheduler import LambdaLR

    for group in optimizer.param_groups:
        group["lr"] = 1.0
        group.pop("initial_lr", None)
    # A partial has no attributes of its own, so the scheduler's state_dict stays plain numbers.
    return LambdaLR(optimizer, functools.partial(_one_later, schedule))


@dataclass(frozen=True)
class Constant:
    """See `constant`."""

    value: float

    def __call__(self, step: int) -> float:
        """Returns the learning rate at `step`."""
        return float(self.value)


@dataclass(frozen=True)
class Warmup:
    """See `warmup`."""

    n_warmup_steps: int
    max_value: float

    def __post_init__(self) -> None:
        _check_steps("n_warmup_steps", self.n_warmup_steps, 0)

    def __call__(self, step: int) -> float:
        """Returns the learning rate at `step`."""
        return self.max_value * min(1.0, step / (self.n_warmup_steps + 1))


@dataclass(frozen=True)
class WarmupAndRsqrtDecay:
    """See `warmup_and_rsqrt_decay`."""

    n_warmup_steps: int
    max_value: float

    def __post_init__(self) -> None:
        _check_steps("n_warmup_steps", self.n_warmup_steps, 0)

    def __call__(self, step: int) -> float:
        """Returns the learning rate at `step`."""
        peak = self.n_warmup_steps + 1
        if step < peak:
            return self.max_value * (step / peak)
        return self.max_value * (math.sqrt(peak) / math.sqrt(step))


@dataclass(frozen=True)
class Multifactor:
    """See `multifactor`."""

    factors: str
    constant: float
    warmup_steps: int
    decay_factor: float
    steps_per_decay: int
    steps_per_cycle: int
    second_constant: float
    second_constant_step: int
    minimum: float

    def __post_init__(self) -> None:
        for name in self._names():
            if name not in _FACTORS:
                raise ValueError(
                    f"A factor of multifactor is one of {', '.join(_FACTORS)}; got {name!r} in "
                    f"{self.factors!r}. Factors stand with '*' between them."
                )
        _check_steps("warmup_steps", self.warmup_steps, 0)
        _check_steps("steps_per_decay", self.steps_per_decay, 1)
        _check_steps("steps_per_cycle", self.steps_per_cycle, 1)

    def __call__(self, step: int) -> float:
        """Returns the learning rate at `step`."""
        rate = 1.0
        for name in self._names():
            rate *= self._factor(name, step)
        return float(max(rate, self.minimum))

    def _names(self) -> list[str]:
        return [name.strip() for name in self.factors.split("*")]

    def _factor(self, name: str, step: int) -> float:
        if name == "constant":
            return self.constant
        if name == "two_constants":
            return self.constant if step < self.second_constant_step else self.second_constant
        if name == "linear_warmup":
            return min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        if name == "decay_every":
            return self.decay_factor ** (step // self.steps_per_decay)
        if name == "cosine_decay":
            cycles = max(0.0, (step - self.warmup_steps) / self.steps_per_cycle)
            return 0.5 * (1 + math.cos(math.pi * (cycles % 1.0)))
        # Both kinds of 1 / sqrt: at step 0 without a warm-up they are what they are at step 1.
        decay = 1 / math.sqrt(max(step, self.warmup_steps, 1))
        return decay * (math.sqrt(self.warmup_steps) if name == "rsqrt_normalized_decay" else 1)


def _one_later(schedule: Callable[[int], float], count: int) -> float:
    return schedule(count + 1)


def _check_steps(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} counts steps, so it is at least {least}; got {value}.")
