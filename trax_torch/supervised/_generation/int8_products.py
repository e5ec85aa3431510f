"""Dense layers that multiply integers by integers, for decoding on a CPU.

Activations are rounded, too, each row by itself. Then a product needs no floats at all, and one
instruction takes 32 weights or more.
"""

import functools
import threading
import warnings
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from trax_torch import _torch_private
from trax_torch.layers import core
from trax_torch.supervised._generation.int8 import Int8Dense

# Of an activation, either way. Two products of 127 by 127 are the most that the 16 bits hold in
# which AVX2 adds them, and fbgemm takes what is rounded to begin at 0.
_STEPS = 63
_ENGINE = "fbgemm"


class Int8ProductDense(Int8Dense):
    """An `Int8Dense` whose activations are rounded, too: y = (a q') * s * scale + b.

    Of each row x, `a * s` is x to within half of s, which is the largest of its absolute values
    over 63; a are integers. So no row depends on those beside it. Sums are of integers, and
    exact; the rest is float32, whatever the model's type.
    """

    def __init__(self, dense: core.Dense):
        check_can_multiply()
        _known_to_torch()
        super().__init__(dense)
        _packed(self.weight)

    def __setstate__(self, state: dict[str, Any]) -> None:
        _known_to_torch()
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # nn.Module's has no types

    def _product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Returns (a q') * s * scale."""
        wide = x.float()
        largest = wide.abs().amax(-1, keepdim=True)
        largest = torch.where(largest == 0, 1.0, largest)  # no comparison, or NaN would be lost
        rows = (wide / largest).reshape(-1, x.shape[-1])
        if x.device.type == "cpu":
            y = torch.ops.trax_torch.int8_by_int8(rows, self.weight)
        else:
            y = F.linear((rows * _STEPS).round(), self.weight.float()) / _STEPS
        y = y.reshape(*x.shape[:-1], -1) if x.numel() else y.reshape(*x.shape[:-1], len(scale))
        product: torch.Tensor = (y * (largest * scale.float())).to(x.dtype)
        return product


def check_can_multiply() -> None:
    """Refuses where torch has no product of integers.

    Raises:
      ValueError: if there is none.
    """
    names = ("linear_prepack", "linear_with_input_q_dq_qweight_dq_output_fp32")
    missing = [name for name in names if not hasattr(torch.ops.quantized, name)]
    if missing or _ENGINE not in torch.backends.quantized.supported_engines:
        raise ValueError(
            f"activations='int8' needs a torch with {_ENGINE}, which is for x86; torch "
            f"{torch.__version__} has {torch.backends.quantized.supported_engines}"
            f"{f', without {missing}' if missing else ''}. Take activations='float'."
        )


# Weights as fbgemm reads them, and how often they had been written into; a tensor's own for as long
# as it lives.
_known: Any = WeakTensorKeyDictionary()
_packing = threading.Lock()


def _packed(q: torch.Tensor) -> Any:
    """Returns weights (n, d_in) as fbgemm reads them."""
    version = _torch_private.version(q)
    found = _known.get(q)
    if found is None or found[0] != version:
        with _packing, warnings.catch_warnings():
            # torch warns that a release to come may not make such tensors.
            warnings.simplefilter("ignore")
            ones = torch.ones(len(q), dtype=torch.float64)
            zeros = torch.zeros(len(q), dtype=torch.int64)
            whole = torch.quantize_per_channel(q.float(), ones, zeros, 0, torch.qint8)
            before = torch.backends.quantized.engine
            torch.backends.quantized.engine = _ENGINE
            try:
                found = version, torch.ops.quantized.linear_prepack(whole, None)
            finally:
                torch.backends.quantized.engine = before
        _known[q] = found
    return found[1]


@functools.cache
def _known_to_torch() -> torch.library.Library:
    """Makes the product an operation of torch's, once: that takes 0.06 s, which no import need.

    It is defined by hand, since `torch.library.custom_op` takes longer to call than a small product
    takes.
    """
    library = torch.library.Library("trax_torch", "FRAGMENT")
    library.define("int8_by_int8(Tensor x, Tensor q) -> Tensor")
    library.impl("int8_by_int8", _multiply, "CPU")
    torch.library.register_fake("trax_torch::int8_by_int8", _like_the_product, lib=library)
    return library


def _multiply(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Returns (a q') / 63, a the rounded 63 x, for rows x (n, d_in) between -1 and 1."""
    if not x.numel() or not q.numel():
        return x.new_zeros(len(x), len(q))
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    y: torch.Tensor = multiply(x, 1 / _STEPS, _STEPS + 1, _packed(q))
    return y


def _like_the_product(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], q.shape[0])
