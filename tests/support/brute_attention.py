"""Attention of the Reformer's kind, query by query, in numpy's double precision."""

import numpy as np


def by_head(x, w, b=None):
    """(length, d_model) and (heads, d_model, d) -> (heads, length, d)."""
    found = np.einsum("ld,hdk->hlk", x, w)
    return found if b is None else found + b[:, None]


def normalized(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def attend(q, keys, values, own, hidden):
    """What one query finds among some keys; own and hidden tell of each key."""
    scores = keys @ q / np.sqrt(len(q)) - 1e5 * np.asarray(own, dtype=float)
    scores = np.where(hidden, -1e9, scores)
    top = scores.max()
    weights = np.exp(scores - top)
    return weights @ values / weights.sum(), top + np.log(weights.sum())


def beside(chunk, n_chunks, n_before, n_after):
    return [(chunk + i) % n_chunks for i in range(-n_before, n_after + 1)]


def in_order(order, chunk_len, n_before, n_after):
    """Yields (query, the keys beside it), both of places in `order`; None fills the last chunk."""
    order = [*order, *[None] * (-len(order) % chunk_len)]
    n_chunks = len(order) // chunk_len
    chunks = [order[i * chunk_len : (i + 1) * chunk_len] for i in range(n_chunks)]
    for i, chunk in enumerate(chunks):
        keys = [k for j in beside(i, n_chunks, n_before, n_after) for k in chunks[j]]
        for query in chunk:
            if query is not None:
                yield query, keys


def self_attention(x, weights, mask, *, chunk_len, before, after, causal, share_qk):
    """(length, d_model) -> the same, by weights by name."""
    q, v = (by_head(x, weights[f"w_{s}"], weights.get(f"b_{s}")) for s in "qv")
    k = normalized(q) if share_qk else by_head(x, weights["w_k"], weights.get("b_k"))
    length = len(x)
    out = np.zeros_like(x)
    for h in range(len(q)):
        for i, keys in in_order(range(length), chunk_len or length, before, after):
            there = [0 if j is None else j for j in keys]
            hidden = [
                j is None or (causal and j > i) or (mask is not None and not mask[j]) for j in keys
            ]
            own = [share_qk and j == i for j in keys]
            vectors = [k[h, there], v[h, there]]
            for array in vectors:  # what fills a chunk is 0, if nothing else is seen
                array[[j is None for j in keys]] = 0
            out[i] += attend(q[h, i], *vectors, own, hidden)[0] @ weights["w_o"][h]
    return out


def buckets_of(vectors, rotations, factors):
    """(length, d) and (d, n_hashes, r) -> (n_hashes, length)."""
    rounds = np.einsum("ld,dnr->nlr", vectors, rotations)
    buckets, product, start = np.zeros(rounds.shape[:2], dtype=int), 1, 0
    for factor in factors:
        part = rounds[..., start : start + factor // 2]
        buckets += product * np.concatenate([part, -part], -1).argmax(-1)
        product, start = product * factor, start + factor // 2
    return buckets


def lsh_attention(x, weights, mask, rotations, factors, *, chunk_len, before, after, causal):
    """(length, d_model) -> the same; rotations (heads, d, n_hashes, r)."""
    q, v = (by_head(x, weights[f"w_{s}"], weights.get(f"b_{s}")) for s in "qv")
    out = np.zeros_like(x)
    length = len(x)
    for h in range(len(q)):
        buckets = buckets_of(q[h], rotations[h], factors)
        if mask is not None:
            buckets = np.where(mask, buckets, buckets.max() + 1)
        order = []
        for of_round in buckets:
            order += sorted(range(length), key=lambda i: (of_round[i], i))
            order += [None] * (-length % chunk_len)
        k = normalized(q[h])
        rounds = {i: [] for i in range(length)}
        for i, keys in in_order(order, chunk_len, before, after):
            there = [0 if j is None else j for j in keys]
            hidden = [
                j is None or (causal and j > i) or (mask is not None and not mask[j]) for j in keys
            ]
            rounds[i].append(attend(q[h, i], k[there], v[h, there], [j == i for j in keys], hidden))
        for i, found in rounds.items():
            masses = np.array([mass for _, mass in found])
            shares = np.exp(masses - masses.max())
            shares /= shares.sum()
            both = sum(s * f for s, (f, _) in zip(shares, found, strict=True))
            out[i] += both @ weights["w_o"][h]
    return out
