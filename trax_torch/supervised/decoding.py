"""Decoding: a model that predicts the next token, asked again and again."""

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trax_torch import _nest
from trax_torch import layers as tl
from trax_torch.supervised import _beams
from trax_torch.supervised._sampling import Sampler


def autoregressive_sample_stream(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    temperature: float = 1.0,
    start_id: Any = 0,
    accelerate: bool = True,
    eval_mode: bool = False,
    eval_min_length: int = 1,
    *,
    seed: int | Sequence[int] | None = None,
    max_length: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the tokens of sequences as a model makes them, one position at a time, without end.

    Each call starts afresh. The model needs no mode of its own: it predicts while a token is made
    and is between tokens as it was before.

    Args:
      model: maps tokens (batch, length) to logits (batch, length, vocab), or, if it takes several
        inputs, (source, tokens) to a tuple that begins with logits.
      inputs: integers (batch, length): a prefix that the sequences go on from, or the source if the
        model takes several inputs.
      batch_size: number of sequences.
      temperature: 0 takes the likeliest token; 1 draws from the model's distribution.
      start_id: the symbol before the first one; an int, or integers (batch, 1).
      accelerate: lets the fastest way be taken, which is today the same for True and False: the
        model runs uncompiled, on buffers that are made once.
      eval_mode: takes any model whose output at a position tells of the token at that position,
        from those before (as models with `ShiftRight` do), and runs it on all tokens so far. Much
        slower.
      eval_min_length: the shortest length to pad to in eval mode; lengths are powers of two.
      seed: of the random numbers; one for all rows, or one for each.
      max_length: how many tokens there will be at most; by default the model decides how many
        positions it has room for.

    Yields:
      int64 tensors of shape (batch, 1), on the model's device.

    Raises:
      ValueError: if batch sizes differ, the temperature is negative, or there is no more room.
      TypeError: if tokens are not integers, or the model can neither predict nor is in eval mode.

    Source: Trax `supervised/decoding.py::autoregressive_sample_stream`, which goes on from what the
      last call left behind.
    """
    layer, source, prefix = _begin(model, inputs, batch_size, start_id)
    sampler = Sampler(temperature, batch_size, seed)
    if eval_mode and bool(prefix[:, 0].any()):
        raise ValueError(
            f"In eval mode the model puts its own start symbol, 0, before a sequence; got start_id="
            f"{start_id!r}. Decode in predict mode, or leave start_id at 0."
        )
    steps = _in_eval_mode if eval_mode else _in_predict_mode
    room = None if max_length is None else prefix.shape[1] + max_length - 1
    return steps(layer, source, prefix, sampler, room, eval_min_length)


def autoregressive_sample(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    temperature: float = 1.0,
    start_id: Any = 0,
    eos_id: int = 1,
    max_length: int = 100,
    accelerate: bool = True,
    eval_mode: bool = False,
    eval_min_length: int = 1,
    *,
    seed: int | Sequence[int] | None = None,
    pad_id: int = 0,
) -> torch.Tensor:
    """Returns sequences that a model makes, up to an end symbol.

    Args:
      model, inputs, batch_size, temperature, start_id, accelerate, eval_mode, eval_min_length,
        seed: as for `autoregressive_sample_stream`.
      eos_id: the end symbol; it is kept, and what would follow it in a row is `pad_id`.
      max_length: how many tokens at most; at least 1.
      pad_id: fills rows that have ended.

    Returns:
      int64 tensor of shape (batch, output_length). It is done when every row has met its end, or
      after `max_length` tokens.

    Raises:
      ValueError, TypeError: as for `autoregressive_sample_stream`, and if `max_length` is below 1.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> autoregressive_sample(model, batch_size=2, eos_id=-1, max_length=5, seed=0).shape
      torch.Size([2, 5])

    Source: Trax `supervised/decoding.py::autoregressive_sample`, where what follows the end symbol
      has no meaning.
    """
    if max_length < 1:
        raise ValueError(f"max_length counts tokens, so it is at least 1; got {max_length}.")
    stream = autoregressive_sample_stream(
        model,
        inputs,
        batch_size,
        temperature,
        start_id,
        accelerate,
        eval_mode,
        eval_min_length,
        seed=seed,
        max_length=max_length,
    )
    ended: torch.Tensor | None = None
    result: list[torch.Tensor] = []
    for tokens in stream:
        if ended is not None:
            tokens = tokens.masked_fill(ended, pad_id)
        result.append(tokens)
        met = tokens == eos_id
        ended = met if ended is None else ended | met
        if len(result) == max_length or bool(ended.all()):
            break
    return torch.cat(result, dim=1)


def beam_search(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    n_beams: int = 2,
    start_id: Any = 0,
    eos_id: int = 1,
    max_length: int = 100,
    length_penalty: float = 1.0,
    accelerate: bool = True,
    *,
    pad_id: int = 0,
    return_scores: bool = False,
) -> Any:
    """Returns the likeliest sequences that a beam search finds, best first.

    At each position the `2 * n_beams` best continuations of a row are looked at. One that ends in
    `eos_id` and is among the first `n_beams` is finished; the best `n_beams` others live on. A
    finished hypothesis of n tokens, the end symbol included, scores
    sum(log p) / ((5 + n) / 6) ** length_penalty. A row is done when its worst finished score is at
    least what its best living beam can still reach; at `max_length` the living beams compete as
    they are. Rows do not depend on each other, and ties go to the lower (beam, token).

    Args:
      model, inputs, batch_size, start_id: as for `autoregressive_sample_stream`.
      n_beams: how many hypotheses to follow, and to return; at least 1.
      eos_id: the end symbol; -1 for none.
      max_length: how many tokens at most; at least 1.
      length_penalty: 0 takes plain sums, more favours longer sequences.
      accelerate: as for `autoregressive_sample_stream`.
      pad_id: fills what stands after the end of a sequence.
      return_scores: returns `(sequences, scores)`.

    Returns:
      int64 tensor of shape (batch, n_beams, output_length); with `return_scores`, and a float
      tensor of shape (batch, n_beams), nats. Where there are fewer sequences than beams, the
      missing ones score -inf and hold padding.

    Raises:
      ValueError, TypeError: as for `autoregressive_sample`; if `n_beams` is below 1; if the logits
        are not numbers.

    Source: Trax `supervised/decoding.py::beam_search`, which takes a batch of 1 and follows neither
      `eos_id` nor `length_penalty`; Wu et al. 2016, arXiv:1609.08144.
    """
    if n_beams < 1:
        raise ValueError(f"A beam search follows at least 1 beam; got n_beams={n_beams}.")
    if max_length < 1:
        raise ValueError(f"max_length counts tokens, so it is at least 1; got {max_length}.")
    layer, source, prefix = _begin(model, inputs, batch_size, start_id)
    _check_can_predict(layer)
    rows = torch.arange(batch_size, device=prefix.device)
    expanded = rows.repeat_interleave(n_beams)
    tokens = prefix[expanded]
    source = None if source is None else source[expanded]
    run = layer.predict(batch_size * n_beams, prefix.shape[1] + max_length - 1)

    finished = _beams.Hypotheses(batch_size, n_beams, max_length, pad_id, prefix.device)
    scores = torch.full((batch_size, n_beams), -torch.inf, device=prefix.device)
    scores[:, 0] = 0.0
    sequences = prefix.new_empty((batch_size, n_beams, 0))
    done = torch.zeros(batch_size, dtype=torch.bool, device=prefix.device)
    for n in range(1, max_length + 1):
        with torch.no_grad(), run:
            logits = _logits(layer, source, tokens)[:, -1].float()
        if bool(logits.isnan().any()):
            raise ValueError(f"The model's logits for token {n} are not numbers (NaN).")
        log_probs = torch.log_softmax(logits, dim=-1).view(batch_size, n_beams, -1)
        best, parents, new = _beams.best_continuations(scores, log_probs, 2 * n_beams)
        grown = sequences.gather(1, parents[:, :, None].expand(-1, -1, n - 1))
        grown = torch.cat([grown, new[:, :, None]], dim=2)
        ends = new == eos_id

        first = slice(0, n_beams)
        ended = best[:, first].masked_fill(~ends[:, first] | done[:, None], -torch.inf)
        finished.add(ended / _beams.penalty(n, length_penalty), grown[:, first])

        order = ends.to(torch.uint8).sort(dim=1, stable=True).indices[:, first]
        scores = best.gather(1, order).masked_fill(ends.gather(1, order), -torch.inf)
        parents = parents.gather(1, order)
        sequences = grown.gather(1, order[:, :, None].expand(-1, -1, n))
        longest = max_length if length_penalty > 0 else min(n + 1, max_length)
        reach = scores[:, 0] / _beams.penalty(longest, length_penalty)
        done |= finished.scores[:, -1] >= reach
        if n == max_length or bool(done.all()):
            break
        with run:
            layer.reorder_cache((rows[:, None] * n_beams + parents).flatten())
        tokens = sequences[:, :, -1].reshape(-1, 1)
    living = scores.masked_fill(done[:, None], -torch.inf) / _beams.penalty(n, length_penalty)
    if n == max_length:
        finished.add(living, sequences)
    length = max(1, int(finished.lengths.max()))
    result = finished.tokens[:, :, :length]
    return (result, finished.scores) if return_scores else result


def _begin(
    model: Any, inputs: Any, batch_size: int, start_id: Any
) -> tuple[tl.Layer, torch.Tensor | None, torch.Tensor]:
    """Returns the model as a layer, its source if it takes one, and the first tokens."""
    layer = tl.as_layer(model)
    device = next((p.device for p in layer.parameters()), torch.device("cpu"))
    start = _start_symbols(start_id, batch_size, device)
    given = None if inputs is None else _tokens(inputs, "inputs", batch_size, device)
    if layer.n_in == 1:
        return layer, None, start if given is None else torch.cat([start, given], dim=1)
    if given is None:
        raise ValueError(
            f"The model takes {layer.n_in} inputs, the first of which is the source; give inputs."
        )
    return layer, given, start


def _in_predict_mode(
    layer: tl.Layer,
    source: torch.Tensor | None,
    tokens: torch.Tensor,
    sampler: Sampler,
    room: int | None,
    eval_min_length: int,
) -> Iterator[torch.Tensor]:
    _check_can_predict(layer)
    run = layer.predict(tokens.shape[0], room)
    while True:
        with torch.no_grad(), run:
            logits = _logits(layer, source, tokens)
            tokens = sampler(logits[:, -1])[:, None]
        yield tokens


def _in_eval_mode(
    layer: tl.Layer,
    source: torch.Tensor | None,
    tokens: torch.Tensor,
    sampler: Sampler,
    room: int | None,
    eval_min_length: int,
) -> Iterator[torch.Tensor]:
    tokens = tokens[:, 1:]  # the model puts its own start symbol before them
    while True:
        n = tokens.shape[1]
        length = 2 ** math.ceil(math.log2(max(eval_min_length, n + 1)))
        if room is not None:  # a model may have room for no more than there will be
            length = max(n + 1, min(length, room))
        padded = torch.nn.functional.pad(tokens, (0, length - n))
        training = [m for m in layer.modules() if m.training]
        layer.eval()
        try:
            with torch.no_grad():
                new = sampler(_logits(layer, source, padded)[:, n])[:, None]
        finally:
            for module in training:
                module.training = True
        tokens = torch.cat([tokens, new], dim=1)
        yield new


def _logits(layer: tl.Layer, source: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    outputs = layer(tokens) if source is None else layer((source, tokens))
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def _check_can_predict(layer: tl.Layer) -> None:
    if isinstance(layer, tl.Wrapped) and not any(
        hasattr(m, "init_cache") for m in layer.module.modules()
    ):
        raise TypeError(
            f"{layer.name} cannot predict position by position: it offers no init_cache("
            f"batch_size, max_length) and reset_cache(). Offer them, or decode with "
            f"eval_mode=True if its output at a position tells of the token there, from those "
            f"before."
        )


def _start_symbols(start_id: Any, batch_size: int, device: torch.device) -> torch.Tensor:
    if isinstance(start_id, numbers.Integral):
        start_id = int(start_id)
        return torch.full((batch_size, 1), start_id, dtype=torch.int64, device=device)
    symbols = _tokens(start_id, "start_id", batch_size, device)
    if symbols.shape[1] != 1:
        raise ValueError(f"start_id is an int or (batch, 1); got shape {tuple(symbols.shape)}.")
    return symbols


def _tokens(x: Any, name: str, batch_size: int, device: torch.device) -> torch.Tensor:
    """Returns tokens as int64 (batch, length) on the device."""
    tokens = _nest.to_tensor(x, device)
    if not isinstance(tokens, torch.Tensor):
        tokens = torch.as_tensor(x, device=device)
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"{name} are token ids, which are integers; got {tokens.dtype}.")
    if tokens.dim() != 2:
        raise ValueError(f"{name} have shape (batch, length); got {tuple(tokens.shape)}.")
    if tokens.shape[0] != batch_size:
        raise ValueError(
            f"{name} have a batch of {tokens.shape[0]}, but batch_size is {batch_size}. Give "
            f"batch_size={tokens.shape[0]}."
        )
    return tokens.long()
