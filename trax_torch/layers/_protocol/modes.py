"""Modes of modules, for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Leaves the modules, and all in them, in train or eval mode as they were before the block."""
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
