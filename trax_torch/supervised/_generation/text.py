"""Texts into tokens and back, by a tokenizer of transformers or one like it."""

from collections.abc import Sequence
from typing import Any

import torch


def tokens_of_texts(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Returns texts as inputs of decoding, rows padded on the right; no padding token is needed.

    Args:
      tokenizer: maps texts to a mapping with `input_ids`, a list of integers for each.
      texts: at least one.
    """
    rows = [torch.as_tensor(ids, dtype=torch.int64) for ids in tokenizer(list(texts))["input_ids"]]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.arange(ids.shape[1]) < lengths[:, None]}


def texts_of_tokens(tokenizer: Any, tokens: torch.Tensor) -> list[str]:
    """Returns rows of tokens as texts, without symbols that are none of the text's."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in tokens.tolist()]
