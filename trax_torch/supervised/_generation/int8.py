"""Dense layers whose weights are bytes, for decoding.

A step of decoding takes as long as reading the weights does, and these are a quarter of float32's.
"""

import copy
import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch._torch_private import contiguous_in_memory
from trax_torch.layers import base, core
from trax_torch.supervised._generation import groups


class Int8Dense(base.Layer):
    """A `Dense` layer for inference: y = (x q') * scale + b, with integers q of 8 bits.

    `q * scale` is w to within half of `scale`, which each of the outputs has for itself. Neither is
    trained. `scale` and the bias are of the type that w had, and follow `.to(dtype)`; q stays.

    Args:
      dense: what to take the weights from; they are finite.

    Weights: `(q, scale, b)` of shapes (n_units, d_in), (n_units,) and (n_units,), or `(q, scale)`.
    """

    _N_BITS = 8

    def __init__(self, dense: core.Dense):
        super().__init__(name=f"Int{self._N_BITS}{dense.name}")
        q, scale = self._rounded(dense.weight.detach())
        b = None if dense.bias is None else dense.bias.detach().clone()
        self.weight: Any
        self.scale: Any
        self.bias: Any
        for name, tensor in (("weight", q), ("scale", scale), ("bias", b)):
            own = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(name, own)
        self._weight_names = ("weight", "scale") if b is None else ("weight", "scale", "bias")
        self.training = dense.training
        self._memory = copy.deepcopy(dense._memory)
        self._settle()

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Refuses to: there is no distribution to draw these from."""
        raise ValueError(
            f"{self.name} takes its weights from a model's, and draws none. Initialize the model, "
            f"then quantize it."
        )

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
        wide = x if x.dtype == torch.float64 else x.float()
        if core.is_of_few_rows(wide, x.numel() // x.shape[-1]) and x.shape[-1] % 4 == 0:
            return self._of_few_rows(wide, scale).to(x.dtype)
        product: torch.Tensor = torch.ops.trax_torch.int8_product(x, q, scale)
        return product

    def _rounded(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _rounded(w)

    def _of_few_rows(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _by_words(x, self.weight) * scale.float()

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        named = super()._own_named(kind, tree)
        if "weight" in named and named["weight"].is_floating_point():
            raise ValueError(self._refusal(named["weight"]))
        return named

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.is_floating_point():
            args[-1].append(self._refusal(weight))  # the errors; torch would round to integers
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _refusal(self, weight: torch.Tensor) -> str:
        return (
            f"{self.name} takes weights of {self._N_BITS} bits; got {weight.dtype}. Load them into "
            f"the model that was quantized, and quantize it again."
        )


def _rounded(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns integers (n, d_in) and scales (n,) of w's type, for weights w (n, d_in)."""
    wide = w if w.dtype == torch.float64 else w.float()
    largest = wide.abs().amax(1)
    scale = (largest / 127).to(w.dtype)
    # Below the normal numbers a type rounds so coarsely that 127 scales may not be enough; half a
    # scale may be no number of it, but twice what is left over is.
    info, wide_scale = torch.finfo(w.dtype), scale.to(wide.dtype)
    is_short = 2 * (largest - 127 * wide_scale) > wide_scale
    scale = torch.where(is_short, scale + info.tiny * info.eps, scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = (wide / scale.to(wide.dtype)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q.contiguous(), scale


def _floats(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Scaled before they are multiplied, or the sums might be too large for float16.
    if scale.dim() == 2:
        return groups.floats(q, scale, dtype)
    return q.to(dtype) * scale[:, None].to(dtype)


def _in_parts(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns (x q') * scale by way of floats, 4 MB of them at a time, which a cache holds.

    Scales are (n,), or (n, groups), and q is as that wants it.
    """
    n_rows = max(1, 2**20 // x.shape[-1])
    parts = zip(q.split(n_rows), scale.split(n_rows), strict=True)
    return torch.cat([F.linear(x, _floats(*part, x.dtype)) for part in parts], -1)


# One operation for the compiler, whose own way from bytes to floats is slow on AVX2.
_int8_product = torch.library.custom_op("trax_torch::int8_product", _in_parts, mutates_args=())


@_int8_product.register_fake
def _like_the_product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], q.shape[0])


def _by_words(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Returns x q' in a form of which the compiler makes one loop over q, four weights at a time.

    Measured with torch 2.13 on AVX2: 15 times as quick as bytes one by one, which the compiler
    would read through the stack, and up to 1.6 times as quick as the same loop over float32.
    """
    # Part i is for the i-th bytes, the lowest first, which count 2**24 times as much at the top.
    parts = contiguous_in_memory(x.reshape(-1, q.shape[1] // 4, 4).transpose(1, 2) * 2.0**-24)
    # By way of floats, since only these are read as vectors.
    words = q.view(torch.float32).view(torch.int32)
    weights = [((words << (24 - 8 * i)) & -(2**24)).float() for i in range(4)]
    products = [
        functools.reduce(torch.add, [w * part[i] for i, w in enumerate(weights)]).sum(-1)
        for part in parts.unbind()
    ]
    return torch.stack(products).reshape(*x.shape[:-1], q.shape[0])
