"""A text as runs of letters and digits, and runs of all else; what subwords are cut from."""

import re

# A word is of characters of the categories L and N: what Python calls alphanumeric.
_RUNS = re.compile(r"[^\W_]+|[\W_]+")
_WORD = re.compile(r"[^\W_]")


def split(text: str) -> list[str]:
    """Returns the runs of a text; a single space between two words goes without saying.

    Example:
      >>> split("So, a_b: it's 3 pm ")
      ['So', ', ', 'a', '_', 'b', ': ', 'it', "'", 's', '3', 'pm', ' ']
    """
    runs = _RUNS.findall(text)
    last = len(runs) - 1
    return [run for i, run in enumerate(runs) if run != " " or i in (0, last)]


def join(runs: list[str]) -> str:
    """Returns the text that `split` cut: a space comes between two words that meet.

    Example:
      >>> join(["it", "'", "s", "3", "pm"])
      "it's 3 pm"
    """
    parts = []
    after_word = False
    for run in runs:
        is_word = _WORD.match(run) is not None
        if after_word and is_word:
            parts.append(" ")
        parts.append(run)
        after_word = is_word
    return "".join(parts)
