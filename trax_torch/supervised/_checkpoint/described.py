"""Functions, modules and numbers in a few words, so that one can be told from another later.

The words hold names and settings, alike in each process: no addresses, no paths, no tensors.
"""

import functools
import inspect
import os
from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl

_MODULES = 20  # of one that has more, no more are told
_SCALARS = (bool, int, float, str)


def described(x: Any) -> str:
    """Returns what `x` is called, with the plain settings it was made with.

    A function's are the numbers in its code, its defaults and what it closes over.

    Example:
      >>> described(functools.partial(max, 2, key=lambda x: 0.5 * x))
      'max(2, key=<lambda>(0.5))'
      >>> described(tl.as_layer(nn.LeakyReLU(0.2)))
      'LeakyReLU(negative_slope=0.2, inplace=False)'
    """
    if x is None or isinstance(x, _SCALARS):
        return "a path" if isinstance(x, str) and os.sep in x else str(x)
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(described, x))}]"
    if isinstance(x, functools.partial):
        return _called(x.func, [*x.args], x.keywords)
    if isinstance(x, nn.Module):
        modules = [m for m in x.modules() if not isinstance(m, tl.Wrapped)]
        return " ".join(_module(m) for m in modules[:_MODULES])
    if inspect.isfunction(x):
        numbers = [c for c in x.__code__.co_consts if isinstance(c, (int, float))]
        held = [cell.cell_contents for cell in x.__closure__ or () if _is_full(cell)]
        kept = [v for v in held if isinstance(v, _SCALARS)]
        return _called(x, [*numbers, *(x.__defaults__ or ())], dict(enumerate(kept)))
    if inspect.isroutine(x) or inspect.isclass(x):
        return _called(x, [], {})
    return _called(type(x), [], _settings(x))


def plain(x: Any) -> Any:
    """Returns `x` as plain data for JSON: numbers, texts, lists and dicts as they are."""
    if isinstance(x, torch.Tensor) and x.numel() == 1 and not torch.is_complex(x):
        return x.item()
    if x is None or isinstance(x, _SCALARS):
        return x
    if isinstance(x, (list, tuple)):
        return [plain(item) for item in x]
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    return described(x)


def _module(module: nn.Module) -> str:
    if isinstance(module, tl.PureLayer) and module.fn is not None:
        return f"{module.name} {described(module.fn)}"
    name = module.name if isinstance(module, tl.Layer) else type(module).__name__
    return _called(name, [], {k: v for k, v in _settings(module).items() if k != "training"})


def _settings(x: Any) -> dict[str, Any]:
    """Returns an object's public attributes that are plain."""
    named = getattr(x, "__dict__", {}).items()
    return {k: v for k, v in named if not k.startswith("_") and isinstance(v, _SCALARS)}


def _called(what: Any, args: list[Any], keywords: dict[Any, Any]) -> str:
    name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
    words = [described(arg) for arg in args]
    words += [f"{k}={described(v)}" for k, v in keywords.items()]
    return f"{name}({', '.join(words)})" if words else name


def _is_full(cell: Any) -> bool:
    """Tells whether a closure's variable has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
