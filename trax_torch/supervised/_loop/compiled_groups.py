"""Compiles the modules whose weights ranks bring together at a time, each by itself.

`torch.compile` of a model around them ends at the first of torch's hooks that bring weights
together, and compiles nothing.
"""

import functools
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from trax_torch import _torch_private


def compile_(modules: Iterable[tuple[nn.Module, Hashable]]) -> None:
    """Has each of the modules run compiled, within its hooks.

    Args:
      modules: each with what it has in common with those that are alike, which share programs.
    """
    programs: dict[Any, Callable[..., Any]] = {}
    for module, form in modules:
        forward: Any = module.forward
        function = getattr(forward, "__func__", None)
        if function is None:  # one that was set for this module alone
            run = torch.compile(forward)
        else:
            key = (function, form)
            if key not in programs:
                own = _torch_private.with_a_cache_of_its_own(function)
                programs[key] = torch.compile(own)
            run = functools.partial(programs[key], module)
        vars(module)["forward"] = _Compiled(type(module).__name__, run, forward)


class _Compiled:
    """Runs a program, or what it was made of where that cannot be compiled, after one warning."""

    def __init__(self, name: str, run: Callable[..., Any], forward: Callable[..., Any]):
        self._name, self._run, self._forward = name, run, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._run(*args, **kwargs)
        except Exception as error:
            if not _torch_private.is_of_the_compiler(error):
                raise
            warnings.warn(f"{self._name} runs uncompiled: {error}", stacklevel=2)
            self._run = self._forward
            return self._forward(*args, **kwargs)
