"""Reversible layers without kept activations: the backward pass computes them again.

`runs` finds layers in a row that can be undone, and runs them so; `rematerialization` runs a layer
once more with the random numbers and buffers it had; `transforms` does so under `torch.func`.
`layers.reversible`, `layers.combinators` and the optimizers' `_memory` call it.
"""

from trax_torch.layers._reversible.rematerialization import Decisions, Held, Replay
from trax_torch.layers._reversible.runs import (
    Grads,
    Params,
    ReversibleLayer,
    add,
    can_have_grad,
    can_reverse,
    detached,
    find_runs,
    gradients,
    in_series,
    items_of,
    leaf,
    packed,
)
from trax_torch.layers._reversible.transforms import call_again

__all__ = [
    "Decisions",
    "Grads",
    "Held",
    "Params",
    "Replay",
    "ReversibleLayer",
    "add",
    "call_again",
    "can_have_grad",
    "can_reverse",
    "detached",
    "find_runs",
    "gradients",
    "in_series",
    "items_of",
    "leaf",
    "packed",
]
