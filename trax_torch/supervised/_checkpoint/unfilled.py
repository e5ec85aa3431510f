"""Tensors without first numbers: of a model on the meta device that nobody has filled yet."""

from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _distributed, _torch_private
from trax_torch._errors import CheckpointError


@dataclass(frozen=True)
class Unfilled:
    """A tensor that has memory, and no numbers in it.

    Attributes:
      name: of the tensor in the model.
      tensor: the tensor, or this rank's part.
      version: how often it had been written into by then.
    """

    name: str
    tensor: Any
    version: int

    def is_left(self) -> bool:
        """Tells whether nothing was written into what this rank has of it since, if that is any."""
        with torch.no_grad():
            n_own = _distributed.local(self.tensor).numel()
        return bool(n_own) and times_written(self.tensor) == self.version


@torch.no_grad()
def times_written(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was written into, as a whole or as this rank's part."""
    times = _torch_private.version(tensor)
    if _distributed.is_shard(tensor):  # it counts by itself, and so does the part
        times += _torch_private.version(_distributed.local(tensor))
    return times


def left(unfilled: list[Unfilled], world: _distributed.World) -> list[Unfilled]:
    """Returns those that have no numbers on some rank, the same on all."""
    if not unfilled:
        return []
    counts = world.sum([float(each.is_left()) for each in unfilled])
    return [each for each, n in zip(unfilled, counts, strict=True) if n]


def check(unfilled: list[Unfilled], world: _distributed.World) -> None:
    """Raises CheckpointError, by name, if tensors have no numbers; the same on all ranks."""
    names = [each.name for each in left(unfilled, world)]
    if names:
        raise CheckpointError(
            f"The model was built on the meta device, and nothing has given values to "
            f"{', '.join(names[:3])} ({len(names)} in all). Load them: "
            f"supervised.load_weights(loop.model, 'file'); or give the module that has them a "
            f"reset_parameters() that sets them; or build the model with memory."
        )
