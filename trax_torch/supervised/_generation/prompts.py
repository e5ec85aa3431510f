"""What a user asks to be decoded -> integers on the model's device; or an error that helps."""

import operator
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from trax_torch import _nest
from trax_torch import layers as tl
from trax_torch.supervised._generation import symbols

_COUNTED = {
    "batch_size": "sequences",
    "max_length": "tokens",
    "n_beams": "beams",
    "n_groups": "groups of beams",
    "n_samples": "sequences of a prompt",
    "eval_min_length": "positions",
}
_ADVICE = {
    "eos_id": "; give -1 for none",
    "max_length": "; give a number: a stream alone may have no end",
}


def check_counts(**counts: Any) -> None:
    """Refuses what is no integer, and what counts something but nothing.

    Raises:
      TypeError: if one is no integer.
      ValueError: if one that counts is below 1.
    """
    for name, value in counts.items():
        n: Any = value
        try:
            several = value if name == "eos_id" and isinstance(value, (tuple, list)) else [value]
            for each in several:
                n = operator.index(each)
        except TypeError:
            advice = _ADVICE.get(name, "")
            raise TypeError(f"{name} is an integer; got {value!r}{advice}.") from None
        if name in _COUNTED and n < 1:
            raise ValueError(f"{name} counts {_COUNTED[name]}, so it is at least 1; got {n}.")


