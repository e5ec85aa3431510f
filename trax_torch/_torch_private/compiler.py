"""The compiler: its errors, its programs, and what it is told of sizes."""

import contextlib
import functools
import importlib
import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trax_torch._torch_private.said import say

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
        say("way to a backend", "each compiled step goes in by torch.compile's front door")
        return None


def can_be_repeated(args: tuple[Any, ...], outputs: Any) -> bool:
    """Tells whether a program was called as is known: tensors and sizes in, a list of one out."""
    known = all(isinstance(a, (torch.Tensor, int, float)) for a in args)
    known = known and isinstance(outputs, (tuple, list)) and len(outputs) == 1
    if not known:
        say("known way to call a program", "each compiled step goes in by torch.compile's door")
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
    """Tells the compiler that an axis of an argument will, or may, be of other sizes.

    Else it finds out, and compiles anew; one size alone is an error where it `must` be others.
    """
    try:
        compiler: Any = importlib.import_module("torch._dynamo")
        mark = compiler.mark_dynamic if must else compiler.maybe_mark_dynamic
    except (ImportError, AttributeError):
        say("mark_dynamic", "a size that changes is compiled once more")
        return
    mark(tensor, axis)


def load_stride_order() -> None:
    """Brings the operation behind `contiguous_in_memory`, before anything is compiled."""
    with contextlib.suppress(ImportError):
        importlib.import_module("torch._inductor.inductor_prims")


def compile_ahead(program: Any, path: str) -> None:
    """Writes what `torch.export` made to a file (".pt2") that runs without a compiler."""
    importlib.import_module("torch._inductor").aoti_compile_and_package(program, package_path=path)


def load_ahead(path: str) -> Any:
    """Returns what `compile_ahead` wrote, a function of a list; the public way imports more."""
    native: Any = torch._C
    return native._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1).run
