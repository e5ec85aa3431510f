"""Tensors of which each rank holds a part: whole, cut like others, and where a part belongs.

Such a tensor is a `DTensor`, on any mesh of ranks.
"""

from typing import Any

import torch
import torch.distributed as dist

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


def is_first_copy(tensor: Any) -> bool:
    """Tells whether this rank is the first of those that hold the same part of a tensor."""
    if not is_shard(tensor):
        return not dist.is_initialized() or dist.get_rank() == 0
    place = tensor.device_mesh.get_coordinate()
    pairs = zip(place or [], tensor.placements, strict=False)
    return place is not None and not any(i for i, each in pairs if each.is_replicate())


def with_part(own: torch.Tensor, tensor: Any) -> torch.Tensor:
    """Returns a tensor cut as another one is, of which this rank's part is given."""
    from torch.distributed.tensor import DTensor

    shape, stride = tensor.shape, torch.empty(tensor.shape, device="meta").stride()
    own = own.to(tensor.device)
    made: torch.Tensor = DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )
    return made
