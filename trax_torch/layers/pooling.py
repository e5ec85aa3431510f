"""Pooling: a window of each channel becomes one value. Tensors are (batch, space..., channels)."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from trax_torch.layers._promotion import as_float
from trax_torch.layers._windows import Pads, flat_pads, pads_of
from trax_torch.layers.base import PureLayer


def MaxPool(
    pool_size: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
) -> PureLayer:
    """Returns a layer that takes the maximum over windows; integers stay integers.

    Args:
      pool_size: the window's size along each axis of space; 1 to 3 of them.
      strides: how far the window moves along each; 1 by default, as in Trax.
      padding: `'VALID'` takes whole windows alone; `'SAME'` adds what no maximum sees, so that
        there are size / stride outputs, rounded up.

    Raises:
      ValueError: if there is no such padding, or not a stride for each axis.

    Example:
      >>> MaxPool()(torch.arange(9.).reshape(1, 3, 3, 1)).flatten()
      tensor([4., 5., 7., 8.])

    Source: Trax `layers/pooling.py::MaxPool`.
    """
    return _pool("MaxPool", _max, pool_size, strides, padding)


def SumPool(
    pool_size: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
) -> PureLayer:
    """Returns a layer that sums over windows, integers to int64; arguments are `MaxPool`'s.

    Source: Trax `layers/pooling.py::SumPool`.
    """
    return _pool("SumPool", _sum, pool_size, strides, padding)


def AvgPool(
    pool_size: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
) -> PureLayer:
    """Returns a layer that takes the mean over windows, a float; arguments are `MaxPool`'s.

    What `'SAME'` adds is not counted.

    Source: Trax `layers/pooling.py::AvgPool`.
    """
    return _pool("AvgPool", _mean, pool_size, strides, padding)


Reduce = Callable[[torch.Tensor, tuple[int, ...], tuple[int, ...], Pads], torch.Tensor]


def _pool(
    name: str,
    reduce: Reduce,
    pool_size: Sequence[int],
    strides: Sequence[int] | None,
    padding: str,
) -> PureLayer:
    window = tuple(pool_size)
    steps = (1,) * len(window) if strides is None else tuple(strides)
    if not 1 <= len(window) <= 3 or len(steps) != len(window):
        raise ValueError(
            f"{name} takes windows of 1 to 3 axes, and a stride for each; got pool_size={window} "
            f"and strides={steps}."
        )
    if padding.upper() not in ("SAME", "VALID"):
        raise ValueError(f"{name} pads by 'SAME' or 'VALID'; got {padding!r}.")
    f = functools.partial(
        _pooled, name=name, reduce=reduce, window=window, strides=steps, padding=padding.upper()
    )
    return PureLayer(f, name=f"{name}{window}".replace(" ", ""))


def _pooled(
    x: torch.Tensor,
    name: str,
    reduce: Reduce,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str,
) -> torch.Tensor:
    if x.dim() != len(window) + 2 or (
        padding == "VALID" and any(n < w for n, w in zip(x.shape[1:-1], window, strict=True))
    ):
        raise ValueError(
            f"{name} takes tensors (batch, space..., channels) with {len(window)} axes of space "
            f"that a window of {window} fits into; got shape {tuple(x.shape)}."
        )
    pads = pads_of(padding, x.shape[1:-1], window, strides)
    if len(window) == 1:  # as images of height 1, where one pass over channels-last memory is fast
        x, window, strides, pads = x.unsqueeze(1), (1, *window), (1, *strides), [(0, 0), *pads]
        return reduce(x.movedim(-1, 1), window, strides, pads).movedim(1, -1).squeeze(1)
    return reduce(x.movedim(-1, 1), window, strides, pads).movedim(1, -1)


def _max(
    x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> torch.Tensor:
    if not x.is_floating_point():
        lowest = 0 if x.dtype == torch.bool else torch.iinfo(x.dtype).min
        return _windows(_padded(x, pads, lowest), window, strides).amax(-1)
    pool = F.max_pool2d if len(window) == 2 else F.max_pool3d
    return pool(_padded(x, pads, -math.inf), window, strides)


def _sum(
    x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> torch.Tensor:
    x = _padded(x, pads, 0)
    if not x.is_floating_point():
        return _windows(x, window, strides).sum(-1)
    pool = F.avg_pool2d if len(window) == 2 else F.avg_pool3d
    return pool(x, window, strides, divisor_override=1)


def _mean(
    x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> torch.Tensor:
    x = as_float(x)
    if not any(n for pair in pads for n in pair):
        pool = F.avg_pool2d if len(window) == 2 else F.avg_pool3d
        return pool(x, window, strides)
    counts = _sum(torch.ones_like(x[:1, :1]), window, strides, pads)
    return _sum(x, window, strides, pads) / counts


def _padded(x: torch.Tensor, pads: Pads, value: float) -> torch.Tensor:
    if not any(n for pair in pads for n in pair):
        return x
    return F.pad(x, flat_pads(pads), value=value)


def _windows(x: torch.Tensor, window: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """Returns the values of each window, (batch, channels, space..., values).

    Torch's pools have no integers on some devices.
    """
    for axis, (size, step) in enumerate(zip(window, strides, strict=True), start=2):
        x = x.unfold(axis, size, step)
    return x.flatten(2 + len(window))
