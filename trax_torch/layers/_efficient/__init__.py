"""Attention of long sequences: in chunks, and among vectors that hash alike.

`heads` has what layers with weights for each head have in common, `groups` does rows and heads a
few at a time; `chunks` attends from chunks to those beside them; `hashing` sorts vectors so that
those alike lie side by side; `sight` knows what predict mode sees. `research` is built of it.
"""

from trax_torch.layers._efficient.chunks import (
    attend,
    attend_in_chunks,
    length_normalized,
)
from trax_torch.layers._efficient.groups import in_groups
from trax_torch.layers._efficient.hashing import (
    attend_by_hash,
    buckets_of,
    factors_for,
    rotations_for,
)
from trax_torch.layers._efficient.heads import HeadByHead, by_head, joined, names_of
from trax_torch.layers._efficient.sight import Sight, check_chunks, check_mode

__all__ = [
    "HeadByHead",
    "Sight",
    "attend",
    "attend_by_hash",
    "attend_in_chunks",
    "buckets_of",
    "by_head",
    "check_chunks",
    "check_mode",
    "factors_for",
    "in_groups",
    "joined",
    "length_normalized",
    "names_of",
    "rotations_for",
]
