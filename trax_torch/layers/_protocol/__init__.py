"""What `layers.base.Layer` is made of; below it, and knows it by its attributes alone.

`trees` and `trax_order` (weights and state as in Trax), `shape_pass` and `first_weights` (how
weights are made),
`functional` (one call with other weights), `own_gradient`, `files` (save and load), `wrapping`
(foreign functions and modules), `errors` (where a layer was created), `summary` (a table of it),
`modes`, `hooks`, the data `stack`. Layers call it, and whoever looks inside one.
"""

from trax_torch.layers._protocol import stack
from trax_torch.layers._protocol.errors import LayerError, creation_site, explain, passes_through
from trax_torch.layers._protocol.files import (
    check_plain,
    fill,
    is_plain_file,
    load_file,
    load_plain,
    plain_name,
    register_reader,
    save_file,
)
from trax_torch.layers._protocol.first_weights import make_again, places, put, stand_in
from trax_torch.layers._protocol.functional import device_of, in_arrays, keyed, pure_call
from trax_torch.layers._protocol.hooks import has_hooks
from trax_torch.layers._protocol.modes import Mode, modes_kept
from trax_torch.layers._protocol.own_gradient import OwnGradient
from trax_torch.layers._protocol.shape_pass import ShapePass, shapes_of_weights
from trax_torch.layers._protocol.summary import Summarized
from trax_torch.layers._protocol.trax_order import InTraxOrder
from trax_torch.layers._protocol.trees import (
    EMPTY_STATE,
    EMPTY_WEIGHTS,
    GET_STATE_FROM_CACHE,
    GET_WEIGHTS_FROM_CACHE,
    expect_tensors,
    flatten_weights_and_state,
    lasting_buffers,
    map_tree,
    unflatten_weights_and_state,
)
from trax_torch.layers._protocol.wrapping import (
    ELEMENTWISE,
    Spread,
    check_n_in,
    n_arguments,
    n_required,
    not_a_module,
    refuse_if_expanded,
    without_arrays,
)

__all__ = [
    "ELEMENTWISE",
    "EMPTY_STATE",
    "EMPTY_WEIGHTS",
    "GET_STATE_FROM_CACHE",
    "GET_WEIGHTS_FROM_CACHE",
    "InTraxOrder",
    "LayerError",
    "Mode",
    "OwnGradient",
    "ShapePass",
    "Spread",
    "Summarized",
    "check_n_in",
    "check_plain",
    "creation_site",
    "device_of",
    "expect_tensors",
    "explain",
    "fill",
    "flatten_weights_and_state",
    "has_hooks",
    "in_arrays",
    "is_plain_file",
    "keyed",
    "lasting_buffers",
    "load_file",
    "load_plain",
    "make_again",
    "map_tree",
    "modes_kept",
    "n_arguments",
    "n_required",
    "not_a_module",
    "passes_through",
    "places",
    "plain_name",
    "pure_call",
    "put",
    "refuse_if_expanded",
    "register_reader",
    "save_file",
    "shapes_of_weights",
    "stack",
    "stand_in",
    "unflatten_weights_and_state",
    "without_arrays",
]
