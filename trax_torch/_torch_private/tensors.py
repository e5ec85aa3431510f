"""Tensors: in parts, many in one call, as operations see them, and what a CPU multiplies well."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch._torch_private.said import say


def place_in_whole(tensor: Any) -> list[int]:
    """Returns where in a `DTensor` the part of this rank begins, by axis.

    Where there is no `__create_chunk_list__`, it is computed for axes that are cut once.
    """
    make = getattr(tensor, "__create_chunk_list__", None)
    if make is not None:
        (chunk,) = make()
        return [*chunk.offsets]
    say("DTensor.__create_chunk_list__", "places of parts are computed by hand")
    offsets = [0] * tensor.dim()
    pairs = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    for axis, (coordinate, placement) in enumerate(pairs):
        if placement.is_shard():
            n, size = tensor.shape[placement.dim], tensor.device_mesh.size(axis)
            offsets[placement.dim] = min(coordinate * -(-n // size), n)
    return offsets


class _Foreach:
    """`torch._foreach_<name>` as `foreach.<name>`; where there is none, tensor by tensor."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found = getattr(torch, f"_foreach_{name}", None)
        if found is None:
            say(f"_foreach_{name}", "optimizers go tensor by tensor")
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


@contextlib.contextmanager
def operands_seen(see: Callable[[torch.Tensor], Any]) -> Generator[bool]:
    """Has a function see every tensor that an operation of its block is given, views included.

    Gives whether it does: not where torch has no such mode.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        say("TorchDispatchMode", "fsdp brings all weights of a model together")
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


def contiguous_in_memory(x: torch.Tensor) -> torch.Tensor:
    """Returns x, which a compiled loop that follows reads, contiguous, from memory.

    Otherwise the compiler may compute what comes before anew in each round.
    """
    if not hasattr(torch.ops.prims, "inductor_force_stride_order"):
        return x
    strides = tuple(math.prod(x.shape[i + 1 :]) for i in range(x.dim()))
    kept: torch.Tensor = torch.ops.prims.inductor_force_stride_order(x, strides)
    return kept


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Tells whether this CPU has a fast product of bfloat16; yes, if torch does not know."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        say("_is_mkldnn_bf16_supported", "precision='bf16' computes in bfloat16 on any CPU")
        return True


def onednn_linear() -> Any:
    """Returns oneDNN's own product of float32, (x, w, bias, "none", [], ""); None without one."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
