"""What outlives the process: checkpoints that are whole or absent, and the way back from them.

`storage` makes files whole, `saver` decides when a save is done, `state` takes a run apart into
plain data and puts it back, `from_trax` goes on from Trax's files, `verify` compares runs. `Loop`
calls it.
"""

from trax_torch.supervised._checkpoint.from_trax import load_from_trax
from trax_torch.supervised._checkpoint.saver import Saver, read
from trax_torch.supervised._checkpoint.state import (
    Members,
    bare,
    forms_of,
    put_named,
    settings_of,
    share_buffers,
    share_weights,
)
from trax_torch.supervised._checkpoint.storage import Parts, check_basename, from_bytes, to_bytes
from trax_torch.supervised._checkpoint.verify import differences, verify_resume

__all__ = [
    "Members",
    "Parts",
    "Saver",
    "bare",
    "check_basename",
    "differences",
    "forms_of",
    "from_bytes",
    "load_from_trax",
    "put_named",
    "read",
    "settings_of",
    "share_buffers",
    "share_weights",
    "to_bytes",
    "verify_resume",
]
