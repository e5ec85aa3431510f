"""What a user asks to be decoded -> integers on the model's device; or an error that helps."""

import operator
import reprlib
from typing import Any

import torch

from trax_torch import _nest

_COUNTED = {
    "batch_size": "sequences",
    "max_length": "tokens",
    "n_beams": "beams",
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
        try:
            value = operator.index(value)
        except TypeError:
            advice = _ADVICE.get(name, "")
            raise TypeError(f"{name} is an integer; got {value!r}{advice}.") from None
        if name in _COUNTED and value < 1:
            raise ValueError(f"{name} counts {_COUNTED[name]}, so it is at least 1; got {value}.")


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
    tokens = _integers(inputs, needed, advice, device)
    if tokens.dim() != 2:
        raise ValueError(f"{needed}; got shape {tuple(tokens.shape)}. One sequence is one row.")
    return _of_batch(tokens, "inputs", batch_size)


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
