"""What of a prompt is computed for its last position alone."""

from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.layers._predict import modules_in
from trax_torch.supervised._generation.checks import Hook
from trax_torch.supervised._generation.quantizing import DENSE


def last_alone(layer: tl.Layer, lengths: torch.Tensor | None) -> list[Hook]:
    """Returns hooks that let a model compute its last layers for the last position alone.

    Nobody wants the logits of a prompt's other positions, which may be most of its work.
    """
    tail = _tail(layer)

    def cut(module: Any, args: tuple[Any, ...]) -> Any:
        x = args[0]
        if lengths is None:
            return (x[:, -1:],)
        return (x[torch.arange(len(x), device=x.device), lengths - 1][:, None],)

    return [] if tail is None else [Hook(tail, "forward_pre", cut)]


def _tail(layer: Any) -> Any:
    """Returns the first of a model's last layers that look at one position alone, if any."""
    if not isinstance(layer, tl.Serial):
        return None
    tail = None
    for sublayer in reversed(layer.sublayers):
        if type(sublayer) not in (*DENSE, tl.LayerNorm, tl.Dropout) and (
            sublayer.name != "LogSoftmax"
        ):
            break
        tail = sublayer
    layers = [m for m in modules_in(layer) if isinstance(m, tl.Layer)]
    parents = [m for m in layers if tail in m._modules.values()]
    uses = sum(s is tail for m in parents for s in m.sublayers)
    return tail if uses == 1 else None
