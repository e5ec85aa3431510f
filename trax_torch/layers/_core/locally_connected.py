"""LocallyConnected1d: a convolution whose filters differ from position to position.

Trax keeps it in `layers/core.py`, and so it is shown there.
"""

from typing import Any

import torch

from trax_torch import _nest
from trax_torch.layers import initializers as init
from trax_torch.layers._promotion import as_float
from trax_torch.layers.base import Layer


class LocallyConnected1d(Layer):
    """Maps each window of a sequence to `filters` numbers, by weights of that window alone.

    The sequence is as long as the one it was initialized for.

    Args:
      filters: size of the output vectors.
      kernel_size: how many positions a window has; an odd number.
      kernel_initializer: `(shape, rng, nonreceptive_dims) -> tensor` for w; Glorot uniform by
        default.
      bias_initializer: `(shape, rng) -> tensor` for b; normal with deviation 1e-6 by default.
      use_bias: False leaves b out.
      padding: what a window sees beyond the ends: zeros for `'SAME'`, the other end for `'WRAP'`;
        `'VALID'` has no windows that reach there.

    Weights in Trax's order: `(w, b)`, or `w` alone without bias. w is (length, kernel_size, d_in,
    filters), its first axis the position that is read; b is (windows, filters).

    Raises:
      ValueError: if kernel_size is even, or there is no such padding.
      LayerError: if a sequence has another length.

    Source: Trax `layers/core.py::LocallyConnected1d`. There as here, `'VALID'` reads the kernel
      from its end and the other two from its start.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
        use_bias: bool = True,
        padding: str = "VALID",
    ):
        super().__init__(name=f"LocallyConnected1d_{filters}_{kernel_size}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"A window has an odd number of positions, as many before its middle as after; got "
                f"kernel_size={kernel_size}."
            )
        if padding not in ("VALID", "SAME", "WRAP"):
            raise ValueError(f"padding is 'VALID', 'SAME' or 'WRAP'; got {padding!r}.")
        self._filters = filters
        self._kernel_size = kernel_size
        self._kernel_initializer = kernel_initializer or init.GlorotUniformInitializer()
        self._bias_initializer = bias_initializer or init.RandomNormalInitializer(1e-6)
        self._padding = padding
        self._weight_names = ("w", "b") if use_bias else "w"
        self.w: Any
        self.b: Any
        self.register_parameter("w", None)
        self.register_parameter("b", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws w, and b where there is one."""
        length, d_in = input_signature.shape[-2:]
        windows = length - self._kernel_size + 1 if self._padding == "VALID" else length
        if windows < 1:
            raise ValueError(
                f"A window of {self._kernel_size} positions does not fit in a sequence of {length}."
                f" Use a smaller kernel_size, or padding='SAME'."
            )
        shape = (length, self._kernel_size, d_in, self._filters)
        w = _nest.to_tensor(self._kernel_initializer(shape, self.rng, nonreceptive_dims=[0]))
        if self._weight_names == "w":
            self.weights = w
        else:
            b = _nest.to_tensor(self._bias_initializer((windows, self._filters), self.rng))
            self.weights = (w, b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., length, d_in) to (..., windows, filters)."""
        length = x.shape[-2]
        if length != self.w.shape[0]:
            raise ValueError(
                f"{self._name} has weights for sequences of {self.w.shape[0]} positions; got "
                f"{length}. Pad or cut the sequences, or initialize it for their length."
            )
        x = as_float(x, self.w.dtype)
        read = torch.einsum("...lp,lkpd->...kld", x, self.w)  # what each position gives each window
        size, reach = self._kernel_size, self._kernel_size // 2
        if self._padding == "VALID":
            parts = [read[..., k, size - 1 - k : length - k, :] for k in range(size)]
        elif self._padding == "WRAP":
            parts = [read[..., k, :, :].roll(reach - k, dims=-2) for k in range(size)]
        else:
            wide = torch.nn.functional.pad(read, (0, 0, reach, reach))
            parts = [wide[..., k, k : k + length, :] for k in range(size)]
        result = sum(parts[1:], start=parts[0])
        return result if self.b is None else result + self.b
