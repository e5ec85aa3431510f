"""First weights in two goes: what there will be, as shapes; and then the numbers, where they fit.

A layer that notes who made weights, and when, can have the same made again, each tensor as it is
drawn, once it is known where its parts belong. Torch's meta device holds the shapes in between.
"""

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What makes tensors of nothing but a shape; first weights are drawn by some of these.
_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor),
}


class ShapesAlone(TorchFunctionMode):
    """Has what is made in the block be on the meta device, though the CPU is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func in _FACTORIES:
            named["device"] = "meta"
            named.pop("generator", None)  # it draws nothing
        elif any(isinstance(x, torch.Tensor) and x.is_meta for x in args):
            named.pop("generator", None)
        return func(*args, **named)


@dataclass
class Made:
    """A layer that made weights.

    Attributes:
      layer: the layer.
      input_signature: of its inputs.
      inside: whom it had make weights in the midst of that, each time that it did.
    """

    layer: Any
    input_signature: Any
    inside: list[list["Made"]] = field(default_factory=list)


def make_again(notes: Sequence[Made], rng: torch.Generator) -> None:
    """Has layers make their weights and state again, in order, into the tensors that they have.

    Args:
      notes: of the pass of shapes in which they did.
      rng: what they draw from: at the place where it was before that pass, it gives the numbers of
        then.
    """
    again = _Again(rng)
    for made in notes:
        again.take(made)


class _Again:
    """Stands for the pass of shapes while weights are made again."""

    device = torch.device("cpu")

    def __init__(self, rng: torch.Generator):
        self.rng = rng
        self._inside: list[Iterator[list[Made]]] = []

    def take(self, made: Made) -> None:
        layer = made.layer
        before, layer._pass = layer._pass, self
        self._inside.append(iter(made.inside))
        try:
            layer._init_here(made.input_signature)
        finally:
            layer._pass = before
            self._inside.pop()

    def make(self, layer: Any, input_signature: Any) -> None:
        for made in next(self._inside[-1]):
            self.take(made)

    def init(self, layer: Any, input_signature: Any) -> None:
        layer.init_weights_and_state(input_signature)

    def bring_back(self, layer: Any) -> None:
        """Does nothing: all have their own tensors."""

    def made(self, layer: Any) -> None:
        """Does nothing: all have their own tensors."""


def places(roots: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yields `(owner, name, tensor)` of parameters and buffers; those of several owners for each.

    What yields may be replaced meanwhile.
    """
    seen: set[int] = set()
    for root in roots:
        for module in root.modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    yield module, name, tensor


def put(owner: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Puts a parameter or buffer in the place of one that is there."""
    if isinstance(owner, nn.RNNBase):  # which keeps a list of its weights, too
        setattr(owner, name, tensor)
    else:
        store: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
        store[name] = tensor


@contextlib.contextmanager
def stand_in(
    roots: Sequence[nn.Module], device: torch.device
) -> Generator[dict[int, torch.Tensor]]:
    """Has others stand in for tensors on the meta device, for a block that wants to compute.

    They take up next to no memory: all numbers of a weight are those of one short row, from which
    each row of it begins at another place. So a pass, or a gradient, is none of zeros, but of a
    model of this kind. Statistics are 1, and whole numbers 0.

    Gives the tensors that others stand in for, by the others' ids.
    """
    there = [each for each in places(roots) if each[2].is_meta]
    others: dict[int, torch.Tensor] = {}
    rng = torch.Generator().manual_seed(0)
    for _, _, tensor in there:
        if id(tensor) not in others:
            others[id(tensor)] = _like(tensor, rng, device)
    try:
        for owner, name, tensor in there:
            put(owner, name, others[id(tensor)])
        yield {id(others[id(tensor)]): tensor for _, _, tensor in there}
    finally:
        for owner, name, tensor in there:
            put(owner, name, tensor)


def _like(tensor: torch.Tensor, rng: torch.Generator, device: torch.device) -> torch.Tensor:
    if not isinstance(tensor, nn.Parameter):
        fill = torch.ones if tensor.is_floating_point() else torch.zeros
        return fill(tensor.shape, dtype=tensor.dtype, device=device)
    shape = tensor.shape
    n = sum(shape) - len(shape) + 1 if tensor.numel() else 0
    row = torch.randn(max(n, 1), generator=rng, device="cpu")
    row = row / math.sqrt(max(math.prod(shape[1:]), 1)) if len(shape) > 1 else 1 + row / 8
    values = row.to(tensor.dtype).to(device)
    if tensor.numel():
        values = values.as_strided(shape, [1] * len(shape))
    else:
        values = values.new_empty(shape)
    return nn.Parameter(values, requires_grad=tensor.requires_grad)
