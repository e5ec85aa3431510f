"""Activation checkpointing of foreign modules, which are not layers in series: part by part."""

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trax_torch.layers._reversible import Held


@contextlib.contextmanager
def recomputed(parts: list[nn.Module], offload: bool = False) -> Generator[None]:
    """Has the parts keep what they take in, and no activations, when they run within the block.

    Args:
      parts: the parts.
      offload: whether what they take in is kept in host memory.
    """
    run = functools.partial(_offloaded, _run) if offload else _run
    own = [(part, vars(part).get("forward")) for part in parts]  # some have one of their own
    for part in parts:
        vars(part)["forward"] = functools.partial(run, part, part.forward)
    try:
        yield
    finally:
        for part, forward in own:
            del part.forward
            if forward is not None:
                vars(part)["forward"] = forward


def parts_of(module: nn.Module) -> list[nn.Module]:
    """Returns the members of the outermost lists of modules in a module that are worth it.

    They are made of modules themselves; one that is there several times is returned once.
    """
    return list(dict.fromkeys(_parts_in(module)))


def _parts_in(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        members = [member for member in module if any(True for _ in member.children())]
        if len(members) > 1:
            return members
    return [part for child in module.children() for part in _parts_in(child)]


def _offloaded(run: Any, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
    pinned = any(p.is_cuda for p in part.parameters())
    with torch.autograd.graph.save_on_cpu(pin_memory=pinned):
        return run(part, *args, **kwargs)


def _run(part: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    held = Held(part)  # so that statistics do not count twice
    run = contextlib.ExitStack()
    run.callback(held.settle)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (run, held), **kwargs)
