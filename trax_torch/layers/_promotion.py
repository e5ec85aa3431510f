"""Which types integers and Booleans take, where a function is one of numbers.

Where floats are computed, integers take torch's default float type, as in JAX.
"""

import torch


def as_float(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Returns integers and Booleans as floats; what is float or complex is returned as it is.

    Args:
      x: tensor (...).
      dtype: the type that integers take; torch's default float type if None.

    Example:
      >>> as_float(torch.tensor([1, 2])), as_float(torch.tensor([0.5], dtype=torch.float64)).dtype
      (tensor([1., 2.]), torch.float64)
    """
    if x.is_floating_point() or x.is_complex():
        return x
    return x.to(dtype or torch.get_default_dtype())


def as_number(x: torch.Tensor) -> torch.Tensor:
    """Returns Booleans and small integers as int32, where sums and signs do not overflow.

    Example:
      >>> -as_number(torch.tensor([True, False])), -as_number(torch.tensor([200]).byte())
      (tensor([-1,  0], dtype=torch.int32), tensor([-200], dtype=torch.int32))
    """
    if x.is_floating_point() or x.is_complex():
        return x
    return x.to(torch.promote_types(x.dtype, torch.int32))
