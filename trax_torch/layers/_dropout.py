"""Dropout: which values go, and by how much the others grow.

On a CPU torch draws a number in double precision for each value, which takes longer than most of
what a layer computes with it, and several times as long in compiled programs. Here one draw of 64
bits decides on four values.
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

_LEVELS = 1 << 16  # that 16 bits tell apart


def drop(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns x with each value set to 0 with a probability of `rate`, the others scaled up."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    return x * kept(x.shape, rate, x)


def kept(shape: Any, rate: float, like: torch.Tensor) -> torch.Tensor:
    """Returns factors of a mean of 1, each 0 with a probability of `rate`, else all the same.

    A rate is met to a thousandth of itself, and of what it leaves.

    Args:
      shape: how many are drawn, each for itself.
      rate: at least 0 and below 1.
      like: a tensor of the type and device that they are to have.
    """
    n_levels = round(rate * _LEVELS)
    is_close = abs(n_levels / _LEVELS - rate) <= 1e-3 * min(rate, 1 - rate)
    if like.device.type != "cpu" or not is_close:
        keep = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate)
        return keep / (1 - rate)
    n = math.prod(shape)
    draws = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-n // 4),))
    keep = draws.view(torch.int16)[:n].view(shape) >= n_levels - _LEVELS // 2
    return keep.to(like.dtype) * (_LEVELS / (_LEVELS - n_levels))


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attends by scaled dot products, and drops a share of the weights.

    Args:
      queries: tensor of shape (..., n, d).
      keys: tensor of shape (..., length, d).
      values: tensor of shape (..., length, d_value).
      mask: booleans that broadcast to (..., n, length), True where a query sees a key.
      dropout: the probability that a weight is dropped.
      is_causal: whether a query sees the keys up to its own position alone; then without a mask.

    Returns:
      A tensor of shape (..., n, d_value).
    """
    is_causal = bool(is_causal)  # of a length that torch.export leaves open, it is a symbol
    if dropout == 0 or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1).to(scores.dtype)  # autocast has made them wider
    return drop(weights, dropout) @ values
