"""What outlives the process: checkpoints that are whole or absent, and the way back from them.

`checkpointer` saves and loads a run: `state` takes it apart into plain data and puts it back,
`saver` sees a save to its end, `storage` makes files whole. `from_trax` goes on from Trax's files,
`verify` compares runs. `Loop` and its parts call it.
"""

from trax_torch.supervised._checkpoint.checkpointer import Checkpointer, RunState
from trax_torch.supervised._checkpoint.state import (
    Members,
    bare,
    forms_of,
    put_named,
    settings_of,
    share_buffers,
    share_weights,
)
from trax_torch.supervised._checkpoint.storage import check_basename
from trax_torch.supervised._checkpoint.verify import differences, verify_resume

__all__ = [
    "Checkpointer",
    "Members",
    "RunState",
    "bare",
    "check_basename",
    "differences",
    "forms_of",
    "put_named",
    "settings_of",
    "share_buffers",
    "share_weights",
    "verify_resume",
]
