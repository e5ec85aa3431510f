"""Combinators that `layers.combinators` shows: they have rooms of their own for their length.

`stack_moves` copies, drops and joins items of the data stack; `scan_and_cache` repeats a layer
along an axis, or remembers what it gave. `layers` calls it.
"""

from trax_torch.layers._combinators.scan_and_cache import Cache, Scan, takes_all_steps
from trax_torch.layers._combinators.stack_moves import (
    Add,
    Concatenate,
    Drop,
    Dup,
    FlattenList,
    Gate,
    Multiply,
    Select,
    Split,
    SubtractTop,
    Swap,
)

__all__ = [
    "Add",
    "Cache",
    "Concatenate",
    "Drop",
    "Dup",
    "FlattenList",
    "Gate",
    "Multiply",
    "Scan",
    "Select",
    "Split",
    "SubtractTop",
    "Swap",
    "takes_all_steps",
]
