"""Locality-sensitive hashing: vectors of like direction come into one bucket.

Andoni et al. 2015, arXiv:1509.02897; Kitaev et al. 2020, arXiv:2001.04451. Random numbers are a
function of a seed that is a tensor, not of a generator: so a compiled program draws them, the same
on every device, and again in a backward pass.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers._efficient.chunks import attend_in_chunks, length_normalized

_WORD = 0xFFFFFFFF
_BEYOND = 2**31  # a bucket after all others


def factors_for(n_buckets: Any, length: int, chunk_len: int) -> tuple[int, ...]:
    """Returns the even numbers whose product is the number of buckets.

    Args:
      n_buckets: an even number, or some; None takes two for each chunk of a sequence, as two
        factors where those are more than 128.
      length: of the sequence, in positions.
      chunk_len: positions in a chunk.

    Raises:
      ValueError: if a number is not even.

    Source: Trax `layers/research/efficient_attention.py`, for the default.
    """
    if n_buckets is None:
        n = 2 * max(1, length // chunk_len)
        if n <= 128:
            return (n,)
        first = 2 ** math.ceil(math.log2(math.sqrt(n)))
        return first, 2 * (n // (2 * first))
    factors = (n_buckets,) if isinstance(n_buckets, int) else tuple(n_buckets)
    if not factors or any(not isinstance(n, int) or n < 2 or n % 2 for n in factors):
        raise ValueError(
            f"n_buckets is an even number, or a list of even numbers whose product counts; got "
            f"{n_buckets!r}. None chooses by the length."
        )
    return factors


def rotations_for(
    seed: torch.Tensor, n_heads: int, d: int, n_hashes: int, factors: Sequence[int]
) -> torch.Tensor:
    """Returns normal numbers (n_heads, d, n_hashes, sum of half the factors), keyed by a seed.

    Args:
      seed: an integer below 2**62, as a tensor; the result is on its device.
      n_heads: number of heads, each with rotations of its own.
      d: size of the vectors to rotate.
      n_hashes: number of rounds.
      factors: as from `factors_for`.

    Source: the 32-bit mixing function of Mulvey and Wellons, "hash-prospector"; Box and Muller
      1958, "A note on the generation of random normal deviates".
    """
    shape = (n_heads, d, n_hashes, sum(factors) // 2)
    counter = torch.arange(2 * math.prod(shape), device=seed.device)
    words = _mixed(_mixed(counter ^ (seed & _WORD)) ^ (seed >> 32))
    # In (0, 1), so that the logarithm is finite.
    u, angle = ((words.to(torch.float32) + 0.5) / 2**32).unflatten(0, (2, -1)).unbind(0)
    return (torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * angle)).view(shape)


def buckets_of(
    vectors: torch.Tensor, rotations: torch.Tensor, factors: Sequence[int]
) -> torch.Tensor:
    """Returns the bucket of each vector in each round, integers (..., heads, n_hashes, length).

    In a round, and for each factor, it is the axis that the rotated vector is nearest to, in
    either direction; a bucket's number is made of those of the factors, the first counting least.

    Args:
      vectors: floats (..., heads, length, d).
      rotations: as from `rotations_for`.
      factors: likewise.
    """
    vectors = vectors.detach()
    rounds = torch.einsum("...hld,hdnr->...hnlr", vectors, rotations.to(vectors.dtype))
    buckets, product = torch.zeros_like(rounds[..., 0], dtype=torch.int64), 1
    for factor, part in zip(factors, rounds.split([n // 2 for n in factors], -1), strict=True):
        buckets = buckets + product * torch.cat([part, -part], -1).argmax(-1)
        product *= factor
    return buckets


def attend_by_hash(
    queries: torch.Tensor,
    values: torch.Tensor,
    buckets: torch.Tensor,
    shown: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Attends to vectors of like direction: each round sorts them by bucket and cuts into chunks.

    The rounds lie one after another, so that a round's first chunk sees the last of the one before.
    What a query finds in its rounds is weighed by the rounds' sums of exponentials.

    Args:
      queries: floats (batch, heads, length, d), which are keys too.
      values: floats (batch, heads, length, d_v).
      buckets: integers (batch, heads, n_hashes, length).
      shown: which keys may be seen, booleans (batch, length); None for all. The others have a
        bucket of their own.
      **options: `chunk_len`, `n_before`, `n_after`, `causal` and `keep`, as for
        `attend_in_chunks`.

    Returns:
      Floats (batch, heads, length, d_v).
    """
    n_hashes, length = buckets.shape[-2:]
    if shown is not None:
        buckets = torch.where(shown[:, None, None, :], buckets, _BEYOND)
    # By bucket within a round, and by position within a bucket.
    order = (buckets * length + torch.arange(length, device=buckets.device)).argsort(-1)
    missing = -length % options["chunk_len"]  # a round begins with a chunk
    places = F.pad(order, (0, missing)).flatten(-2)
    rounds = torch.arange(n_hashes, device=buckets.device)[:, None]
    back = (order.argsort(-1) + rounds * (length + missing)).flatten(-2)
    if shown is not None or missing:
        if shown is None:
            shown = torch.ones(len(queries), length, dtype=torch.bool, device=queries.device)
        shown = shown[:, None, None, :].expand_as(order).gather(-1, order)
        shown = F.pad(shown, (0, missing)).flatten(-2)  # what fills up a round is hidden
    q, v = _taken(queries, places), _taken(values, places)
    found, mass = attend_in_chunks(
        q, length_normalized(q), v, places, shown, exclude_self=True, **options
    )
    found = _taken(found, back).unflatten(-2, (n_hashes, length))
    if n_hashes == 1:
        result: torch.Tensor = found.squeeze(-3)
        return result
    share = mass.gather(-1, back).unflatten(-1, (n_hashes, length)).softmax(-2)
    weighed: torch.Tensor = (found * share[..., None].to(found.dtype)).sum(-3)
    return weighed


def _taken(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the vectors of (..., length, d) at (..., n) places."""
    return x.gather(-2, places[..., None].expand(*places.shape, x.shape[-1]))


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Mixes the bits of words; products stay below 2**63."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)
