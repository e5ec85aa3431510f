"""Modules with a cache of their own, in a run: what they offer beside `decoding.CachedModule`.

All of it is for adapters of other libraries' models, and each part may be missing:

- `begin_prompt(lengths)` is called before prompts are read: the next call brings them whole, padded
  on the right, with how much of each row counts, integers (batch,), or None for all. The logits of
  each row's last position, (batch, 1, vocab), are enough.
- `n_places` says how many positions the module is built for; None for any number.
- `can_compile` says that a step after the prompt is one program: what is remembered stays in
  tensors that `init_cache` with a `max_length` gave a size, and are written in place, also by
  `reorder_cache`.
"""

import math
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.layers import _predict


class Foreign:
    """The outermost modules of a model that keep caches of their own.

    Args:
      layer: the model.
    """

    def __init__(self, layer: tl.Layer):
        self._modules: list[Any] = list(_predict.foreign_caches(layer))

    def __bool__(self) -> bool:
        return bool(self._modules)

    @property
    def takes_lengths(self) -> bool:
        """Whether prompts may be of several lengths."""
        return bool(self._modules) and all(hasattr(m, "begin_prompt") for m in self._modules)

    @property
    def can_compile(self) -> bool:
        """Whether steps may be compiled."""
        return bool(self._modules) and all(getattr(m, "can_compile", False) for m in self._modules)

    @property
    def n_places(self) -> float:
        """How many positions there are at most."""
        places = [getattr(m, "n_places", None) for m in self._modules]
        return min((p for p in places if p is not None), default=math.inf)

    def begin_prompt(self, lengths: torch.Tensor | None) -> None:
        """Says that prompts come next."""
        for module in self._modules:
            if hasattr(module, "begin_prompt"):
                module.begin_prompt(lengths)
