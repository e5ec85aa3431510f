"""Optimizers: recipes by Trax's rules, and the trainer that takes a step with any optimizer.

A file a rule; rules without a fused kernel share `_foreach`. `trainer` computes loss, gradients and
update; `_microbatches` is gradient accumulation, `_adasum` merges the gradients of ranks, `_memory`
trains in less of it. `supervised` builds on all of them.
"""

from trax_torch.optimizers._adasum import adasum_
from trax_torch.optimizers._buffers import run_through, try_out
from trax_torch.optimizers._memory import (
    Blocks,
    ChunkedLoss,
    HostMemory,
    InBlocks,
    Residence,
    recomputed,
    split_head,
)
from trax_torch.optimizers._microbatches import Count, Shares
from trax_torch.optimizers.adafactor import Adafactor
from trax_torch.optimizers.adam import Adam
from trax_torch.optimizers.base import SGD, Optimizer, bind, clip_norm_of
from trax_torch.optimizers.momentum import Momentum
from trax_torch.optimizers.rms_prop import RMSProp
from trax_torch.optimizers.sm3 import SM3
from trax_torch.optimizers.trainer import NonFiniteError, Ranks, Trainer

__all__ = [
    "SGD",
    "SM3",
    "Adafactor",
    "Adam",
    "Blocks",
    "ChunkedLoss",
    "Count",
    "HostMemory",
    "InBlocks",
    "Momentum",
    "NonFiniteError",
    "Optimizer",
    "RMSProp",
    "Ranks",
    "Residence",
    "Shares",
    "Trainer",
    "adasum_",
    "bind",
    "clip_norm_of",
    "recomputed",
    "run_through",
    "split_head",
    "try_out",
]
