"""Predict mode: what a model remembers of a sequence, and for how long.

`kv_cache` holds the KV cache and other memories, in buffers written at a position; `mode` lends
them to layers for a while, in the `place` that each has in each thread; `quiet` keeps others from
training meanwhile, `block` undoes what is broken off; `blocks` are compiled once for all. Layers
that remember call it, those that run others in a row, and decoding.
"""

from trax_torch.layers._predict import blocks
from trax_torch.layers._predict.block import Block, GradientsOff
from trax_torch.layers._predict.kv_cache import Carry, Kept, KVCache, MarkedCache, Moment, Position
from trax_torch.layers._predict.mode import Predicting, foreign_caches, lock_for
from trax_torch.layers._predict.place import (
    Aside,
    HasPlace,
    Lent,
    NoMemory,
    layers_in,
    look_again,
    modules_in,
    with_one_look,
)
from trax_torch.layers._predict.quiet import Quiet

__all__ = [
    "Aside",
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
    "blocks",
    "foreign_caches",
    "layers_in",
    "lock_for",
    "look_again",
    "modules_in",
    "with_one_look",
]
