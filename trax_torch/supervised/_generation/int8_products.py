"""Dense layers that multiply integers by integers, for decoding on a CPU.

Activations are rounded, too, each row by itself. Then a product needs no floats at all, and one
instruction takes 32 weights or more.
"""

from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers import core
from trax_torch.supervised._generation import groups, native
from trax_torch.supervised._generation.int4 import Int4Dense
from trax_torch.supervised._generation.int8 import Int8Dense

_STEPS = 63  # of an activation, either way; products.cpp says why no more
GROUP_SIZES = tuple(size for size in groups.SIZES if size >= 64)


class Int8ProductDense(Int8Dense):
    """An `Int8Dense` whose activations are rounded, too: y = (a q') * s * scale + b.

    Of each row x, `a * s` is x to within half of s, which is the largest of its absolute values
    over 63; a are integers. So no row depends on those beside it. Sums are of integers, and
    exact; the rest is float32, whatever the model's type.

    Where there is no C++ compiler, or another device than a CPU, the same is computed in floats.
    """

    def __init__(self, dense: core.Dense, *args: Any):
        super().__init__(dense, *args)
        self._is_native = not native.why_not()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # nn.Module's has no types
        self._is_native = not native.why_not()  # where it has come to

    def _product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Returns (a q') * s * scale."""
        wide = x.float()
        if self._is_native and x.device.type == "cpu":
            return self._multiplied(wide, scale.float()).to(x.dtype)
        largest = wide.abs().amax(-1, keepdim=True)
        largest = torch.where(largest == 0, 1.0, largest)  # no comparison, or NaN would be lost
        a = (wide / largest * _STEPS).round()
        return (F.linear(a, self._floats(scale.float())) * (largest / _STEPS)).to(x.dtype)

    def _multiplied(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.trax_torch.int8_linear(x, self.weight, scale)
        return y

    def _floats(self, scale: torch.Tensor) -> torch.Tensor:
        w: torch.Tensor = self.weight.float() * scale[:, None]
        return w


class Int4ProductDense(Int8ProductDense, Int4Dense):
    """An `Int4Dense` whose activations are rounded as an `Int8ProductDense`'s are.

    Args:
      dense: what to take the weights from.
      group_size: how many weights share a scale, one of `GROUP_SIZES`.
    """

    def _multiplied(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.trax_torch.int4_linear(x, self.weight, scale)
        return y

    def _floats(self, scale: torch.Tensor) -> torch.Tensor:
        return groups.floats(self.weight, scale, torch.float32)
