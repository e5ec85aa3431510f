"""A layer as a function of weights, state and random numbers, for one call."""

import contextlib
import copy
import itertools
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _seeds, _torch_private
from trax_torch.layers._protocol import trees
from trax_torch.layers._protocol.trax_order import InTraxOrder


def pure_call(layer: InTraxOrder, x: Any, weights: Any, state: Any, rng: Any) -> tuple[Any, Any]:
    """Returns `(outputs, new_state)` for given weights and state, and changes nothing.

    Args:
      layer: the layer.
      x: inputs, packed as the layer says.
      weights: a tree in Trax's order.
      state: likewise.
      rng: a seed or a generator; None draws from the default generators.
    """
    tensors = layer._named("weights", weights)
    others = {}
    for name, value in layer._named("state", state).items():
        module, attribute = trees.owner_of(layer, name)
        if attribute in module._buffers:  # cloned, since layers write into their buffers
            tensors[name] = value.clone()
        else:
            others[name] = value
    swapped = {
        f"layer.{place}": tensor
        for name, tensor in tensors.items()
        for place in trees.places_of(layer, name)
    }
    with _other_state_aside(layer, others), keyed(layer, rng):
        outputs, new_state = torch.func.functional_call(
            _AndState(layer), swapped, (x,), tie_weights=False
        )
    return outputs, new_state


class _AndState(nn.Module):
    """Calls a layer and reads its state while `functional_call`'s tensors are in place."""

    def __init__(self, layer: InTraxOrder):
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> tuple[Any, Any]:
        outputs = self.layer(x)
        return outputs, self.layer.state


def in_arrays(layer: Any, x: Any) -> Any:
    """Returns a layer's outputs for inputs that are arrays: arrays, and no gradient is kept.

    Inside `torch.func.grad` and its like, which follow tensors alone, they stay tensors.
    """
    tensors = _nest.to_tensors(x, device_of(layer))
    if _torch_private.is_transformed():
        return layer(tensors)
    with torch.no_grad():
        return _nest.to_arrays(layer(tensors))


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module's tensors are; the CPU if it has none."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextlib.contextmanager
def keyed(layer: InTraxOrder, rng: "int | torch.Generator | None") -> Generator[None]:
    """Draws from `rng` for a while; None draws from the default generators as ever."""
    if rng is None:
        yield
        return
    with _seeds.Keyed(device_of(layer))(_seeds.as_seed(rng)):
        yield


@contextlib.contextmanager
def _other_state_aside(layer: InTraxOrder, state: dict[str, Any]) -> Generator[None]:
    """Lets what is state but no buffer be another for a while, and predict mode go on in a copy.

    Args:
      layer: whose state.
      state: memories and numbers, such as Dropout's rate, by name below the layer.
    """
    layers = [m for m in layer.modules() if isinstance(m, InTraxOrder) and m._memory is not None]
    memories = [m._memory for m in layers]
    owners = {name: trees.owner_of(layer, name) for name in state}
    numbers = [(m, a, m.__dict__[a]) for m, a in owners.values() if a in m.__dict__]
    for m in layers:
        m._memory = copy.deepcopy(m._memory)
    try:
        for name, value in state.items():
            module, attribute = owners[name]
            module._set_own_state(attribute, value)  # type: ignore[operator]
        yield
    finally:
        for m, memory in zip(layers, memories, strict=True):
            m._memory = memory
        for module, attribute, number in numbers:
            module.__dict__[attribute] = number
