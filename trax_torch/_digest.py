"""A few bytes that stand for a batch, or a tensor: alike for what is equal to the last bit."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trax_torch import _nest


def digest(nest: Any) -> str:
    """Returns 32 hexadecimal digits for a nest of tensors, arrays, numbers, texts and objects.

    Two nests of other bits, types or shapes have others. Objects of a kind of their own count by
    their attributes; what has none is its type alone.

    Example:
      >>> x = torch.ones(2)
      >>> digest((x, 3)) == digest((x.clone(), 3)) != digest((x.double(), 3))
      True
    """
    into = hashlib.blake2b(digest_size=16)
    _add(into, nest, set())
    return into.hexdigest()


def _add(into: "hashlib.blake2b", nest: Any, seen: set[int]) -> None:
    for way, leaf in _nest.named_leaves(nest).items():
        into.update(f"{way!r} {type(leaf).__qualname__}".encode())
        if isinstance(leaf, (int, float, complex, str, bytes, np.generic)):
            into.update(repr(leaf).encode())
        elif (array := _as_bytes(leaf)) is not None:
            into.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            into.update(array)
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            parts = leaf.tolist() if isinstance(leaf, np.ndarray) else getattr(leaf, "__dict__", {})
            _add(into, dict(parts) if isinstance(parts, Mapping) else parts, seen)


def _as_bytes(leaf: Any) -> Any:
    """Returns the bytes of a dense tensor or of an array of numbers; None of anything else."""
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.to_dense() if leaf.layout != torch.strided else leaf
        flat = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)
        return flat.view(torch.uint8).numpy()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        return np.ascontiguousarray(leaf).view(np.uint8).reshape(-1)
    return None
