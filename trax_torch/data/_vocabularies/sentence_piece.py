"""Pieces of a sentencepiece model, cut by that library."""

from typing import Any

from trax_torch._extras import needed


class SentencePieceVocabulary:
    """Texts as ids of a sentencepiece model's pieces, and back.

    Args:
      path: of the model's file.
    """

    def __init__(self, path: str):
        library: Any = needed("sentencepiece", "vocab_type='sentencepiece'", extra="data")
        self._library = library.SentencePieceProcessor()
        try:
            self._library.load(path)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"vocab_type='sentencepiece' needs a model file of sentencepiece; {path} cannot be "
                f"read as one ({error}). Give the .model file, not its .vocab."
            ) from error
        self.vocab_size: int = self._library.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without ids of its begin and end."""
        ids: list[int] = self._library.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text up to the first end of sequence; ids outside are unknown pieces."""
        end, unknown = self._library.eos_id(), self._library.unk_id()
        if end in ids:
            ids = ids[: ids.index(end)]
        n = self.vocab_size
        text: str = self._library.decode([i if 0 <= i < n else unknown for i in ids])
        return text
