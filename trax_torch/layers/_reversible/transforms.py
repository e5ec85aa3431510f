"""A layer that is computed again for gradients under `torch.func`."""

from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _recompute
from trax_torch.layers import base
from trax_torch.layers._reversible import rematerialization


def call_again(layer: nn.Module, x: Any) -> Any:
    """Calls a layer under a transform, so that activations are computed again for gradients.

    What the layer takes and its weights are kept. Random numbers are drawn again as they were.
    Activations are kept where there is no other way: where the layer has buffers, or depends on
    tensors, followed by the transform, that are neither; and in forward mode.

    Args:
      layer: is called with `x`.
      x: inputs, packed as the layer takes them.
    """
    if any(True for _ in layer.buffers()):
        return base.call(layer, x)
    named = dict(rematerialization.parameters_of(layer))
    unique = {id(p): p for p in named.values()}
    number = {key: i for i, key in enumerate(unique)}
    places = {name: number[id(p)] for name, p in named.items()}
    device = next((i.device for i in _nest.leaves(x) if isinstance(i, torch.Tensor)), _CPU)
    replay = rematerialization.Replay(layer, device, x)

    def tensors_of(params: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: params[i] for name, i in places.items()}

    is_done, outputs = _recompute.recomputed(
        lambda given: replay.first(given[0], tensors_of(given[1])),
        lambda given: replay(given[0], tensors_of(given[1])),
        (x, list(unique.values())),
    )
    if is_done:
        return outputs
    replay.draws.rewind()
    return base.call(layer, x)


_CPU = torch.device("cpu")
