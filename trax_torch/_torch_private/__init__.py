"""What torch does not promise and is leaned on all the same: nobody else names it.

Each function is one such thing, and says what takes its place where a release has it no longer:
all still works, slower, and the logger `trax_torch` says so once. Each has a test of its own in
`tests/_torch_private`. One thing is not here: a Layer is an `nn.Module`, and uses a module's own
dicts `_parameters`, `_buffers` and `_modules`, for which there is no other way; they have a test
there, too.
"""

from trax_torch._torch_private.compiler import (
    can_be_repeated,
    compile_ahead,
    expect_other_sizes,
    graph_compiler,
    is_a_signal,
    is_full,
    is_of_the_compiler,
    load_ahead,
    load_stride_order,
    uncompiled,
    with_a_cache_of_its_own,
)
from trax_torch._torch_private.gradients import (
    gradient_hooks,
    is_forward_mode,
    is_set_aside,
    is_transformed,
    leaf_of,
)
from trax_torch._torch_private.modules import (
    call_hooks,
    inputs_of_call,
    is_lasting,
    refuse_to_lose_gradient,
    remove_hook,
)
from trax_torch._torch_private.processes import (
    accelerates_alone,
    asks_to_find_unused,
    end_workers_at_once,
    is_of_gloo,
    lacks_a_backend,
    let_workers_go,
    loader_without_workers,
    meeting_store,
)
from trax_torch._torch_private.steps import (
    set_verdict,
    step_hooks,
    take_step,
    verdict_of,
)
from trax_torch._torch_private.tensors import (
    contiguous_in_memory,
    cpu_multiplies_bfloat16,
    foreach,
    onednn_linear,
    operands_seen,
    place_in_whole,
    version,
)

__all__ = [
    "accelerates_alone",
    "asks_to_find_unused",
    "call_hooks",
    "can_be_repeated",
    "compile_ahead",
    "contiguous_in_memory",
    "cpu_multiplies_bfloat16",
    "end_workers_at_once",
    "expect_other_sizes",
    "foreach",
    "gradient_hooks",
    "graph_compiler",
    "inputs_of_call",
    "is_a_signal",
    "is_forward_mode",
    "is_full",
    "is_lasting",
    "is_of_gloo",
    "is_of_the_compiler",
    "is_set_aside",
    "is_transformed",
    "lacks_a_backend",
    "leaf_of",
    "let_workers_go",
    "load_ahead",
    "load_stride_order",
    "loader_without_workers",
    "meeting_store",
    "onednn_linear",
    "operands_seen",
    "place_in_whole",
    "refuse_to_lose_gradient",
    "remove_hook",
    "set_verdict",
    "step_hooks",
    "take_step",
    "uncompiled",
    "verdict_of",
    "version",
    "with_a_cache_of_its_own",
]
