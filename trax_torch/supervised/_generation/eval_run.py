"""Runs of a model that remembers nothing: it is asked for all tokens so far again and again."""

import contextlib
import math
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation.checks import Hook, Hooked, id_hooks, logits_hooks
from trax_torch.supervised._generation.compiled_step import step


class EvalRun(_predict.Block):
    """A model in eval mode, asked for all tokens so far again and again.

    It knows of no room but what the call needs: the model refuses what it is not built for.

    Args:
      layer: its output at a position tells of the token there, from those before.
      source: as for `PredictRun`.
      prompt: integers (batch, length), without a start symbol; may be empty.
      lengths: as for `PredictRun`.
      room: the longest sequence there will be, or None.
      min_length: the shortest length to pad to; lengths are powers of two.
    """

    is_full = False
    n_beams = 1
    given: Any = None  # what `run_for` says

    def __init__(
        self,
        layer: tl.Layer,
        source: torch.Tensor | None,
        prompt: torch.Tensor,
        lengths: torch.Tensor | None,
        room: int | None,
        min_length: int,
    ):
        self._layer, self._source, self._tokens = layer, source, prompt
        batch, n = prompt.shape
        self._counts = torch.full((batch,), n, device=prompt.device) if lengths is None else lengths
        self._room, self._min_length = room, min_length
        self._is_first = True

    def _run(self) -> Generator[None, None, None]:
        layers = _predict.layers_in(self._layer)
        others = set(_predict.modules_in(self._layer)).difference(layers)
        lent, quiet = _predict.Lent(layers, [None] * len(layers)), _predict.Quiet(others)
        off = _predict.GradientsOff()
        with (
            _predict.lock_for(self._layer),
            contextlib.closing(quiet),
            quiet,
            contextlib.closing(lent),
            lent,
            contextlib.closing(off),
            off,
        ):
            yield

    def begin(self) -> torch.Tensor:
        """Returns the logits for the first token after the prompt, (batch, vocab)."""
        n = self._tokens.shape[1]
        length = 2 ** math.ceil(math.log2(max(self._min_length, n + 1)))
        if self._room is not None:  # a model may have room for no more than there will be
            length = max(n + 1, min(length, max(self._room, self._min_length)))
        padded = nn.functional.pad(self._tokens, (0, length - n))
        checks = list[Hook]()
        if self._is_first:
            checks = [*id_hooks(self._layer), *logits_hooks(self._layer, len(padded), length)]
        hooked = Hooked(checks)
        with contextlib.closing(hooked), hooked:
            logits = step(self._layer, self._source, padded)
        self._is_first = False
        return logits[torch.arange(len(logits), device=logits.device), self._counts]

    def go_on(self, tokens: torch.Tensor, parents: None = None, ended: Any = None) -> torch.Tensor:
        """Takes the next tokens (batch, 1); returns the logits after them, (batch, 1, vocab)."""
        self._tokens = nn.functional.pad(self._tokens, (0, 1)).scatter(
            1, self._counts[:, None], tokens
        )
        self._counts = self._counts + 1
        return self.begin()[:, None]
