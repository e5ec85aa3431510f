"""Attention with scores written out: masks, a position's own key, and chunks side by side.

Vectors are (batch, heads, length, d) throughout. What is hidden gets a score of -1e9, a position's
own key 1e5 less than it has, so that it counts where nothing else is seen.
"""

import torch
from torch.nn import functional as F

_HIDDEN = -1e9
_OWN = 1e5


def length_normalized(x: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """Returns vectors divided by the root of their mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def hidden_from(places: torch.Tensor, of_keys: torch.Tensor, causal: bool) -> torch.Tensor | None:
    """Returns which keys are later than a query, booleans (..., n, m); None if none is hidden.

    Args:
      places: positions of the queries, integers (..., n).
      of_keys: positions of the keys, integers (..., m).
      causal: whether later ones are hidden.
    """
    return places[..., :, None] < of_keys[..., None, :] if causal else None


def either(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """Returns what one mask or the other marks; None marks nothing."""
    if a is None or b is None:
        return b if a is None else a
    return a | b


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor | None = None,
    own: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends to what is not hidden; a query from which all is hidden attends to all evenly.

    Args:
      queries: floats (..., n, d).
      keys: floats (..., m, d).
      values: floats (..., m, d_v).
      hidden: booleans that broadcast to (..., n, m), or None.
      own: likewise: which key is a query's own.
      keep: what to multiply the weights with (dropout), broadcasts to (..., n, m).

    Returns:
      `(found, mass)`: floats (..., n, d_v), and the logarithm of the sum of exponentials of the
      scores, (..., n), by which rounds of attention are weighed against each other.
    """
    scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # which holds -1e9
    if own is not None:
        scores = torch.where(own, scores - _OWN, scores)
    if hidden is not None:
        scores = scores.masked_fill(hidden, _HIDDEN)
    mass = scores.logsumexp(-1)
    # Not exp(scores - mass), in which a mass of -1e9 has lost the number of keys to rounding.
    weights = scores.softmax(-1)
    if keep is not None:
        weights = weights * keep
    return weights.to(values.dtype) @ values, mass


def beside(x: torch.Tensor, axis: int, n_before: int, n_after: int) -> torch.Tensor:
    """Puts each chunk's neighbours beside it, in order; the first chunk follows the last.

    Args:
      x: (..., n_chunks, chunk_len, ...), where `axis` is that of the chunks.
      axis: counted from the end, so negative.
      n_before: how many chunks before each.
      n_after: how many after.

    Returns:
      (..., n_chunks, (n_before + 1 + n_after) * chunk_len, ...).
    """
    if not n_before and not n_after:
        return x
    return torch.cat([x.roll(-i, axis) for i in range(-n_before, n_after + 1)], axis + 1)


def attend_in_chunks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    shown: torch.Tensor | None,
    *,
    chunk_len: int,
    n_before: int,
    n_after: int,
    causal: bool,
    exclude_self: bool,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends from each chunk to itself and the chunks beside it, in the order that is given.

    Where the length is no multiple of `chunk_len`, the last chunk is filled up with hidden keys.

    Args:
      queries, keys: floats (..., length, d).
      values: floats (..., length, d_v).
      places: position of each vector in its sequence, integers that broadcast to (..., length).
      shown: which keys may be seen, booleans likewise; None for all.
      chunk_len: how many vectors a chunk has.
      n_before: how many chunks before its own a query sees; before the first comes the last.
      n_after: how many after.
      causal: hides keys of later positions.
      exclude_self: weighs down keys of the query's own position.
      keep: as for `attend`, (chunk_len, (n_before + 1 + n_after) * chunk_len).

    Returns:
      As `attend`.
    """
    length = queries.shape[-2]
    missing = -length % chunk_len
    if missing:
        there = torch.ones(length, dtype=torch.bool, device=queries.device)
        shown = F.pad(there if shown is None else there & shown, (0, missing))
        places = F.pad(places, (0, missing), value=-1)
        queries, keys, values = (F.pad(x, (0, 0, 0, missing)) for x in (queries, keys, values))
    q, k, v = (x.unflatten(-2, (-1, chunk_len)) for x in (queries, keys, values))
    k, v = (beside(x, -3, n_before, n_after) for x in (k, v))
    places = places.unflatten(-1, (-1, chunk_len))
    of_keys = beside(places, -2, n_before, n_after)
    hidden = hidden_from(places, of_keys, causal)
    if shown is not None:
        shown = beside(shown.unflatten(-1, (-1, chunk_len)), -2, n_before, n_after)
        hidden = either(hidden, ~shown[..., None, :])
    own = places[..., :, None] == of_keys[..., None, :] if exclude_self else None
    found, mass = attend(q, k, v, hidden, own, keep)
    return found.flatten(-3, -2)[..., :length, :], mass.flatten(-2)[..., :length]
