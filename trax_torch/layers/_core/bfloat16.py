"""Products of bfloat16 on processors that have none: whether float32 takes their place."""

import torch

from trax_torch import _torch_private

# As many rows of an uncompiled product as pay for making float32 of a matrix. Seen with torch 2.13
# on AVX2: one row is as quick as in float32, 8 take 2.7 times as long, 64 six times.
_ROWS_THAT_PAY = 4

# Asked here once, since a compiler would look into the answer's cache.
LACKS_PRODUCTS = not _torch_private.cpu_multiplies_bfloat16()


def is_slow_bfloat16(x: torch.Tensor) -> bool:
    """Tells whether rows (..., n) of a step of decoding are quicker multiplied in float32."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    is_many = torch.compiler.is_compiling() or x.numel() // x.shape[-1] >= _ROWS_THAT_PAY
    return is_many and LACKS_PRODUCTS
