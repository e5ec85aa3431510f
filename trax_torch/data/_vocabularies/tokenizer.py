"""A vocabulary with reserved ids before it: from what a text comes in to an array, and back."""

import functools
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from trax_torch.data._vocabularies.vocabulary import Vocabulary, vocabulary


@dataclass(frozen=True)
class Tokenizer:
    """Texts as arrays of ids, and back. Settings alone are compared and pickled.

    Args:
      vocab_type, vocab_file, vocab_dir: see `vocabulary`.
      n_reserved_ids: what is added to each id.

    Raises:
      ValueError: if there cannot be so many; and as `vocabulary` does.
    """

    vocab_type: str
    vocab_file: str | None
    vocab_dir: str | None
    n_reserved_ids: int

    def __post_init__(self) -> None:
        n = self.n_reserved_ids
        if not isinstance(n, (int, np.integer)) or n < 0:
            raise ValueError(
                f"n_reserved_ids needs to be a number of ids, 0 or more; got {n!r}. Give 2 to keep "
                f"0 and 1 for padding and the end of sequence, say."
            )
        _ = self._vocabulary  # a file that is not there is told of at once

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return vocabulary(self.vocab_type, self.vocab_file, self.vocab_dir)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Tokenizer, astuple(self)

    @property
    def n_ids(self) -> int:
        """How many ids there are, reserved ones included."""
        return self._vocabulary.vocab_size + self.n_reserved_ids

    def ids_of(self, text: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the ids of a text, of shape (length,).

        Raises:
          TypeError: if it is none.
        """
        ids = self._vocabulary.encode(_as_text(text))
        return np.asarray(ids, np.int64) + self.n_reserved_ids

    def text_of(self, ids: Any) -> str:
        """Returns the text of a row of ids; reserved ones stand for nothing.

        Raises:
          TypeError: if they are no integers.
          ValueError: if they are no row; and where a vocabulary has no text for an id.
        """
        row = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids)
        if row.ndim != 1:
            raise ValueError(
                f"detokenize needs one row of ids, of shape (length,); got shape {row.shape}. Call "
                f"it for each row."
            )
        if row.size and row.dtype.kind not in "iu":
            raise TypeError(
                f"detokenize needs ids that are integers; got {row.dtype}. Of logits, give "
                f"logits.argmax(-1)."
            )
        n = self.n_reserved_ids
        return self._vocabulary.decode([i - n for i in row.tolist() if i >= n])


def _as_text(x: Any) -> str:
    if isinstance(x, np.ndarray) and x.ndim == 0:
        x = x.item()
    if isinstance(x, bytes):
        return x.decode("utf-8", errors="ignore")
    if isinstance(x, str):
        return x
    raise TypeError(
        f"Tokenize needs texts, str or bytes; got {type(x).__name__}: {str(x)[:40]}. Name the keys "
        f"that hold texts: keys=[0] or keys=['text'], say."
    )
