"""What layers with windows share: axes by name, a kernel and a bias, padding.

PyTorch wants channels before space. A tensor with channels last is one of its memory formats, so
that axes are renamed and not moved.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trax_torch.layers import base
from trax_torch.layers import initializers as init
from trax_torch.layers._promotion import as_float
from trax_torch.layers.base import Layer

Pads = list[tuple[int, int]]


class KernelLayer(Layer):
    """What convolutions have in common: axes by name, a kernel and a bias."""

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        strides: Sequence[int] | None,
        padding: Any,
        dimension_numbers: Sequence[str],
        kernel_initializer: init.Initializer | None,
        bias_initializer: init.Initializer | None,
        use_bias: bool,
    ):
        super().__init__()
        kernel_size = tuple(kernel_size)
        self._filters = filters
        self._kernel_size = kernel_size
        self._strides = (1,) * len(kernel_size) if strides is None else tuple(strides)
        self._padding = padding.upper() if isinstance(padding, str) else padding
        self._lhs, self._rhs, self._out = dimension_numbers
        self._check(self._name)
        self._kernel_initializer = kernel_initializer or init.GlorotNormalInitializer(
            self._rhs.index("O"), self._rhs.index("I")
        )
        self._bias_initializer = bias_initializer or init.RandomNormalInitializer(1e-6)
        self._use_bias = use_bias
        # Positions, in tensors ordered as the names say, of what PyTorch wants.
        space = [c for c in self._rhs if c not in "OI"]
        self._from_lhs = [self._lhs.index(c) for c in ("N", "C", *space)]
        self._from_rhs = [self._rhs.index(c) for c in ("O", "I", *space)]
        self._to_rhs = [["O", "I", *space].index(c) for c in self._rhs]
        self._to_out = [["N", "C", *space].index(c) for c in self._out]
        self.weight: Any
        self.bias: Any
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the kernel, and the bias where there is one."""
        n_extra = len(input_signature.shape) - len(self._lhs)
        sizes = iter(self._kernel_size)
        shape = tuple(
            self._filters
            if c == "O"
            else input_signature.shape[n_extra + self._lhs.index("C")]
            if c == "I"
            else next(sizes)
            for c in self._rhs
        )
        kernel = self._kernel_initializer(shape, self.rng)
        if self._use_bias:
            self.weights = kernel, self._bias_initializer(self._bias_shape(), self.rng)
        else:
            self.weights = kernel

    def _check(self, name: str) -> None:
        n_axes = len(self._kernel_size)
        if not 1 <= n_axes <= 3 or len(self._strides) != n_axes:
            raise ValueError(
                f"{name} takes kernels of 1 to 3 axes, and a stride for each; got kernel_size="
                f"{self._kernel_size} and strides={self._strides}."
            )
        if self._padding not in ("SAME", "VALID") and (
            isinstance(self._padding, str) or [len(pair) for pair in self._padding] != [2] * n_axes
        ):
            raise ValueError(
                f"{name} pads by 'SAME', 'VALID', or a pair of numbers for each of {n_axes} axes; "
                f"got {self._padding!r}."
            )
        space = sorted(set(self._rhs) - set("OI"))
        wanted = [sorted([*letters, *space]) for letters in ("NC", "OI", "NC")]
        if [sorted(spec) for spec in (self._lhs, self._rhs, self._out)] != wanted or len(
            space
        ) != n_axes:
            raise ValueError(
                f"{name} needs dimension_numbers that name batch N, channels C, kernel axes O and "
                f"I, and {n_axes} axes of space, such as ('NHWC', 'HWIO', 'NHWC'); got "
                f"{(self._lhs, self._rhs, self._out)}."
            )

    def _bias_shape(self) -> tuple[int, ...]:
        """The shape that broadcasts over outputs, without leading ones."""
        n_after = len(self._out) - 1 - self._out.index("C")
        return (self._filters, *(1,) * n_after)

    def merge_leading(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Returns the input with extra leading axes made one with the batch, and their sizes."""
        n_extra = x.dim() - len(self._lhs)
        if n_extra < 0 or (n_extra and not self._lhs[0] == self._out[0] == "N"):
            raise ValueError(
                f"{self._name} takes tensors with axes {self._lhs}; got shape {tuple(x.shape)}. "
                f"More axes are taken for batch where N comes first."
            )
        x = as_float(x, self.weight.dtype)
        if not n_extra:
            return x, ()
        return x.flatten(0, n_extra), tuple(x.shape[: n_extra + 1])

    # The kernel is kept in PyTorch's order, (out, in, space...), and shown in Trax's.

    def _own_tree(self, kind: str) -> Any:
        if kind == "state":
            return super()._own_tree(kind)
        if self.weight is None:
            return ()
        kernel = self.weight.permute(self._to_rhs)
        return (kernel, self.bias.view(self._bias_shape())) if self._use_bias else kernel

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "state":
            return super()._own_named(kind, tree)
        names = ("weight", "bias") if self._use_bias else ("weight",)
        form = "(kernel, bias)" if self._use_bias else "a kernel"
        tensors = base.expect_tensors(self, tree, names, form)
        if tensors["weight"].dim() != len(self._rhs):
            raise ValueError(
                f"{self._name} needs a kernel with axes {self._rhs}; got shape "
                f"{tuple(tensors['weight'].shape)}."
            )
        tensors["weight"] = tensors["weight"].permute(self._from_rhs)
        if self._use_bias:
            tensors["bias"] = tensors["bias"].flatten()
        return tensors


def pads_of(
    padding: Any, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Pads:
    """Returns how much to pad before and after each axis of space.

    Args:
      padding: `'VALID'`, `'SAME'`, or the answer itself.
      sizes: of the axes of space.
      window: sizes of the window.
      strides: how far it moves.

    Example:
      >>> pads_of('SAME', [5, 6], [3, 3], [1, 2])
      [(1, 1), (0, 1)]
    """
    if padding == "VALID":
        return [(0, 0)] * len(window)
    if padding == "SAME":
        return [_same_pad(*axis) for axis in zip(sizes, window, strides, strict=True)]
    return [(before, after) for before, after in padding]


def flat_pads(pads: Pads) -> list[int]:
    """Returns pads as `F.pad` wants them: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def _same_pad(size: int, window: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
