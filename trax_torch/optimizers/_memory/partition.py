"""The partition of a model into blocks: layers in series that can be run one at a time.

This room knows how layers hand on what they compute; it runs none of them.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from trax_torch import layers as tl
from trax_torch.layers._protocol import has_hooks
from trax_torch.layers._reversible import can_reverse, items_of, packed

_SEALED = "sealed"


class _Link(tl.Wrapped):
    """A module of an nn.Sequential, where one value travels, however it is packed.

    On the stack it is sealed between two of them: a tuple of three is one item.

    Args:
      module: any, a layer too.
      is_first: whether it takes the bare value that comes to the whole.
      is_last: whether it gives the bare value that the whole gives.
    """

    def __init__(self, module: nn.Module, is_first: bool, is_last: bool):
        super().__init__(module, 1, 1, module.name if isinstance(module, tl.Layer) else None)
        self.is_first = is_first
        self.is_last = is_last

    def forward(self, x: Any) -> Any:
        """Returns what the module returns."""
        value = self.module(x if self.is_first else x[_SEALED])
        return value if self.is_last else {_SEALED: value}


class _Spread(tl.Layer):
    """Makes a stack of the value that comes to a Serial in an nn.Sequential.

    What the Serial does not take lies below, sealed.
    """

    def __init__(self, n_in: int, is_first: bool):
        super().__init__(n_out=n_in + 1)
        self._n_items = n_in
        self._is_first = is_first

    def forward(self, x: Any) -> Any:
        """Returns the items, and the rest."""
        value = x if self._is_first else x[_SEALED]
        items = items_of(value)
        return *items[: self._n_items], {_SEALED: items[self._n_items :]}


class _Gather(tl.Layer):
    """Makes one value of the stack that a Serial in an nn.Sequential leaves, with what lies below.

    It is the counterpart of `_Spread`.
    """

    def __init__(self, n_out: int, is_last: bool):
        super().__init__(n_in=n_out + 1)
        self._is_last = is_last

    def forward(self, x: Any) -> Any:
        """Returns the value."""
        *items, rest = items_of(x)
        value = packed((*items, *rest[_SEALED]))
        return value if self._is_last else {_SEALED: value}


def cut(layers: Iterable[tl.Layer]) -> list[tl.Layer]:
    """Returns layers in series, or the parts of a Serial, as blocks in series.

    A reversible layer is a block, and so is a layer that is made of others; plain layers side by
    side make about as many blocks as each of them has layers with weights.
    """
    blocks: list[tl.Layer] = []
    plain: list[tl.Layer] = []
    for layer in _opened(part for whole in layers for part in series_of(whole)):
        if can_reverse(layer) or _is_composite(layer):
            blocks += [*_bundled(plain), layer]
            plain = []
        else:
            plain.append(layer)
    return [*blocks, *_bundled(plain)]


def series_of(layer: tl.Layer) -> list[tl.Layer]:
    """Returns what a layer runs one after another: the parts of a Serial or nn.Sequential, say.

    One with hooks or a forward of its own is not taken apart: they wait for it to be called as a
    whole. Nor is one with weights of its own, which no part would have.
    """
    module = _inner(layer)
    if has_hooks(layer) or has_hooks(module) or module._parameters:
        return [layer]
    if type(layer) is tl.Serial:
        return list(layer.sublayers)
    is_first, is_last = (
        (layer.is_first, layer.is_last) if isinstance(layer, _Link) else (True, True)
    )
    if type(module) is nn.Sequential:
        last = len(module) - 1
        return [
            _Link(part, is_first and i == 0, is_last and i == last) for i, part in enumerate(module)
        ]
    if type(module) is tl.Serial:
        return [_Spread(module.n_in, is_first), *module.sublayers, _Gather(module.n_out, is_last)]
    return [layer]


def _opened(layers: Iterable[tl.Layer]) -> Iterator[tl.Layer]:
    """Yields the layers, in place of those that hold several blocks what they hold."""
    for layer in layers:
        parts = series_of(layer)
        if parts != [layer] and _holds_blocks(parts):
            yield from _opened(parts)
        else:
            yield layer


def _holds_blocks(parts: list[tl.Layer]) -> bool:
    """Tells whether layers in series are more than one block, a residual one say."""
    if any(map(can_reverse, parts)):
        return True
    return sum(map(_has_weights, parts)) > 1 and any(map(_is_composite, parts))


def _bundled(layers: list[tl.Layer]) -> list[tl.Layer]:
    """Returns plain layers in about as many blocks as each has layers with weights."""
    n_weighted = sum(map(_has_weights, layers))
    size = max(1, math.ceil(math.sqrt(n_weighted)))
    bundles: list[list[tl.Layer]] = [[]]
    count = 0
    for layer in layers:
        if _has_weights(layer):
            if count == size:
                bundles.append([])
                count = 0
            count += 1
        bundles[-1].append(layer)
    return [b[0] if len(b) == 1 else tl.Serial(*b) for b in bundles if b]


def _has_weights(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())


def _is_composite(layer: tl.Layer) -> bool:
    return any(map(_has_weights, _inner(layer).children()))


def _inner(layer: tl.Layer) -> nn.Module:
    return layer.module if isinstance(layer, tl.Wrapped) else layer
