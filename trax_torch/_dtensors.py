"""Tensors of which each rank holds a part: whole, cut like others, and where a part belongs.

Such a tensor is a `DTensor`, on any mesh of ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trax_torch import _torch_private


def is_shard(tensor: torch.Tensor) -> bool:
    """Tells whether each rank holds a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> torch.Tensor:
    """Returns a tensor with the parts of all ranks brought together; collective if it has parts."""
    full: torch.Tensor = tensor.full_tensor() if is_shard(tensor) else tensor
    return full


def local(tensor: Any) -> torch.Tensor:
    """Returns this rank's part of a tensor, or the tensor."""
    own: torch.Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return own


def shard_like(value: torch.Tensor, tensor: Any) -> torch.Tensor:
    """Returns a value cut into parts as a tensor is; collective if it is cut, and otherwise."""
    if not is_shard(tensor):
        return whole(value)
    from torch.distributed.tensor import distribute_tensor

    if is_shard(value):
        cut: Any = value.to(dtype=tensor.dtype)
        is_alike = (cut.device_mesh, cut.placements) == (tensor.device_mesh, tensor.placements)
        return cut if is_alike else shard_like(whole(cut), tensor)

    # One whole value is on every rank, so none is sent.
    value = value.to(device=tensor.device, dtype=tensor.dtype)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def piece_of(tensor: Any) -> tuple[list[int], list[int]]:
    """Returns where this rank's part of a tensor begins in the whole, and its extents, by axis."""
    local_tensor = local(tensor)
    if not is_shard(tensor):
        return [0] * local_tensor.dim(), list(local_tensor.shape)
    return _torch_private.place_in_whole(tensor), list(local_tensor.shape)


def holders_of(tensor: Any) -> list[int]:
    """Returns the ranks that hold the same part of a cut tensor as this one, itself among them."""
    place = tensor.device_mesh.get_coordinate()
    if place is None:
        return []
    pairs = zip(place, tensor.placements, strict=True)
    index = tuple(slice(None) if each.is_replicate() else i for i, each in pairs)
    holders: list[int] = tensor.device_mesh.mesh[index].flatten().tolist()
    return sorted(holders)


def part_of(whole: torch.Tensor, box: tuple[Sequence[int], Sequence[int]]) -> torch.Tensor:
    """Returns the part of a whole that begins at a place, and has so many extents, by axis."""
    for axis, (begin, extent) in enumerate(zip(*box, strict=True)):
        whole = whole.narrow(axis, begin, extent)
    return whole


@torch.no_grad()
def fill_(tensor: Any, value: Any) -> None:
    """Sets a tensor, or this rank's part of one that is cut, to what is there of a whole one.

    Args:
      tensor: is changed in place.
      value: a tensor, cut or not; or what has a `read` that returns a box of one, given where it
        begins and its extents, so that no rank reads more than it holds.
    """
    if is_shard(value):
        tensor.copy_(shard_like(value, tensor))
    elif not isinstance(value, torch.Tensor):
        local(tensor).copy_(value.read(piece_of(tensor)))
    else:
        local(tensor).copy_(part_of(value, piece_of(tensor)))


def is_freed(tensor: torch.Tensor) -> bool:
    """Tells whether somebody has taken the memory of this rank's part of a tensor away."""
    own = local(tensor)
    return is_shard(tensor) and own.numel() > 0 and own.untyped_storage().nbytes() == 0


def in_memory(tensor: Any, device: torch.device) -> torch.Tensor:
    """Returns a new tensor on a device like one on the meta device, cut as that one is."""
    own = torch.empty_like(local(tensor), device=device)
    return with_part(own, tensor, device) if is_shard(tensor) else own


def with_part(own: torch.Tensor, tensor: Any, device: torch.device | None = None) -> torch.Tensor:
    """Returns a tensor cut as another one is, of which this rank's part is given.

    Args:
      own: the part.
      tensor: the other one.
      device: where to; by default where the other one is.
    """
    from torch.distributed.tensor import DTensor

    shape, stride = tensor.shape, torch.empty(tensor.shape, device="meta").stride()
    own = own.to(device or tensor.device)
    made: torch.Tensor = DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )
    return made
