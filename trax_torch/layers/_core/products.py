"""Products x w' of decoding on a CPU, where others are quicker than what torch takes, MKL's.

Measured with torch 2.13 on an AMD EPYC with AVX2, one thread.
"""

import torch

from trax_torch import _torch_private

# The processor that was measured: those with AVX-512 are mostly such as MKL is made for.
IS_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"

_ROWS = range(9, 257)
_LEAST_WEIGHTS = 1_500_000  # less of them lie in a cache, where MKL is quicker


def is_quicker_turned_round(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Tells whether w x' is quicker than x w', for the few rows of a step on a CPU.

    For a few rows MKL copies a matrix on the right before it multiplies, which is most of the time;
    one on the left it reads once: 1.2 to 1.9 times as quick.
    """
    n_out, n_in = w.shape
    n_rows = x.numel() // n_in
    return n_rows > 1 and (n_out >= n_in or n_rows in (4, 5))


def turned_round(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """Returns x w' + b as the transposed of w x'."""
    rows = x.reshape(-1, x.shape[-1]).contiguous().t()  # the other order is half as quick
    y = w @ rows if b is None else torch.addmm(b[:, None], w, rows)
    return y.t().reshape(*x.shape[:-1], w.shape[0])


def is_quicker_by_onednn(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Tells whether oneDNN is quicker with a large matrix and the rows of a prompt, or of a batch.

    1.2 to 2.5 times as quick for w of (2304, 768) to (50257, 768) and (11008, 4096), as quick for
    (768, 3072), and with no more memory.
    """
    if not IS_AVX2 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if w.numel() < _LEAST_WEIGHTS or x.numel() // x.shape[-1] not in _ROWS:
        return False
    is_plain = x.dtype == w.dtype == torch.float32 and w.is_contiguous()
    if not is_plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if type(x) is not torch.Tensor or _torch_private.is_transformed():
        return False
    return bool(torch.backends.mkldnn.enabled) and _torch_private.onednn_linear() is not None


def by_onednn(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """Returns x w' + b by oneDNN."""
    multiply = _torch_private.onednn_linear()
    assert multiply is not None
    y: torch.Tensor = multiply(x, w, b, "none", [], "")
    return y
