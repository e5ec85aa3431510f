"""First values of weights: functions `(shape, rng) -> tensor`, drawn in float32 on the CPU.

On the CPU, so that one seed gives the same weights whatever the device they move to.
"""

import math
from collections.abc import Callable, Sequence

import torch

Initializer = Callable[..., torch.Tensor]


def RandomNormalInitializer(stddev: float = 1e-2) -> Initializer:
    """Returns an initializer that draws from a normal distribution of mean 0."""
    return _Normal(stddev)


def RandomUniformInitializer(lim: float = 1.0) -> Initializer:
    """Returns an initializer that draws uniformly from [-lim, lim)."""
    return _Uniform(lim)


def ScaledInitializer(
    out_dim: int, in_dim: int, scale: float, mode: str, distribution: str
) -> Initializer:
    """Returns an initializer whose variance is `scale` over a number of units.

    Args:
      out_dim: axis of the shape that counts outputs.
      in_dim: axis of the shape that counts inputs. The other axes, a kernel's window, multiply both.
      scale: the variance before the division.
      mode: divide by `'fan_in'`, `'fan_out'` or their mean, `'fan_avg'`.
      distribution: `'normal'` or `'uniform'`.

    Raises:
      ValueError: if `mode` or `distribution` is none of these, or a shape has under two axes.

    Source: Trax `layers/initializers.py::ScaledInitializer`; Glorot and Bengio 2010.
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"mode is 'fan_in', 'fan_out' or 'fan_avg'; got {mode!r}.")
    if distribution not in ("normal", "uniform"):
        raise ValueError(f"distribution is 'normal' or 'uniform'; got {distribution!r}.")
    return _Scaled(out_dim, in_dim, scale, mode, distribution)


def GlorotUniformInitializer(
    out_dim: int = -1, in_dim: int = -2, scale: float = 1.0
) -> Initializer:
    """Returns Glorot and Bengio's uniform initializer: limit sqrt(6 scale / (fan_in + fan_out))."""
    return ScaledInitializer(out_dim, in_dim, scale, "fan_avg", "uniform")


class _Normal:
    def __init__(self, stddev: float):
        self.stddev = stddev

    def __call__(
        self,
        shape: Sequence[int],
        rng: torch.Generator,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=rng) * self.stddev


class _Uniform:
    def __init__(self, lim: float):
        self.lim = lim

    def __call__(
        self,
        shape: Sequence[int],
        rng: torch.Generator,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        return (torch.rand(tuple(shape), generator=rng) * 2 - 1) * self.lim


class _Scaled:
    def __init__(self, out_dim: int, in_dim: int, scale: float, mode: str, distribution: str):
        self.out_dim, self.in_dim = out_dim, in_dim
        self.scale, self.mode, self.distribution = scale, mode, distribution

    def __call__(
        self,
        shape: Sequence[int],
        rng: torch.Generator,
        nonreceptive_dims: Sequence[int] | None = None,
    ) -> torch.Tensor:
        shape = tuple(shape)
        if len(shape) < 2:
            raise ValueError(
                f"A scaled initializer needs a shape of at least 2 axes, to count inputs and "
                f"outputs; got {shape}. Use RandomNormalInitializer for vectors."
            )
        aside = {axis % len(shape) for axis in nonreceptive_dims or ()}
        ends = {self.in_dim % len(shape), self.out_dim % len(shape)}
        window = math.prod(n for axis, n in enumerate(shape) if axis not in aside | ends)
        fan_in, fan_out = shape[self.in_dim] * window, shape[self.out_dim] * window
        units = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        variance = self.scale / units[self.mode]
        if self.distribution == "normal":
            return torch.randn(shape, generator=rng) * math.sqrt(variance)
        return (torch.rand(shape, generator=rng) * 2 - 1) * math.sqrt(3 * variance)
