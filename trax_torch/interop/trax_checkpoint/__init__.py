"""What Trax wrote: checkpoints and files of weights, read without running anything in them.

`read` gives a file's contents as tensors, `load_into` fills a layer with them, `slots_by_weight`
sorts the optimizer's slots. `python -m trax_torch.interop.trax_checkpoint IN OUT_DIR` converts to
safetensors and JSON. Trax's formats are never written here.
"""

from trax_torch._errors import CheckpointError, MismatchError, UnsafeCheckpointError
from trax_torch.interop._pickle import TraxCheckpoint, read
from trax_torch.interop.trax_checkpoint.convert import convert
from trax_torch.interop.trax_checkpoint.into_layers import load_into, slots_by_weight

__all__ = [
    "CheckpointError",
    "MismatchError",
    "TraxCheckpoint",
    "UnsafeCheckpointError",
    "convert",
    "load_into",
    "read",
    "slots_by_weight",
]
