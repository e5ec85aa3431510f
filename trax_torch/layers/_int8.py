"""Dense layers whose weights are bytes, for decoding.

A step of decoding takes as long as reading the weights does, and these are a quarter of float32's.
"""

import copy
import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers import base, core
from trax_torch.layers._hooks import has_hooks

# A word of four weights, lowest byte first. Its lower three are flipped to unsigned numbers, 128
# too large; the highest keeps its sign, and the word's.
_FLIP = 0x808080
_BYTES = (0xFF, 0xFF00, 0xFF0000, -0x1000000)


class Int8Dense(base.Layer):
    """A `Dense` layer for inference: y = (x q') * scale + b, with integers q of 8 bits.

    `q * scale` is w to within half of `scale`, which each of the outputs has for itself. All three
    are state: nothing of it is trained. `scale` and the bias are of the type that w had, and
    follow `.to(dtype)`; q stays what it is.

    Args:
      dense: what to take the weights from.

    Raises:
      ValueError: if it has no weights yet, or some that are not finite.
    """

    _weight_names: Any = ()
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, dense: core.Dense):
        super().__init__(name=f"Int8{dense.name}")
        if dense.weight is None:
            raise ValueError(
                f"{dense.name} has no weights yet to make integers of. Initialize the model, "
                f"model.init(signature), or load its weights, before."
            )
        w = dense.weight.detach()
        if not w.isfinite().all():
            raise ValueError(f"{dense.name} has weights that are not finite: 8 bits hold none.")
        scale = (w.float().abs().amax(1) / 127).to(w.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        q = (w.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("weight", q.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())
        self._state_names = (
            ("weight", "scale") if self.bias is None else ("weight", "scale", "bias")
        )
        self.training = dense.training
        self._memory = copy.deepcopy(dense._memory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., d_in) to (..., n_units)."""
        scale, b = self.scale, self.bias
        if x.dtype != scale.dtype:
            x, scale, b = core.promote(x, scale, b)
        y = self._product(x, scale)
        return y if b is None else y + b.to(y.dtype)  # a type that autocast may have chosen

    def _product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Returns (x q') * scale."""
        q = self.weight
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _in_parts(x, q, scale)
        is_step = x.device.type == "cpu" and self._memory is not None
        if not is_step or torch.is_autocast_enabled("cpu"):
            return F.linear(x, _floats(q, scale, x.dtype))
        if core.is_of_few_rows(x, x.numel() // x.shape[-1]) and x.shape[-1] % 4 == 0:
            return _by_words(x, q) * scale
        product: torch.Tensor = torch.ops.trax_torch.int8_product(x, q, scale)
        return product


def _floats(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Scaled before they are multiplied, or the sums might be too large for float16.
    return q.to(dtype) * scale[:, None].to(dtype)


def _in_parts(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns (x q') * scale by way of floats, 4 MB of them at a time, which a cache holds."""
    n_rows = max(1, 2**20 // q.shape[1])
    parts = zip(q.split(n_rows), scale.split(n_rows), strict=True)
    return torch.cat([F.linear(x, _floats(*part, x.dtype)) for part in parts], -1)


# One operation for the compiler, whose own way from bytes to floats is slow on AVX2.
_int8_product = torch.library.custom_op("trax_torch::int8_product", _in_parts, mutates_args=())


@_int8_product.register_fake
def _like_the_product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], q.shape[0])


def _by_words(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Returns x q' in a form of which the compiler makes one loop over q, four weights at a time.

    Measured with torch 2.13 on AVX2: 20 times as quick as bytes one by one, which the compiler
    would read through the stack, and 1.6 to 2 times as quick as the same loop over float32.
    """
    words_of_x = x.reshape(-1, q.shape[1] // 4, 4)
    parts = words_of_x.transpose(1, 2) * torch.tensor([[256.0**-i] for i in range(4)])
    too_much = 128 * words_of_x[:, :, :3].sum((1, 2))
    if hasattr(torch.ops.prims, "inductor_force_stride_order"):
        # Or this, and what is before it, would be computed anew for each row of q.
        order = (q.shape[1], q.shape[1] // 4, 1)
        parts = torch.ops.prims.inductor_force_stride_order(parts, order)
    # By way of floats, since of those alone are vectors read as such.
    words = q.view(torch.float32).view(torch.int32) ^ _FLIP
    bytes_ = [(words & mask).float() for mask in _BYTES]
    products = [
        functools.reduce(torch.add, [b * part[i] for i, b in enumerate(bytes_)]).sum(-1)
        for part in parts.unbind()
    ]
    y = torch.stack(products) - too_much[:, None]
    return y.reshape(*x.shape[:-1], q.shape[0])


def with_int8(model: base.Layer) -> base.Layer:
    """Returns a copy of a model with an `Int8Dense` in the place of each `Dense`.

    Those that are more than a Dense, by their class or by hooks, are copied as they are.
    """
    swapped: dict[int, Any] = {
        id(m): Int8Dense(m)
        for m in model.modules()
        if type(m) is core.Dense and (m.weight is None or not has_hooks(m))
    }
    return copy.deepcopy(model, swapped)
