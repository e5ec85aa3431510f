"""What torch does not promise and is leaned on all the same: nobody else names it.

Each function here is one such thing, and says what takes its place where a release has it no
longer: all still works, slower, and the logger `trax_torch` says so once. Each has a test of its
own in `tests/test_torch_private.py`, which says in plain words what has changed.

One thing is not here: a Layer is an `nn.Module`, and so uses a module's own dicts `_parameters`,
`_buffers` and `_modules`, for which there is no other way; they have a test there, too.
"""

import contextlib
import copy
import functools
import importlib
import itertools
import logging
import math
import sys
import types
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

_log = logging.getLogger("trax_torch")
_optimizers: Any = sys.modules[torch.optim.Optimizer.__module__]  # hidden by its package
_profiler: Any = torch.autograd.profiler


@functools.cache
def _say(name: str, instead: str) -> None:
    """Says once what a release of torch has no longer, and what is done without it."""
    _log.warning("torch %s has no %s: %s.", torch.__version__, name, instead)


# Tensors of which each rank holds a part.


def place_in_whole(tensor: Any) -> list[int]:
    """Returns where in a `DTensor` the part of this rank begins, by axis.

    Where there is no `__create_chunk_list__`, it is computed for axes that are cut once.
    """
    make = getattr(tensor, "__create_chunk_list__", None)
    if make is not None:
        (chunk,) = make()
        return [*chunk.offsets]
    _say("DTensor.__create_chunk_list__", "places of parts are computed by hand")
    offsets = [0] * tensor.dim()
    pairs = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    for axis, (coordinate, placement) in enumerate(pairs):
        if placement.is_shard():
            n, size = tensor.shape[placement.dim], tensor.device_mesh.size(axis)
            offsets[placement.dim] = min(coordinate * -(-n // size), n)
    return offsets


# Many tensors in one call.


class _Foreach:
    """`torch._foreach_<name>` as `foreach.<name>`; where there is none, tensor by tensor."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found = getattr(torch, f"_foreach_{name}", None)
        if found is None:
            _say(f"_foreach_{name}", "optimizers go tensor by tensor")
            found = functools.partial(_one_by_one, name)
        setattr(self, name, found)
        return found


def _one_by_one(name: str, tensors: Any, *args: Any, **settings: Any) -> list[torch.Tensor]:
    """Does what `torch._foreach_<name>` does, with lists and numbers among the arguments."""
    if "addc" in name:  # a tensor's own method takes the factor by name alone
        args, settings = args[:2], dict(zip(["value"], args[2:], strict=False), **settings)
    results = []
    for i, tensor in enumerate(tensors):
        own = [a[i] if isinstance(a, (list, tuple)) else a for a in args]
        method = torch.linalg.vector_norm if name == "norm" else getattr(torch.Tensor, name)
        results.append(method(tensor, *own, **settings))
    return results


foreach: Any = _Foreach()


# The compiler.

_COMPILER = ("torch._dynamo", "torch._inductor")


def is_of_the_compiler(error: BaseException) -> bool:
    """Tells whether `torch.compile` failed, rather than what it compiled."""
    return type(error).__module__.startswith(_COMPILER)


def is_a_signal(error: BaseException) -> bool:
    """Tells whether an exception is meant for torch itself, further up."""
    return type(error).__module__.startswith((_COMPILER[0], "torch.utils.checkpoint", "torch.fx"))


def is_full(error: BaseException) -> bool:
    """Tells whether `torch.compile` makes no more programs of a function, having made many.

    If the class has another name, it is an error like others.
    """
    return any(kind.__name__ == "FailOnRecompileLimitHit" for kind in type(error).__mro__)


def graph_compiler(backend: Any, options: dict[str, Any]) -> Callable[..., Any] | None:
    """Returns what makes a program of a graph and its inputs, for what `torch.compile` takes.

    Args:
      backend: a name, or what `torch.compile` takes in its place.
      options: of inductor; other backends have none.

    Returns:
      `(graph, inputs) -> program`; None where there is no way to it but `torch.compile`'s own.
    """
    made: Callable[..., Any] | None = backend if callable(backend) else None
    if made is not None:
        return made
    try:
        if backend == "inductor":
            import torch._inductor

            return functools.partial(torch._inductor.compile, options=options)
        import torch._dynamo

        look_up: Any = torch._dynamo.lookup_backend
        found: Callable[..., Any] = look_up(backend)
        return found
    except (ImportError, AttributeError):
        _say("way to a backend", "each compiled step goes in by torch.compile's front door")
        return None


def can_be_repeated(args: tuple[Any, ...], outputs: Any) -> bool:
    """Tells whether a program was called as is known: tensors and sizes in, a list of one out."""
    known = all(isinstance(a, (torch.Tensor, int, float)) for a in args)
    known = known and isinstance(outputs, (tuple, list)) and len(outputs) == 1
    if not known:
        _say("known way to call a program", "each compiled step goes in by torch.compile's door")
    return known


_numbers = itertools.count()


def with_a_cache_of_its_own(function: Any) -> types.FunctionType:
    """Returns the same function, of which `torch.compile` makes programs for it alone.

    torch keeps programs by code object, a few for each. (`torch.compile(isolate_recompiles=True)`,
    since 2.13, counts all of a code object's programs together still, and has a limit for them.)
    What sizes and numbers changed between calls it keeps by the code's name and place: under one
    name, those of another model would become arguments of this one's programs.
    """
    code = function.__code__
    own = code.replace(co_name=f"{code.co_name}_{next(_numbers)}")
    return types.FunctionType(own, function.__globals__, function.__name__)


def uncompiled(model: Any) -> Any:
    """Returns the module that `torch.compile(module)` wrapped, or what came."""
    inside = vars(model).get("_modules", {}) if isinstance(model, nn.Module) else {}
    return inside.get("_orig_mod", model)


def expect_other_sizes(tensor: torch.Tensor, axis: int, must: bool) -> None:
    """Tells the compiler that an axis will be of other sizes; else it finds out, and compiles anew.

    (`torch.compile(dynamic_shapes=)` says it in public, and is of 2.14 alone.)

    Args:
      tensor: what a compiled function is about to be given.
      axis: which.
      must: whether one size alone is an error.
    """
    try:
        import torch._dynamo

        mark = torch._dynamo.mark_dynamic if must else torch._dynamo.maybe_mark_dynamic
    except (ImportError, AttributeError):
        _say("mark_dynamic", "a size that changes is compiled once more")
        return
    mark(tensor, axis)


def load_stride_order() -> None:
    """Brings the operation behind `contiguous_in_memory`, before anything is compiled."""
    with contextlib.suppress(ImportError):
        importlib.import_module("torch._inductor.inductor_prims")


def contiguous_in_memory(x: torch.Tensor) -> torch.Tensor:
    """Returns x, which a compiled loop that follows reads, contiguous, from memory.

    Otherwise the compiler may compute what comes before anew in each round.
    """
    if not hasattr(torch.ops.prims, "inductor_force_stride_order"):
        return x
    strides = tuple(math.prod(x.shape[i + 1 :]) for i in range(x.dim()))
    kept: torch.Tensor = torch.ops.prims.inductor_force_stride_order(x, strides)
    return kept


# Gradients, and who waits for them.


def is_transformed() -> bool:
    """Tells whether a transform of `torch.func`'s (grad, vmap, jvp) is under way."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    if active is None:
        _say(
            "_are_functorch_transforms_active", "reversible and recomputed layers keep activations"
        )
        return True
    return bool(active())


def is_set_aside(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is of a transform of `torch.func`'s that is not under way just now.

    What computes with it there would not be followed by the transform.
    """
    functorch = getattr(torch._C, "_functorch", None)
    level_of = getattr(functorch, "maybe_get_level", None)
    current = getattr(functorch, "maybe_current_level", None)
    if level_of is None or current is None:
        _say("_functorch.maybe_get_level", "under torch.func recomputed layers keep activations")
        return True
    return bool(level_of(tensor) > (current() or 0))


def is_forward_mode() -> bool:
    """Tells whether forward-mode derivatives are taken by `torch.autograd.forward_ad`."""
    level = getattr(forward_ad, "_current_level", None)
    if level is None:
        _say("forward_ad._current_level", "reversible layers keep activations")
        return True
    return bool(level >= 0)


@contextlib.contextmanager
def operands_seen(see: Callable[[torch.Tensor], Any]) -> Generator[bool]:
    """Has a function see every tensor that an operation of its block is given, views included.

    Gives whether it does: not where torch has no such mode.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        _say("TorchDispatchMode", "fsdp brings all weights of a model together")
        yield False
        return

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            waiting = [*args, *(kwargs or {}).values()]
            while waiting:
                x = waiting.pop()
                if isinstance(x, torch.Tensor):
                    see(x)
                elif isinstance(x, (list, tuple)):
                    waiting += x
            return func(*args, **(kwargs or {}))

    seeing: Any = Seeing
    with seeing():
        yield True


def version(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was written into; 0 of one of inference mode, which none counts.

    Raises:
      AttributeError: where torch counts no more: nothing else finds out such a write.
    """
    return 0 if tensor.is_inference() else tensor._version


def call_hooks(module: nn.Module, backward: bool = True) -> bool:
    """Tells whether someone waits for a module to be called, or for gradients at its borders.

    Args:
      module: is not looked into.
      backward: whether hooks of the backward pass count.
    """
    names = ["_forward_hooks", "_forward_pre_hooks"]
    if backward:
        names += ["_backward_hooks", "_backward_pre_hooks"]
    found = [getattr(module, name, None) for name in names]
    if None in found:
        _say("hooks where nn.Module had them", "no module is taken apart")
        return True
    return any(found)


def remove_hook(module: nn.Module, hook: Any) -> None:
    """Takes a hook off a module's forward, without the handle that registering it gave."""
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = getattr(module, name, {})
        for key in [key for key, each in hooks.items() if each is hook]:
            del hooks[key]
            for more in (f"{name}_with_kwargs", "_forward_hooks_always_called"):
                getattr(module, more, {}).pop(key, None)


def gradient_hooks(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Tells whether a tensor's gradient has hooks, and whether its accumulation has.

    Where a release keeps them elsewhere, none are seen.
    """
    return tuple(
        bool(getattr(tensor, name, None))
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )  # type: ignore[return-value]


def leaf_of(node: Any) -> torch.Tensor | None:
    """Returns the leaf whose gradient a node of autograd's graph accumulates; None of others."""
    return node.variable if node.name().endswith("AccumulateGrad") else None


def step_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Returns the hooks of an optimizer's step; where a release keeps them elsewhere, none."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for name in names for hook in getattr(optimizer, name, {}).values()]


_STEP = getattr(torch.optim.Optimizer, "profile_hook_step", None)
_CODE_AROUND_STEP = None if _STEP is None else _STEP(lambda self: None).__code__


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Has an optimizer take its step, without what torch puts around it where nobody would see it.

    That is a name for profilers, and a look for hooks, which take 10 to 20 us. What else is put
    around it, or in its place, is called as it is; so is all that a release keeps elsewhere.
    """
    around: Any = type(optimizer).step
    code = getattr(around, "__code__", None)
    if code is None or code is not _CODE_AROUND_STEP or is_step_watched(optimizer):
        optimizer.step()
    else:
        around.__wrapped__(optimizer)


def is_step_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Tells whether a hook, profiler or scheduler sees an optimizer's step; True if unknown."""
    own = vars(optimizer)
    try:
        return bool(
            "step" in own  # a scheduler, which counts steps
            or own["_optimizer_step_pre_hooks"]
            or own["_optimizer_step_post_hooks"]
            or _optimizers._global_optimizer_pre_hooks
            or _optimizers._global_optimizer_post_hooks
            or _profiler._is_profiler_enabled
        )
    except (AttributeError, KeyError):
        _say("hooks and profilers where steps had them", "each step looks for them itself")
        return True


def is_lasting(owner: nn.Module, name: str) -> bool:
    """Tells whether a state_dict holds a module's own buffer."""
    passing = getattr(owner, "_non_persistent_buffers_set", None)
    if passing is None:
        return name in owner.state_dict()
    return name not in passing


def inputs_of_call(frame: types.FrameType) -> Any:
    """Returns the inputs of the module whose call a frame is; None where it is no such frame.

    Where `nn.Module` calls modules in another way, errors name the outermost layer alone.
    """
    return frame.f_locals.get("args") if isinstance(frame.f_locals.get("self"), nn.Module) else None


def set_verdict(optimizer: torch.optim.Optimizer, is_bad: torch.Tensor) -> None:
    """Has a fused optimizer leave all as it is where a number on the device is not 0.

    The fused kernels ask for it by this attribute, which `torch.amp.GradScaler` sets.
    """
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]


def verdict_of(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Returns what `set_verdict` set, or None."""
    return getattr(optimizer, "found_inf", None)


# Processes.


def loader_without_workers(loader: Any, dataset: Any = None) -> Any:
    """Returns a DataLoader like another, whose workers, if they persist, are its own.

    They live in `_iterator`; where a release keeps them elsewhere, both share them. A dataset in
    the other's place goes in by the twin's own dict, since a loader refuses one later.
    """
    twin = copy.copy(loader)
    let_workers_go(twin)
    if dataset is not None:
        vars(twin)["dataset"] = dataset
    return twin


def accelerates_alone(loader: Any) -> Any:
    """Returns one of Accelerate's loaders like another, around a loader of torchdata's of its own.

    Accelerate asks that one for its state as it prepares it, which begins the first pass there and
    then; the twin's begins when it is asked for.
    """
    twin = copy.copy(loader)
    twin.base_dataloader = loader_without_workers(loader.base_dataloader)
    return twin


def let_workers_go(loader: Any) -> None:
    """Has the next pass of a DataLoader begin with new workers, as its first one did.

    They live in `_iterator`; where a release keeps them elsewhere, they stay.
    """
    loader._iterator = None
    if hasattr(loader, "_initial_iter_for_state_dict"):  # torchdata's, which has them without one
        loader._initial_iter_for_state_dict = False


def is_of_gloo(error: RuntimeError) -> bool:
    """Tells whether an error is of gloo's lines between ranks, which have no type of their own."""
    return "gloo/transport" in str(error)


def asks_to_find_unused(error: RuntimeError) -> bool:
    """Tells whether DistributedDataParallel misses gradients of weights that were not used."""
    return "find_unused_parameters" in str(error)


def meeting_store() -> Any:
    """Returns the store where the ranks of the process group met; None if that is not known."""
    try:
        from torch.distributed import distributed_c10d

        return distributed_c10d._get_default_store()
    except (ImportError, AttributeError):
        _say("_get_default_store", "ranks that wait for one that failed do not hear why")
        return None


def lacks_a_backend(error: RuntimeError) -> bool:
    """Tells whether a process group has no way to send what is on some device."""
    return "No backend type associated" in str(error)


# Whether a module is being called.

_CALLS_MODULES = nn.Module.__call__.__code__.co_filename


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Tells whether this processor has a fast product of bfloat16; without, it takes ten times as
    long as that of float32. Where torch does not know, it is taken to have one."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        _say("_is_mkldnn_bf16_supported", "precision='bf16' computes in bfloat16 on any CPU")
        return True


def refuse_to_lose_gradient(tensor: torch.Tensor) -> None:
    """Refuses a tensor to numpy within a module's call, where its gradient would be lost.

    Raises:
      RuntimeError: if a module is being called in this thread, and the gradient is wanted.
    """
    if not tensor.requires_grad or not torch.is_grad_enabled():
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == _CALLS_MODULES:
            raise RuntimeError(
                "Within a layer or a loss, functions are needed that pass gradients on; numpy was "
                "given a tensor whose gradient is wanted, and would lose it. Take torch's, or "
                "trax_torch.fastmath.numpy (trax.fastmath.numpy): it differentiates."
            )
