"""Predict mode: what a model remembers of a sequence, and for how long.

`kv_cache` holds the KV cache and other memories, in buffers written at a position; `mode` puts
them in place for a while, `lock` keeps other threads out meanwhile, `block` undoes what is broken
off. Layers that remember call it, and decoding does.
"""

from trax_torch.layers._predict.block import Block
from trax_torch.layers._predict.kv_cache import Carry, Kept, KVCache, Moment, Position
from trax_torch.layers._predict.lock import lock_of
from trax_torch.layers._predict.mode import Predicting, foreign_caches

__all__ = [
    "Block",
    "Carry",
    "KVCache",
    "Kept",
    "Moment",
    "Position",
    "Predicting",
    "foreign_caches",
    "lock_of",
]