class Prompt(NamedTuple):
    """What a model is given before the first token.

    Attributes:
      source: integers (batch, length), for a model that takes several inputs; else None.
      tokens: integers (batch, length), those before the first one.
      lengths: how much of each row of `tokens` counts, integers (batch,); None for all.
      n_starts: how many of them are start symbols, which nobody gave as tokens.
    """

    source: torch.Tensor | None
    tokens: torch.Tensor
    lengths: torch.Tensor | None
    n_starts: int = 1

    def given(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the tokens without start symbols, and their lengths."""
        lengths = None if self.lengths is None else self.lengths - self.n_starts
        return self.tokens[:, self.n_starts :], lengths

    def repeated(self, n: int) -> "Prompt":
        """Returns each row n times, one after another."""
        source, tokens, lengths = (
            None if x is None else x.repeat_interleave(n, 0) for x in self[:3]
        )
        assert tokens is not None
        return Prompt(source, tokens, lengths, self.n_starts)


def prompt_for(
    layer: tl.Layer, inputs: Any, batch_size: int, start_id: Any, prompt_lengths: Any
) -> Prompt:
    """Returns what a model is given before the first token.

    Args:
      layer: the model.
      inputs, batch_size, start_id, prompt_lengths: as for `autoregressive_sample_stream`.
    """
    device = next((p.device for p in layer.parameters()), torch.device("cpu"))
    given, mask = _tokens_and_mask(inputs, batch_size, device)
    has_whole_prompts = bool(symbols.own(layer, "takes_whole_prompts"))
    if layer.n_in > 1:
        source = _source(layer, given, mask, prompt_lengths)
        start = start_symbols(symbols.symbol(layer, "start_id", start_id), batch_size, device)
        return Prompt(source, start, None)
    if given is None and prompt_lengths is not None:
        raise ValueError("prompt_lengths are of the rows of inputs; give inputs too.")
    lengths = None
    if given is not None and mask is not None:
        if prompt_lengths is not None:
            raise ValueError("The attention_mask of inputs tells prompt_lengths; give one of them.")
        given, lengths = _to_the_left(given, mask)
    elif given is not None and prompt_lengths is not None:
        given, lengths = cut_to_lengths(given, prompt_lengths)
    if given is not None and has_whole_prompts and isinstance(start_id, symbols.Default):
        shortest = given.shape[1] if lengths is None else int(lengths.min())
        if shortest < 1:
            raise ValueError(
                f"A prompt of {layer.name} has at least one token; got one that is empty. Begin it "
                f"with the model's start symbol, or give start_id."
            )
        return Prompt(None, given, lengths, n_starts=0)
    start = start_symbols(symbols.symbol(layer, "start_id", start_id), batch_size, device)
    if given is not None:
        start = torch.cat([start, given], dim=1)
    return Prompt(None, start, None if lengths is None else lengths + 1)


def _tokens_and_mask(
    inputs: Any, batch_size: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns tokens and which of them count, None for all, of tokens or what a tokenizer gives."""
    if inputs is None:
        return None, None
    if not isinstance(inputs, Mapping):
        return tokens_of(inputs, batch_size, device), None
    if "input_ids" not in inputs:
        raise ValueError(
            f"inputs that are a mapping have 'input_ids', as tokenizers give them; got "
            f"{list(inputs)}. Give the tokens alone."
        )
    tokens = tokens_of(inputs["input_ids"], batch_size, device)
    marks = inputs.get("attention_mask")
    if marks is None:
        return tokens, None
    is_bool = isinstance(marks, torch.Tensor) and marks.dtype == torch.bool
    mask = tokens_of(marks.long() if is_bool else marks, batch_size, device) != 0
    if mask.shape != tokens.shape:
        raise ValueError(
            f"An attention_mask is as large as the tokens, {tuple(tokens.shape)}; got "
            f"{tuple(mask.shape)}. Give what the tokenizer gave."
        )
    return tokens, None if bool(mask.all()) else mask


def _to_the_left(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the tokens that count, with the padding behind them, and how many they are."""
    order = mask.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices
    return cut_to_lengths(tokens.gather(1, order), mask.sum(1))


def _source(
    layer: tl.Layer, given: torch.Tensor | None, mask: torch.Tensor | None, prompt_lengths: Any
) -> torch.Tensor:
    """Returns what a model reads that takes (source, tokens), with its padding told by tokens."""
    if given is None:
        raise ValueError(
            f"The model takes {layer.n_in} inputs, the first of which is the source; give inputs."
        )
    padding = int(symbols.symbol(layer, "pad_id", symbols.PADDING))
    if prompt_lengths is not None:
        raise ValueError(
            f"prompt_lengths are of prefixes, but inputs are the source of {layer.name}, whose "
            f"padding is told by its tokens, {padding}."
        )
    return given if mask is None else given.masked_fill(~mask, padding)


def cut_to_lengths(inputs: torch.Tensor, lengths: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns prompts without needless padding, and their lengths."""
    batch, n = inputs.shape
    needed = f"prompt_lengths are {batch} integers, one a row"
    lengths = _integers(lengths, needed, "Count the tokens of each prompt.", inputs.device)
    if lengths.shape != (batch,):
        raise ValueError(f"{needed}; got shape {tuple(lengths.shape)}. Give one for each row.")
    low, high = (int(x) for x in torch.aminmax(lengths))
    if low < 0 or high > n:
        raise ValueError(
            f"prompt_lengths are between 0 and {n}, the length of inputs; got "
            f"{low if low < 0 else high}."
        )
    inputs = inputs[:, :high]
    is_padding = torch.arange(high, device=inputs.device) >= lengths[:, None]
    return inputs.masked_fill(is_padding, 0), lengths


def start_symbols(start_id: Any, batch_size: int, device: torch.device) -> torch.Tensor:
    """Returns the symbols before the first token as int64 (batch, 1) on the device."""
    needed = "start_id is an integer, or integers of shape (batch, 1)"
    symbols = _integers(start_id, needed, "Give 0 for the usual start.", device)
    if symbols.dim() == 0:
        return symbols.repeat(batch_size, 1)
    if symbols.dim() != 2 or symbols.shape[1] != 1:
        raise ValueError(f"{needed}; got shape {tuple(symbols.shape)}. Give one for each row.")
    return _of_batch(symbols, "start_id", batch_size)


def tokens_of(inputs: Any, batch_size: int, device: torch.device) -> torch.Tensor:
    """Returns inputs as int64 (batch, length) on the device."""
    needed = "inputs are integers of shape (batch, length)"
    advice = "Make rows of one length: pad shorter prompts on the right, and give prompt_lengths."
    if isinstance(inputs, str):
        advice = "Encode the text, with the tokenizer that the model was trained with."
    tokens = _integers(inputs, needed, advice, device)
    if tokens.dim() != 2:
        raise ValueError(f"{needed}; got shape {tuple(tokens.shape)}. One sequence is one row.")
    return _of_batch(tokens, "inputs", batch_size)


def row_of(prompt: Any, index: int, device: torch.device) -> torch.Tensor:
    """Returns one of many prompts as int64 (1, length) on the device.

    Args:
      prompt: integers (length,), or what a tokenizer gives for one text.
      index: which it is.
    """
    needed = f"A prompt is integers of shape (length,), as prompt {index} is not"
    ids = prompt.get("input_ids") if isinstance(prompt, Mapping) else prompt
    advice = "Give the token ids of one sequence, as a list, an array or a tensor."
    if isinstance(ids, str):
        advice = "Encode the text, with the tokenizer that the model was trained with."
    tokens = _integers(ids, needed, advice, device)
    if tokens.dim() != 1:
        raise ValueError(f"{needed}; got shape {tuple(tokens.shape)}. {advice}")
    return tokens[None]


def _of_batch(tokens: torch.Tensor, name: str, batch_size: int) -> torch.Tensor:
    if len(tokens) != batch_size:
        raise ValueError(
            f"{name} have a batch of {len(tokens)}, but batch_size is {batch_size}. Give "
            f"batch_size={len(tokens)}."
        )
    return tokens


def _integers(x: Any, needed: str, advice: str, device: torch.device) -> torch.Tensor:
    """Returns a number, list, array or tensor of integers as int64 on the device.

    Raises:
      TypeError: with what is needed, what came, and what to do.
    """
    try:
        tensor = _nest.to_tensor(x)
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(x)
            if not tensor.numel():  # a list of empty rows has no type
                tensor = tensor.long()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{needed}; got {reprlib.repr(x)}. {advice}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{needed}; got {tensor.dtype}. {advice}")
    return tensor.to(device, torch.int64)
