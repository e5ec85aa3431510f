"""Weights of 4 bits in groups: how they are rounded, how they lie in words, and their product.

Of each row, a block of 8 L weights lies in L words of 32 bits: weight i L + j in the i-th four bits
of word j, the lowest first. So one operation with a vector of words is for weights that lie side by
side, of one group. The highest four bits hold q, by twos' complement; the others hold q + 8.
products.cpp reads them, too, where a block is a group.
"""

import torch

from trax_torch._torch_private import contiguous_in_memory

SIZES = (32, 64, 128, 256)
_BLOCK = 64  # where it divides a row: 8 words are a vector of AVX2


def rounded(w: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns bytes (n, d_in / 2) and scales (n, d_in / group_size) for weights w (n, d_in).

    A scale, of either sign, is such that the largest weight of its group is -8 scales. The others
    are within half a scale, but those above 7.5, which are within one.
    """
    wide = w if w.dtype == torch.float64 else w.float()
    groups = wide.reshape(len(w), -1, group_size)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).to(w.dtype)
    # Below the normal numbers a type may round so coarsely that 8 scales are not enough.
    info, is_short = torch.finfo(w.dtype), 8 * scale.to(wide.dtype).abs() < largest.abs()
    scale = torch.where(is_short, scale - largest.sign().to(w.dtype) * info.tiny * info.eps, scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    q = (groups / scale.to(wide.dtype)).round().clamp(-8, 7).to(torch.int32)
    parts = q.reshape(len(w), -1, 8, _n_words(w.shape[1], group_size))
    parts[:, :, :7] += 8
    words = (parts << _shifts(w.device)).sum(2, dtype=torch.int32)
    return words.reshape(len(w), -1).view(torch.uint8), scale[..., 0].contiguous()


def floats(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weights (n, d_in) that bytes and scales stand for."""
    n, group_size = len(q), 2 * q.shape[1] // scale.shape[1]
    words = q.view(torch.int32).reshape(n, -1, 1, _n_words(2 * q.shape[1], group_size))
    integers = (((words ^ -(2**31)) >> _shifts(q.device)) & 15) - 8  # all of them hold q + 8
    return (integers.reshape(n, -1, group_size).to(dtype) * scale[..., None].to(dtype)).flatten(1)


def by_words(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns x w' for float32 rows x, in a form of which the compiler makes one loop over q.

    Four bits are taken where they stand in a word, so 2**(4 i) as large; x is as much smaller. Each
    group of a block is summed by itself: together they are too much for the compiler, which would
    write them to memory first.
    """
    group_size = 2 * q.shape[1] // scale.shape[1]
    n_words = _n_words(2 * q.shape[1], group_size)
    n_each = group_size // n_words  # of a word's eight, how many are of one group
    firsts = range(0, 8, n_each)
    # By way of floats, since only these are read as vectors.
    words = q.view(torch.float32).view(torch.int32).reshape(len(q), -1, n_words)
    weights = [(words & (15 << 4 * i if i < 7 else -(2**28))).float() for i in range(8)]
    blocks = x.reshape(-1, words.shape[1], 8, n_words)
    x_parts = contiguous_in_memory(blocks / (1 << _shifts(x.device)).float())
    sums = [blocks[:, :, i : min(i + n_each, 7)].sum(2) for i in firsts]
    eights = contiguous_in_memory(torch.stack(sums, 2) * -8)  # all but the highest are q + 8
    scales = scale.float().reshape(len(q), -1, len(firsts), 1)
    products = []
    for part, eight in zip(x_parts.unbind(), eights.unbind(), strict=True):
        of_groups = []
        for g, i in enumerate(firsts):
            terms = [weights[j] * part[:, j] for j in range(i, i + n_each)]
            of_groups.append((_sum([*terms, eight[:, g]]) * scales[:, :, g]).sum((-1, -2)))
        products.append(_sum(of_groups))
    return torch.stack(products).reshape(*x.shape[:-1], len(q))


def _n_words(d_in: int, group_size: int) -> int:
    """Returns how many words a block has."""
    block = max(_BLOCK, group_size)
    return (block if d_in % block == 0 else group_size) // 8


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device)[:, None]


def _sum(terms: list[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of tensors, of neighbours first, so that a processor can go side by side."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]
