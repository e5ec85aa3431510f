"""What outlives the process: checkpoints that are whole or absent, and the way back from them.

`checkpointer` saves and loads a run: `state` takes it apart into plain data and puts it back, with
`optimizer_state` for what optimizers remember; `saver` sees a save to its end, `storage` makes
files whole. `from_trax` goes on from Trax's files, `verify` compares runs. `Loop` and its parts
call it.
"""

from trax_torch.supervised._checkpoint.checkpointer import Checkpointer, RunState
from trax_torch.supervised._checkpoint.exports import export
from trax_torch.supervised._checkpoint.inventory import Found, found_in
from trax_torch.supervised._checkpoint.optimizer_state import settings_of
from trax_torch.supervised._checkpoint.packing import pack, unpack
from trax_torch.supervised._checkpoint.state import (
    Members,
    bare,
    forms_of,
    put_trees,
    share_buffers,
    share_weights,
)
from trax_torch.supervised._checkpoint.storage import check_basename
from trax_torch.supervised._checkpoint.tensor_files import from_bytes, to_bytes
from trax_torch.supervised._checkpoint.unfilled import Unfilled, left, times_written
from trax_torch.supervised._checkpoint.verify import differences, verify_resume
from trax_torch.supervised._checkpoint.weights import load_weights

__all__ = [
    "Checkpointer",
    "Found",
    "Members",
    "RunState",
    "Unfilled",
    "bare",
    "check_basename",
    "differences",
    "export",
    "forms_of",
    "found_in",
    "from_bytes",
    "left",
    "load_weights",
    "pack",
    "put_trees",
    "settings_of",
    "share_buffers",
    "share_weights",
    "times_written",
    "to_bytes",
    "unpack",
    "verify_resume",
]
