"""Predict mode: what a model remembers of a sequence, and for how long.

`kv_cache` holds the KV cache and other memories, in buffers written at a position; `mode` lends
them to layers for a while, in the `place` that each has in each thread; `quiet` keeps others from
training meanwhile, `block` undoes what is broken off. Layers that remember call it, and decoding.
"""

from trax_torch.layers._predict.block import Block, GradientsOff
from trax_torch.layers._predict.kv_cache import Carry, Kept, KVCache, MarkedCache, Moment, Position
from trax_torch.layers._predict.mode import Predicting, foreign_caches, lock_for
from trax_torch.layers._predict.place import HasPlace, Lent, NoMemory, layers_in, modules_in
from trax_torch.layers._predict.quiet import Quiet

__all__ = [
    "Block",
    "Carry",
    "GradientsOff",
    "HasPlace",
    "KVCache",
    "Kept",
    "Lent",
    "MarkedCache",
    "Moment",
    "NoMemory",
    "Position",
    "Predicting",
    "Quiet",
    "foreign_caches",
    "layers_in",
    "lock_for",
    "modules_in",
]
