"""Modes of modules, for a while."""

import contextlib
from collections.abc import Generator
from typing import Literal

from torch import nn

Mode = Literal["train", "eval", "predict"]  # what a layer does


@contextlib.contextmanager
def modes_kept(*modules: nn.Module) -> Generator[None]:
    """Leaves the modules, and all in them, in train or eval mode as they were before the block."""
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
