"""Dense layers whose weights have 4 bits, for decoding: half as much to read as of bytes."""

import torch

from trax_torch.layers import core
from trax_torch.supervised._generation import groups
from trax_torch.supervised._generation.int8 import Int8Dense


class Int4Dense(Int8Dense):
    """A `Dense` layer for inference: y = x w' + b, where w are integers of 4 bits times scales.

    Each output has a scale for every `group_size` of the inputs, of the type that w had.

    Args:
      dense: what to take the weights from; they are finite, of a multiple of `group_size` inputs.
      group_size: how many weights share a scale, one of `groups.SIZES`.

    Weights: `(q, scale, b)` of shapes (n_units, d_in / 2), two weights a byte, (n_units, d_in /
    group_size) and (n_units,), or `(q, scale)`.
    """

    _N_BITS = 4

    def __init__(self, dense: core.Dense, group_size: int):
        self._group_size = group_size
        super().__init__(dense)

    def _rounded(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return groups.rounded(w, self._group_size)

    def _of_few_rows(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return groups.by_words(x, self.weight, scale)
