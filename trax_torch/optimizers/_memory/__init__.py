"""Training in less memory: what `use_memory_efficient_trainer` and `loss_chunk_size` do.

`blocks` trains block by block, where `partition` cuts; `update_in_backward` says when a weight may
be updated, `activation_checkpoint` recomputes foreign modules, `offload` keeps weights in host
memory, `chunked_loss` takes the loss in chunks. The trainer calls it, and `Loop` builds it.
"""

from trax_torch.optimizers._memory.activation_checkpoint import recomputed
from trax_torch.optimizers._memory.blocks import Blocks, InBlocks
from trax_torch.optimizers._memory.chunked_loss import ChunkedLoss, split_head
from trax_torch.optimizers._memory.offload import HostMemory, Residence

__all__ = [
    "Blocks",
    "ChunkedLoss",
    "HostMemory",
    "InBlocks",
    "Residence",
    "recomputed",
    "split_head",
]
