"""What a rank that fails says to the others, which wait for it in vain."""

import contextlib
from typing import Any


def heard(error: Exception) -> Exception:
    """Marks an error that all ranks know of, and returns it: no words are left for it."""
    error.is_heard = True  # type: ignore[attr-defined]
    return error


class Words:
    """What a rank that fails says to those that wait for it: by the store where all of them met.

    Ranks make and begin these in one order, so that the words of one call are those of no other.

    Args:
      store: the store; None has nobody hear anything.
      rank: this process's number.
    """

    def __init__(self, store: Any, rank: int):
        self._store, self._rank, self._call = store, rank, 0
        self._serial = 0 if store is None else store.add(f"trax_torch/words/of{rank}", 1)

    def begin(self) -> None:
        """Begins a call."""
        self._call += 1

    @property
    def _key(self) -> str:
        return f"trax_torch/words/{self._serial}.{self._call}"

    def leave(self, error: Exception) -> None:
        """Leaves the words of an error, if nobody else has."""
        if getattr(error, "is_heard", False):
            return
        with contextlib.suppress(Exception):  # nobody may hear of it; the error itself counts
            said = f"On rank {self._rank}: {type(error).__name__}: {error} "
            self._store.compare_set(self._key, "", said)

    def read(self) -> str | None:
        """Returns what was said, if anything, waiting for nothing."""
        with contextlib.suppress(Exception):  # the store may be gone with a rank
            if self._store.check([self._key]):
                return str(self._store.get(self._key).decode(errors="replace"))
        return None
