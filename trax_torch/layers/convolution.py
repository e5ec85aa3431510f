"""Convolutions, on tensors whose axes stand in Trax's order: batch, space, channels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers import _predict
from trax_torch.layers import initializers as init
from trax_torch.layers._promotion import as_float
from trax_torch.layers._windows import KernelLayer, flat_pads, pads_of
from trax_torch.layers.base import Layer


class Conv(KernelLayer):
    """Slides a kernel over the axes of space: each output is a weighted sum over a window.

    Args:
      filters: number of output channels.
      kernel_size: the window's size along each axis of space; 1 to 3 of them.
      strides: how far the window moves along each; 1 by default.
      padding: `'VALID'` takes whole windows alone; `'SAME'` pads with zeros, half of them on each
        side and an odd one at the end, so that there are size / stride outputs, rounded up; or a
        pair of numbers for each axis.
      dimension_numbers: the order of axes in inputs, kernel and outputs: N is batch, C channels, O
        and I the kernel's channels out and in, other letters space. Where N comes first, extra
        leading axes are taken for batch.
      kernel_initializer: `(shape, rng) -> tensor`; Glorot normal by default.
      bias_initializer: likewise; normal with deviation 1e-6 by default.
      use_bias: False leaves the bias out.

    Weights in Trax's order: `(kernel, bias)`, or the kernel alone, with axes as `dimension_numbers`
    says, (height, width, in, out) by default. Inside they are `weight`, (out, in, height, width),
    and `bias`, as in `torch.nn.Conv2d`. Integer input is promoted to the weights' type.

    Raises:
      ValueError: if sizes, strides, padding or the names of axes do not fit each other.

    Example:
      >>> layer = Conv(8, (3, 3), strides=(2, 2), padding='SAME')
      >>> weights, _ = layer.init(torch.zeros(1, 5, 5, 3))
      >>> layer(torch.zeros(1, 5, 5, 3)).shape, weights[0].shape
      (torch.Size([1, 3, 3, 8]), torch.Size([3, 3, 3, 8]))

    Source: Trax `layers/convolution.py::Conv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        strides: Sequence[int] | None = None,
        padding: Any = "VALID",
        dimension_numbers: Sequence[str] = ("NHWC", "HWIO", "NHWC"),
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
        use_bias: bool = True,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            dimension_numbers,
            kernel_initializer,
            bias_initializer,
            use_bias,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, space..., in) to (batch, space..., out), axes ordered as they are named."""
        x, lead = self.merge_leading(x)
        x = x.permute(self._from_lhs)
        pads = pads_of(self._padding, x.shape[2:], self._kernel_size, self._strides)
        if all(before == after for before, after in pads):
            padding = [before for before, _ in pads]
        else:
            x, padding = F.pad(x, flat_pads(pads)), [0] * len(pads)
        if len(pads) == 1:  # as images of height 1, whose channels may stay last in memory
            kernel = self.weight.unsqueeze(2)
            steps, margins = (1, *self._strides), (0, *padding)
            y = F.conv2d(x.unsqueeze(2), kernel, self.bias, steps, margins).squeeze(2)
        else:
            convolve = F.conv2d if len(pads) == 2 else F.conv3d
            y = convolve(x, self.weight, self.bias, self._strides, padding)
        y = y.permute(self._to_out)
        return y.unflatten(0, lead) if lead else y


class CausalConv(Conv):
    """A convolution over time in which no position sees a later one.

    In predict mode the last `kernel_width - 1` positions of earlier calls are remembered.

    Args:
      filters: number of output channels.
      kernel_width: how many positions an output sees: its own and those before.
      kernel_initializer: `(shape, rng) -> tensor`; Glorot normal by default.
      bias_initializer: likewise; normal with deviation 1e-6 by default.
      use_bias: False leaves the bias out.

    Maps (batch, length, in) to (batch, length, filters). Weights in Trax's order: `(kernel, bias)`,
    (kernel_width, in, filters) and (filters,).

    Source: Trax `layers/convolution.py::CausalConv`, which forgets the past in predict mode.
    """

    def __init__(
        self,
        filters: int,
        kernel_width: int = 3,
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
        use_bias: bool = True,
    ):
        super().__init__(
            filters,
            (kernel_width,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            use_bias=use_bias,
        )

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing before the first position."""
        self._memory = _predict.Carry(can_branch=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, in) to (batch, length, filters)."""
        if x.shape[1] == 0:  # fewer positions than a window, which torch refuses
            return x.new_zeros(x.shape[0], 0, self._filters)
        return super().forward(_after_the_past(x, self._kernel_size[0] - 1, self._memory))


def Conv1d(
    filters: int,
    kernel_size: int,
    stride: int = 1,
    padding: Any = "VALID",
    kernel_initializer: init.Initializer | None = None,
    bias_initializer: init.Initializer | None = None,
    use_bias: bool = True,
) -> Conv:
    """Returns a `Conv` over one axis of space: it takes tensors (batch, width, channels)."""
    return Conv(
        filters,
        (kernel_size,),
        strides=(stride,),
        padding=padding,
        dimension_numbers=("NWC", "WIO", "NWC"),
        kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer,
        use_bias=use_bias,
    )


class CausalDepthwiseConv(Layer):
    """A causal convolution over time in which each channel has a kernel, and sees itself alone.

    In predict mode the last `kernel_size - 1` positions of earlier calls are remembered.

    Args:
      kernel_size: how many positions an output sees: its own and those before.
      kernel_initializer: `(shape, rng) -> tensor`; Glorot uniform by default.
      use_bfloat16: keeps the weights in bfloat16.

    Maps (batch, length, d_feature) to the same shape. Weights in Trax's order: the kernel alone,
    (kernel_size, d_feature); its first row weighs a position itself, its last the one longest ago.

    Source: Trax `layers/convolution.py::CausalDepthwiseConv`.
    """

    _weight_names = "weight"

    def __init__(
        self,
        kernel_size: int = 3,
        kernel_initializer: init.Initializer | None = None,
        use_bfloat16: bool = False,
    ):
        super().__init__()
        self._kernel_size = kernel_size
        self._kernel_initializer = kernel_initializer or init.GlorotUniformInitializer()
        self._dtype = torch.bfloat16 if use_bfloat16 else torch.float32
        self.weight: Any
        self.register_parameter("weight", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the kernel."""
        shape = (self._kernel_size, input_signature.shape[-1])
        self.weights = self._kernel_initializer(shape, self.rng).to(self._dtype)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing before the first position."""
        self._memory = _predict.Carry(can_branch=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, d_feature) to the same shape."""
        if x.shape[1] == 0:
            return x
        x = _after_the_past(as_float(x), self._kernel_size - 1, self._memory)
        kernel = self.weight.to(x.dtype).flip(0).t()[:, None, None]  # one channel in for each out
        x = x.unsqueeze(1).permute(0, 3, 1, 2)  # as images of height 1, channels last in memory
        return F.conv2d(x, kernel, groups=x.shape[1]).permute(0, 2, 3, 1).squeeze(1)


def _after_the_past(x: torch.Tensor, n: int, memory: Any) -> torch.Tensor:
    """Returns (batch, length, d) with the `n` positions before it, which are zeros at the start."""
    if memory is None or n == 0:
        return F.pad(x, (0, 0, n, 0))
    (past,) = memory.read((x.new_zeros(x.shape[0], n, x.shape[2]),))
    x = torch.cat([past, x], dim=1)
    memory.write((x[:, -n:],))
    return x
