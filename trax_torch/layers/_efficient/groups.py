"""Rows and heads a few at a time, so that the scores of all need not be there at once."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.checkpoint import checkpoint

from trax_torch import _torch_private

_ALL = slice(None)


def check_parallel(n_heads: int, n_parallel_heads: int | None) -> int | None:
    """Returns how many heads are computed at once; None for all.

    Raises:
      ValueError: if it neither divides the number of heads nor is a multiple of it.
    """
    n = n_parallel_heads or None
    if n is not None and (n < 0 or (n % n_heads and n_heads % n)):
        raise ValueError(
            f"n_parallel_heads divides n_heads, or is a multiple of it for several rows at once; "
            f"got {n_parallel_heads} and n_heads={n_heads}. None computes all at once."
        )
    return n


def in_groups(
    f: Callable[[slice, slice], torch.Tensor], n_rows: int, n_heads: int, n: int | None
) -> torch.Tensor:
    """Returns f of all rows, summed over heads; n heads of rows at once.

    What f computes on its way is not kept for the backward pass, but computed again there, where
    there is more than one group.

    Args:
      f: a function of a slice of the rows and one of the heads, which draws no random numbers. It
        gives a tensor with those rows, to be added up over heads.
      n_rows: number of rows.
      n_heads: number of heads.
      n: how many heads at once, as `check_parallel` returns it.
    """
    if n is None or n >= n_rows * n_heads:
        return f(_ALL, _ALL)
    heads = [_ALL] if n >= n_heads else list(_cut(n_heads, n))
    sums = []
    for rows in _cut(n_rows, max(1, n // n_heads)):
        first, *rest = heads
        total = _recomputed(f, rows, first)
        for some in rest:
            total = total + _recomputed(f, rows, some)
        sums.append(total)
    return torch.cat(sums)


def _cut(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, start + size)


def _recomputed(
    f: Callable[[slice, slice], torch.Tensor], rows: slice, heads: slice
) -> torch.Tensor:
    if not torch.is_grad_enabled() or _torch_private.is_transformed():
        return f(rows, heads)
    result: torch.Tensor = checkpoint(f, rows, heads, use_reentrant=False, preserve_rng_state=False)
    return result
