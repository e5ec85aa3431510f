"""How a prompt is read: at once, or, where it is long, in pieces, whose memory is bounded."""

import contextlib

import torch

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation.checks import Hook, Hooked, Uses, id_hooks, logits_hooks
from trax_torch.supervised._generation.compiled_step import step
from trax_torch.supervised._generation.last_position import last_alone
from trax_torch.supervised._generation.piecewise import Shifts

_AT_ONCE = 2048  # positions of all rows: as many as keep a processor busy
_LEAST = 64  # of a row


def read_prompt(
    layer: tl.Layer,
    source: torch.Tensor | None,
    prompt: torch.Tensor,
    lengths: torch.Tensor | None,
    is_whole: bool,
) -> torch.Tensor:
    """Returns a model's logits for the tokens after prompts, (batch, vocab).

    Args:
      layer: the model, in a run that has read nothing.
      source, prompt, lengths: as for `engine.PredictRun`.
      is_whole: reads all at once.
    """
    batch, n = prompt.shape
    size = n if is_whole else max(_LEAST, _AT_ONCE // batch)
    carries = [m for m in layer._memories() if isinstance(m, _predict.Carry)]
    logits: torch.Tensor | None = None
    start = 0
    for part in prompt.split(size, dim=1):
        counts = None if lengths is None else (lengths - start).clamp(0, part.shape[1])
        for carry in carries:
            carry.lengths = counts
        last = _read_part(layer, source, part, counts, is_first=start == 0)
        if logits is None or lengths is None:
            logits = last
        else:
            logits = torch.where((lengths > start)[:, None], last, logits)
        start += part.shape[1]
    for carry in carries:
        carry.lengths = None
    assert logits is not None
    return logits


def _read_part(
    layer: tl.Layer,
    source: torch.Tensor | None,
    tokens: torch.Tensor,
    counts: torch.Tensor | None,
    is_first: bool,
) -> torch.Tensor:
    """Returns the logits after the last token of each row that counts, (batch, vocab)."""
    batch = len(tokens)
    counts = None if counts is None else counts.clamp(min=1)
    hooks, uses, shifts = _hooks(layer, tokens, counts)
    if is_first:  # the others are like it
        hooks += [*uses.hooks, *shifts.hooks]
    hooked = Hooked(hooks)
    with contextlib.closing(hooked), hooked:
        try:
            logits = step(layer, source, tokens)
        finally:
            uses.check()
    shifts.check()
    if logits.shape[1] == 1 or counts is None:
        return logits[:, -1]
    return logits[torch.arange(batch, device=logits.device), counts - 1]


@_predict.with_one_look
def _hooks(
    layer: tl.Layer, tokens: torch.Tensor, counts: torch.Tensor | None
) -> tuple[list[Hook], Uses, Shifts]:
    """Returns hooks for every part of a prompt, and two more checks with hooks of their own."""
    hooks = [
        *id_hooks(layer),
        *logits_hooks(layer, len(tokens), tokens.shape[1], or_last=True),
        *last_alone(layer, counts),
    ]
    return hooks, Uses(layer), Shifts(layer, tokens)
