"""Weights that torch does not see: modules in a plain list or dict are no part of their owner."""

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn


def warn_of_unseen(model: nn.Module) -> None:
    """Warns if a module holds others in a plain list or dict, so that their weights do not train.

    Modules that are registered elsewhere too, and frozen ones, are no mistake.
    """
    seen = {id(p) for p in model.parameters()}
    for owner in model.modules():
        for name, value in vars(owner).items():
            for module in _modules_in(value):
                trained = [p for p in module.parameters() if p.requires_grad]
                if trained and not any(id(p) in seen for p in trained):
                    kind, right = type(owner).__name__, "List" if _is_list(value) else "Dict"
                    warnings.warn(
                        f"{kind}.{name} is a {type(value).__name__} of modules, whose weights "
                        f"torch does not see: they are not trained, saved or moved to a device. "
                        f"Write self.{name} = nn.Module{right}(...); or freeze them, "
                        f"module.requires_grad_(False), if that is meant.",
                        stacklevel=4,
                    )
                    return


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if type(value) in (list, tuple):
        yield from (each for each in value if isinstance(each, nn.Module))
    elif type(value) is dict:
        yield from (each for each in value.values() if isinstance(each, nn.Module))
