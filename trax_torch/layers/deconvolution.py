"""Transposed convolutions."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from trax_torch.layers import initializers as init
from trax_torch.layers._windows import KernelLayer, flat_pads

_SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvTranspose(KernelLayer):
    """Spreads each position over a window: the convolution that goes back over a strided `Conv`.

    Args:
      filters: number of output channels.
      kernel_size: the window's size along each axis of space; 1 to 3 of them.
      strides: how far apart the inputs are set along each; 1 by default.
      padding: `'VALID'` gives (size - 1) * stride + max(window, stride) outputs; `'SAME'` gives
        size * stride.
      rhs_dilation: how far apart the kernel's values are set along each axis; 1 by default.
      dimension_numbers: the order of axes, as in `Conv`.
      kernel_initialzer: `(shape, rng) -> tensor`; Glorot normal by default. The name is Trax's.
      bias_initializer: likewise; normal with deviation 1e-6 by default.

    Weights in Trax's order: `(kernel, bias)`, (height, width, in, out) and (out,) by default. The
    kernel is not mirrored: it weighs as in `Conv` over inputs set apart by zeros.

    Raises:
      ValueError: if sizes, strides, padding or the names of axes do not fit each other.

    Example:
      >>> layer = ConvTranspose(30, (3, 3), strides=(2, 2), padding='SAME')
      >>> _ = layer.init(torch.zeros(1, 5, 5, 20))
      >>> layer(torch.zeros(1, 5, 5, 20)).shape
      torch.Size([1, 10, 10, 30])

    Source: Trax `layers/deconvolution.py::ConvTranspose`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        strides: Sequence[int] | None = None,
        padding: str = "VALID",
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Sequence[str] = ("NHWC", "HWIO", "NHWC"),
        kernel_initialzer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            dimension_numbers,
            kernel_initialzer,
            bias_initializer,
            use_bias=True,
        )
        n_axes = len(self._kernel_size)
        self._dilation = (1,) * n_axes if rhs_dilation is None else tuple(rhs_dilation)
        if len(self._dilation) != n_axes or not isinstance(self._padding, str):
            raise ValueError(
                f"ConvTranspose pads by 'SAME' or 'VALID' and takes a dilation for each of "
                f"{n_axes} axes; got padding={padding!r} and rhs_dilation={rhs_dilation}."
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, space..., in) to (batch, space..., out), axes ordered as they are named."""
        x, lead = self.merge_leading(x)
        x = x.permute(self._from_lhs)
        space = tuple(range(2, x.dim()))
        kernel = self.weight.transpose(0, 1).flip(space)
        spread = _SPREAD[len(space)]
        y = spread(x, kernel, None, self._strides, dilation=self._dilation)
        y = F.pad(y, flat_pads([self._crop(axis) for axis in range(len(space))]))
        y = y + self.bias.view(-1, *(1,) * len(space))
        y = y.permute(self._to_out)
        result: torch.Tensor = y.unflatten(0, lead) if lead else y
        return result

    def _crop(self, axis: int) -> tuple[int, int]:
        """How many zeros to add on each side of all that a kernel reaches; negative numbers cut."""
        window = (self._kernel_size[axis] - 1) * self._dilation[axis] + 1
        stride = self._strides[axis]
        if self._padding == "VALID":
            return 0, max(stride - window, 0)
        total = window + stride - 2
        before = window - 1 if stride > window - 1 else -(-total // 2)
        return before - (window - 1), total - before - (window - 1)
