"""Which vocabulary is meant, and its file, which is read once."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trax_torch.data._vocabularies.bert import BertVocabulary
from trax_torch.data._vocabularies.chars import ByteVocabulary
from trax_torch.data._vocabularies.files import vocabulary_path
from trax_torch.data._vocabularies.sentence_piece import SentencePieceVocabulary
from trax_torch.data._vocabularies.subword import SubwordVocabulary


class Vocabulary(Protocol):
    """What every kind can do."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        ...

    def encode(self, text: str) -> Any:
        """Returns a text's ids, a list or an array of integers."""

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids."""
        ...


_OF_FILES: dict[str, Callable[[str], Vocabulary]] = {
    "subword": SubwordVocabulary.from_file,
    "sentencepiece": SentencePieceVocabulary,
    "bert": functools.partial(BertVocabulary, lowercase=False),
    "bert-lowercase": functools.partial(BertVocabulary, lowercase=True),
}
_KINDS: Sequence[str] = ("char", *_OF_FILES)


def vocabulary(vocab_type: str, vocab_file: str | None, vocab_dir: str | None) -> Vocabulary:
    """Returns a vocabulary; one whose file was read, and is as it was, is not read again.

    Raises:
      ValueError: if there is no such type, or a file is given too few or too many.
      FileNotFoundError: if the file is not there.
      ImportError: if the type needs a library that is not installed.
    """
    if vocab_type not in _KINDS:
        raise ValueError(
            f"vocab_type needs to be one of {', '.join(map(repr, _KINDS))}; got {vocab_type!r}. "
            f"For a tokenizer of another kind, write Map(tokenizer.encode) in its place."
        )
    if vocab_type == "char":
        if vocab_file is not None:
            raise ValueError(
                f"vocab_type='char' has the 256 bytes as its vocabulary and reads no file; got "
                f"vocab_file={vocab_file!r}. Leave the file out, or name its type."
            )
        return ByteVocabulary()
    if vocab_file is None:
        raise ValueError(
            f"vocab_type={vocab_type!r} needs the vocabulary's file; got vocab_file=None. Write "
            f"vocab_file='en_8k.subword', vocab_dir='a/folder', or vocab_type='char' for bytes."
        )
    path = vocabulary_path(vocab_file, vocab_dir)
    status = os.stat(path)
    return _read(vocab_type, path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _read(vocab_type: str, path: str, _changed: int, _size: int) -> Vocabulary:
    return _OF_FILES[vocab_type](path)
