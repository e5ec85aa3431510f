"""Subwords of a tensor2tensor vocabulary file.

A run of `words` is written with escapes and ends in an underscore; then the longest subword that
it begins with is cut off, until nothing is left. Underscores are written `\\u`, backslashes twice,
newlines and characters that are in no subword by their code points, `\\10;`. So every text has ids.
"""

import functools
import re
from collections.abc import Iterable

from trax_torch.data._vocabularies import words
from trax_torch.data._vocabularies.files import lines_of

_NO_CHARACTER = "\u3013"  # what Trax shows for an escape that is of none
_ESCAPED = re.compile(r"\\u|\\\\|\\([0-9]+);")
_OF_ESCAPES = "\\_u;0123456789"
_PREFIX = -1  # of subwords, and none itself
_SHORT = 32  # characters, of words that come again
_N_KEPT = 2**15  # of these


class SubwordVocabulary:
    """Texts as ids of subwords, and back.

    Args:
      subwords: by their ids. Of equal ones, the last is used.
      source: where they are from, for messages.
    """

    def __init__(self, subwords: Iterable[str], source: str):
        self._subwords = list(subwords)
        self._source = source
        self._escapes = _Escapes("".join(self._subwords) + _OF_ESCAPES)
        # The search follows these, and so no further than a longer subword may come of it.
        self._prefixes: dict[str, int] = {}
        for i, subword in enumerate(self._subwords):
            for end in range(1, len(subword)):
                self._prefixes.setdefault(subword[:end], _PREFIX)
            if subword:
                self._prefixes[subword] = i
        self._cut_short = functools.lru_cache(_N_KEPT)(self._cut)

    @classmethod
    def from_file(cls, path: str) -> "SubwordVocabulary":
        """Reads one subword a line, in quotes of either kind or without; line 1 has id 0.

        Raises:
          ValueError: if it is no file of such lines.
        """
        return cls((_unquoted(line.rstrip()) for line in lines_of(path)), source=path)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self._subwords)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text.

        Raises:
          ValueError: if a character that stands in longer subwords is not one by itself.
        """
        ids: list[int] = []
        for run in words.split(text):
            ids += self._cut_short(run) if len(run) <= _SHORT else self._cut(run)
        return ids

    def _cut(self, run: str) -> list[int]:
        escaped, ids = run.translate(self._escapes) + "_", list[int]()
        prefixes, start, n = self._prefixes, 0, len(escaped)
        while start < n:
            longest, stop = _PREFIX, start
            for end in range(start + 1, n + 1):
                found = prefixes.get(escaped[start:end])
                if found is None:
                    break
                if found != _PREFIX:
                    longest, stop = found, end
            if longest == _PREFIX:
                raise ValueError(
                    f"A subword vocabulary must hold each of its characters by itself; "
                    f"{self._source} has no subword that {escaped[start : start + 20]!r} begins "
                    f"with. Use the whole file that the model was trained with."
                )
            ids.append(longest)
            start = stop
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids; one that is outside the vocabulary stands for nothing."""
        n = len(self._subwords)
        escaped = "".join([self._subwords[i] for i in ids if 0 <= i < n])
        runs = [_ESCAPED.sub(_character, run) for run in escaped.split("_")]
        return words.join([run for run in runs if run])


class _Escapes(dict[int, str]):
    """What `str.translate` writes for characters, by their code points, filled as they come."""

    def __init__(self, alphabet: str):
        super().__init__({ord("\\"): "\\\\", ord("_"): "\\u", ord("\n"): "\\10;"})
        for character in set(alphabet) - {"\\", "_", "\n"}:
            self[ord(character)] = character

    def __missing__(self, code: int) -> str:
        return f"\\{code};"


def _character(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return "_" if escape[0] == "\\u" else "\\"
    try:
        return chr(int(escape[1]))
    except (ValueError, OverflowError):
        return _NO_CHARACTER


def _unquoted(line: str) -> str:
    is_quoted = line[:1] in ("'", '"') and line.endswith(line[:1])
    return line[1:-1] if is_quoted else line
