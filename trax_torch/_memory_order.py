"""In which order a tensor's axes lie in memory: what 'channels_last' and transposing change.

Fused kernels walk weights, gradients and slots in the order of memory, so slots must lie as their
weights do. An order is a list of axes, the one of the largest stride first; that of a contiguous
tensor is `[0, 1, ...]`. Gaps in memory are not part of it.
"""

from collections.abc import Sequence

import torch


def order_of(tensor: torch.Tensor) -> list[int]:
    """Returns a tensor's axes in the order of memory."""
    strides = tensor.stride()
    axes = list(range(len(strides)))
    if 0 in strides:  # it repeats itself, and copies of it are contiguous
        return axes
    return sorted(axes, key=lambda axis: -strides[axis])


def empty_in_order(
    shape: Sequence[int],
    dtype: torch.dtype,
    order: Sequence[int],
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Returns a tensor, not filled, whose axes lie in memory in an order, without gaps."""
    there = torch.empty([shape[axis] for axis in order], dtype=dtype, device=device)
    return there.permute([order.index(axis) for axis in range(len(order))])


def in_order(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Returns a tensor whose axes lie in memory in an order, without gaps; a copy if they do not.

    Args:
      tensor: of a shape of as many axes as the order has.
      order: as `order_of` gives it.
    """
    if order_of(tensor) == list(order) and _has_no_gaps(tensor, order):
        return tensor
    place = empty_in_order(tensor.shape, tensor.dtype, order, tensor.device)
    return place.copy_(tensor.detach())


def _has_no_gaps(tensor: torch.Tensor, order: Sequence[int]) -> bool:
    return tensor.permute(list(order)).is_contiguous()
