"""What a rank that fails says to the others, which wait for it in vain."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_PATIENCE = 2.0  # seconds that a store has to answer; it may be cut off


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

    Attributes:
      serial: tells the ranks that made this from others at that store.
      is_cut: whether the store gave no answer when it was last asked.
    """

    def __init__(self, store: Any, rank: int):
        self._store, self._rank, self._call = store, rank, 0
        self.serial = 0 if store is None else store.add(f"trax_torch/words/of{rank}", 1)
        self.is_cut = False

    def begin(self) -> None:
        """Begins a call."""
        self._call += 1

    @property
    def _key(self) -> str:
        return f"trax_torch/words/{self.serial}.{self._call}"

    def leave(self, error: Exception) -> None:
        """Leaves the words of an error, if nobody else has."""
        if getattr(error, "is_heard", False):
            return
        said = f"On rank {self._rank}: {type(error).__name__}: {error} "
        in_time(lambda: self._store.compare_set(self._key, "", said))

    def read(self) -> str | None:
        """Returns what was said, if anything, waiting for nobody to say it."""

        def said() -> str | None:
            if not self._store.check([self._key]):
                return None
            return str(self._store.get(self._key).decode(errors="replace"))

        is_there, answer = in_time(said)
        self.is_cut = self._store is not None and not is_there
        return None if answer is None else str(answer)


def in_time(ask: Callable[[], Any]) -> tuple[bool, Any]:
    """Returns whether a store answers, and what; it may be cut off, or gone with a rank.

    It is asked by a thread, since torch's waits for as long as a network is cut.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        answer: tuple[bool, Any] = (False, None)
        with contextlib.suppress(Exception):  # the error that there is counts, not the words
            answer = (True, ask())
        answers.put(answer)

    threading.Thread(target=run, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return answers.get(timeout=_PATIENCE)
    return False, None
