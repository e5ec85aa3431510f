"""Matrix products as another processor may round them.

Which sum a processor takes first is its own affair, and differs with the number of rows, too. Here
a product is exact but for an error of pseudo-random size, up to the bound K u |a| |b| that holds
for sums of K products in any order, with float32's unit roundoff u; it is another for other numbers
of rows. What comes out exact in any order, such as sums of small integers, stays exact. A run of
the suite with it, `pytest --other-rounding`, shows which tests rest on one processor's last bits.
"""

import warnings

import torch

_UNIT = 2.0**-24
_kept = []  # the library undoes what it does when it goes


def install():
    """Replaces the CPU's matrix products in this process, and in those forked from it, for good."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is meant
        for name in ("mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm"):
            function = _Product(name) if "add" not in name else _ProductAndSum(name)
            library.impl(name, function, "CPU")
            library.impl(f"{name}.out", _into(function), "CPU")
    _kept.append(library)


class _Product:
    """One of the products without a sum."""

    def __init__(self, name):
        self._kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
        self._keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def __call__(self, a, b):
        if not a.is_floating_point() or a.dtype == torch.float64:
            return self.real(a, b)
        a, b, dtype = a.double(), b.double(), a.dtype
        return _rounded(self.real(a, b), self.error(a, b), dtype)

    def real(self, *args, **settings):
        return self._kernel.call_boxed(self._keys, *args, **settings)

    def error(self, a, b):
        """How far off a sum in another order may be."""
        return self.real(a.abs(), b.abs()) * (a.shape[-1] * _UNIT)


class _ProductAndSum(_Product):
    """One of those that add something."""

    def __call__(self, c, a, b, *, beta=1, alpha=1):
        if not a.is_floating_point() or a.dtype == torch.float64:
            return self.real(c, a, b, beta=beta, alpha=alpha)
        dtype = a.dtype
        c, a, b = c.double(), a.double(), b.double()
        exact = self.real(c, a, b, beta=beta, alpha=alpha)
        error = self.real(c, a.abs(), b.abs(), beta=0, alpha=1) * (a.shape[-1] * _UNIT)
        return _rounded(exact, error * abs(alpha), dtype)


def _into(function):
    def to(*args, out, **settings):
        result = function(*args, **settings)
        out.resize_(result.shape).copy_(result)
        return out

    return to


def _rounded(exact, error, dtype):
    near = exact.float()
    n_rows = near.numel() // near.shape[-1] if near.dim() and near.numel() else 1
    bits = near.contiguous().view(torch.int32).long() + n_rows.bit_length()
    noise = ((bits * 2654435761) >> 7) % 65536 / 32768.0 - 1.0
    is_sure = (near == exact) | ~error.isfinite()
    return torch.where(is_sure, exact, exact + noise * error).to(dtype)
