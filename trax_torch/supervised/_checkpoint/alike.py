"""Which tensors of a checkpoint each rank is to have a part of: what is cut as its weight is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trax_torch import _distributed
from trax_torch.supervised._checkpoint import shards

_SLOTS = "opt_slots"  # what parts of slots begin with; the task's number follows
# The part 'state' names a callback by its class and a number. Others have whole what they saved.
_AVERAGE = re.compile(r"callback\.ExponentialMovingAverage\d+\.averages\.(.+)")


def like(
    parts: Mapping[str, Mapping[str, torch.Tensor]],
    trained: Sequence[Mapping[str, torch.Tensor]],
) -> shards.Like:
    """Returns what tells of which saved tensors each rank is to have a part, and how it is cut.

    Slots and averages are cut as their weights are, where they have their shape.

    Args:
      parts: tensors of now, by part and name; those in parts are looked for by these names.
      trained: of each task, what its optimizer has slots of, by name.
    """
    held = {**parts, **{f"{_SLOTS}{i}": named for i, named in enumerate(trained)}}

    def found(part: str, name: str) -> Any:
        average = _AVERAGE.fullmatch(name) if part == "state" else None
        if average is not None:
            return held["weights"].get(average[1])
        named, way = held.get(part, {}), name
        while way not in named and "." in way and part.startswith(_SLOTS):
            way = way.rpartition(".")[0]
        return named.get(way)

    def like_of(part: str, name: str, shape: torch.Size) -> Any:
        tensor = found(part, name)
        if tensor is None or tensor.shape != shape or not _distributed.is_shard(tensor):
            return None
        return tensor

    return like_of
