"""What a model's step depends on but the values of weights: as a text, and looked at again."""

import dataclasses
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.layers._predict import modules_in

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_CONTAINERS = (list, tuple, dict, set, frozenset)
_MOST = 1000  # of a container; a larger one, such as a vocabulary, is data
_DEEPEST = 8  # of what is in one another; a function may be in its own closure
_TEXTS = (torch.dtype, torch.device, torch.Size, range)
# Their versions tell what they compute.
_LIBRARIES = frozenset({"torch", "trax_torch", *sys.stdlib_module_names})


def text_of(layer: nn.Module) -> str:
    """Returns a text that is the same for models of one make, in this process and others."""
    parts: list[Any] = []
    places: dict[int, int] = {}  # two names of one tensor are something else than two tensors
    for module in modules_in(layer):
        kind = type(module)
        own = sorted((name, described(value)) for name, value in _settings_of(module))
        tensors = [
            (name, form(tensor), places.setdefault(id(tensor), len(places)))
            for name, tensor in tensors_of(module)
        ]
        parts.append((kind.__module__, kind.__qualname__, _code_of_class(kind), own, tensors))
    return repr(parts)


class Noted:
    """A model's settings, and which of its tensors are one, as they are now.

    Args:
      layer: the model.
    """

    def __init__(self, layer: nn.Module):
        self._layer = layer
        self._tied = _tied(layer)
        self._settings = [
            (vars(module), name, described(value))
            for module in modules_in(layer)
            for name, value in _settings_of(module)
        ]

    def hold(self) -> bool:
        """Tells whether all are as they were; to be asked at each run, so it is quick."""
        return not any(True for _ in self._changed()) and _tied(self._layer) == self._tied

    def leave_out_what_changed(self) -> None:
        """Forgets settings that are others now, such as counts of calls."""
        changed = {(id(own), name) for own, name in self._changed()}
        self._settings = [s for s in self._settings if (id(s[0]), s[1]) not in changed]

    def _changed(self) -> Iterator[tuple[dict[str, Any], str]]:
        for own, name, was in self._settings:
            now = own.get(name)
            if now is not was and described(now) != was:
                yield own, name


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a module's own weights and buffers, by name."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def form(tensor: torch.Tensor) -> list[Any]:
    """Returns what a program depends on of a tensor."""
    return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype), str(tensor.device)]


def described(x: Any, depth: int = _DEEPEST) -> Any:
    """Returns a setting as plain values, which show any change of it; of others, their type."""
    if type(x) in _PLAIN:
        return x
    if isinstance(x, _TEXTS):
        return str(x)
    inside = functools.partial(described, depth=depth - 1)
    if not depth or (isinstance(x, _CONTAINERS) and len(x) > _MOST):
        return f"{type(x).__module__}.{type(x).__qualname__}"
    if isinstance(x, (list, tuple)):
        return [inside(each) for each in x]
    if isinstance(x, dict):
        return [(inside(key), inside(value)) for key, value in x.items()]
    if isinstance(x, (set, frozenset)):
        return sorted(repr(inside(each)) for each in x)
    if isinstance(x, types.FunctionType):
        cells = [cell.cell_contents for cell in x.__closure__ or () if cell != types.CellType()]
        return [_code(x.__code__), inside([x.__defaults__, x.__kwdefaults__, cells])]
    if isinstance(x, functools.partial):
        return inside([x.func, x.args, x.keywords])
    if isinstance(x, types.SimpleNamespace) or (
        dataclasses.is_dataclass(x) and not isinstance(x, type)
    ):
        return [type(x).__qualname__, inside(dict(vars(x)))]
    return f"{type(x).__module__}.{type(x).__qualname__}"


@functools.cache
def _books() -> frozenset[str]:
    """Returns what modules keep that says nothing of what they compute: torch's books, where a
    layer was built, whether it trains, what it was asked before."""
    of_layers = vars(tl.Layer()).keys() - {"_n_in", "_n_out", "_name", "_order"}
    return frozenset({*of_layers, *vars(nn.Module()), "_has_looked", "_compiled_steps"})


def _settings_of(module: nn.Module) -> list[tuple[str, Any]]:
    books = _books()
    return [(name, value) for name, value in vars(module).items() if name not in books]


def _tied(layer: nn.Module) -> list[int]:
    places: dict[int, int] = {}
    return [
        places.setdefault(id(tensor), len(places))
        for module in modules_in(layer)
        for _, tensor in tensors_of(module)
    ]


def _code_of_class(kind: type) -> tuple[Any, ...]:
    """Returns what the functions of a user's class do; what they call elsewhere is not seen."""
    return tuple(
        _code(value.__code__)
        for base in kind.__mro__
        if base.__module__.split(".")[0] not in _LIBRARIES
        for value in vars(base).values()
        if isinstance(value, types.FunctionType)
    )


def _code(code: types.CodeType) -> tuple[Any, ...]:
    consts = (_code(c) if isinstance(c, types.CodeType) else described(c) for c in code.co_consts)
    return code.co_code, code.co_names, *consts
