"""Who does not answer when ranks wait in vain, and what each did when it was last heard of.

Ranks tell each other by the store where they met: what they begin, where that may take long, and
that they have given up. Nobody waits for a store that does not answer, as one on a stopped rank.
"""

import contextlib
import json
import os
import time
from collections.abc import Generator, Iterable
from typing import Any

from trax_torch import _last_words
from trax_torch._errors import RankError

_GONE = (
    "Another rank is gone or does not answer: {} ({}) See its own output; torchrun --max-restarts "
    "starts all of them again, from the last checkpoint."
)
_SLOW = " If it is only slow, give Loop(timeout=) more than {:g} seconds."
_PATIENCE = 1.0  # seconds that others have to say that they, too, wait in vain
_PAUSE = 0.02  # between two looks for who has


class Roll:
    """Calls the roll of ranks when one of them waits in vain.

    Args:
      store: where all of them met; None has nobody known.
      serial: tells these ranks from others that meet there.
      rank: this process's number, and size: how many there are.
    """

    def __init__(self, store: Any, serial: str, rank: int, size: int):
        self._store, self._serial, self._rank, self._size = store, serial, rank, size
        self._phases = ["at the start"]
        self._verdict: str | None = None

    def beside(self) -> "Roll":
        """Returns the roll of the same ranks for a thread beside this one."""
        return Roll(self._store, f"{self._serial} beside", self._rank, self._size)

    @contextlib.contextmanager
    def phase(self, name: str, is_told: bool) -> Generator[None]:
        """Names what its block does.

        Args:
          name: as in 'hashing its part', or 'in step 4'.
          is_told: whether others know of it while all is well, too, which costs a message.
        """
        self._phases.append(name)
        try:
            if is_told:
                self._tell(name)
            yield
        finally:
            self._phases.pop()
        if is_told:
            self._tell(f"no longer {name}")

    def _tell(self, name: str) -> None:
        if self._store is not None and self._verdict is None:
            with contextlib.suppress(Exception):  # whoever needs an answer says that it is gone
                self._store.set(self._key("doing", self._rank), name)

    def _key(self, kind: str, rank: int) -> str:
        return f"trax_torch/roll/{self._serial}/{kind}/{rank}"

    def answer(self) -> None:
        """Says that this rank is there, and waits in vain."""
        if self._store is not None:
            _last_words.in_time(lambda: self._say(self._phases[-1]))

    def call(self, is_cut: bool = False) -> str:
        """Returns who does not answer, as far as is known soon; the same each time.

        Args:
          is_cut: whether the store is known not to answer.
        """
        if self._verdict is None:
            here = self._phases[-1]
            self._verdict = f"{self._who(is_cut, here)}. This is rank {self._rank}, {here}."
        return self._verdict

    def _who(self, is_cut: bool, here: str) -> str:
        if self._store is None:
            return "which one is not known"
        answers: dict[int, dict[str, Any]] = {}
        doing: dict[int, str] = {}
        if is_cut or not _last_words.in_time(lambda: self._ask(answers, doing, here))[0]:
            of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            keeps = "its machine keeps" if of_agent else "it keeps"
            if self._rank and 0 not in answers:
                return f"rank 0, or the way to it: the store that {keeps} for all does not answer"
        mine = [r for r, said in sorted(answers.items()) if self._rank in said.get("silent", ())]
        if mine:
            was = [f"rank {r} ({answers[r]['doing']})" for r in mine]
            return f"{' and '.join(was)} gave up, since this one, rank {self._rank}, was silent"
        silent = [r for r in range(self._size) if r != self._rank and r not in answers]
        if not silent:
            was = [f"rank {r} ({said['doing']})" for r, said in sorted(answers.items())]
            return f"the others wait in vain, too: {', '.join(was)}"
        was = [f"rank {r} (last heard of: {doing.get(r, 'nothing')})" for r in silent]
        return " and ".join(was)

    def _ask(self, answers: dict[int, dict[str, Any]], doing: dict[int, str], here: str) -> None:
        """Finds out who else waits in vain, and what others did; says who is silent."""
        others = set(range(self._size)) - {self._rank}
        for rank in others:
            if self._store.check([self._key("doing", rank)]):
                doing[rank] = self._store.get(self._key("doing", rank)).decode()
        until = time.monotonic() + _PATIENCE
        while True:
            self._hear(others - answers.keys(), answers)
            known = {r for said in answers.values() for r in said.get("silent", ())}
            if others <= answers.keys() | known or time.monotonic() > until:
                break
            time.sleep(_PAUSE)
        self._say(here, silent=sorted(others - answers.keys()))
        while self._rank == 0 and time.monotonic() < until + _PATIENCE:  # it may keep the store
            self._hear(others, answers)
            if all("silent" in said for said in answers.values()):
                break
            time.sleep(_PAUSE)

    def _hear(self, ranks: Iterable[int], answers: dict[int, dict[str, Any]]) -> None:
        for rank in ranks:
            if self._store.check([self._key("vain", rank)]):
                answers[rank] = json.loads(self._store.get(self._key("vain", rank)))

    def _say(self, here: str, **more: Any) -> None:
        self._store.set(self._key("vain", self._rank), json.dumps({"doing": here, **more}))


def gone(
    error: Exception,
    roll: Roll | None = None,
    words: _last_words.Words | None = None,
    timeout: float = 0.0,
    *hints: str,
) -> RankError:
    """Returns the error that another rank is gone, which one, and what it said, if it did.

    Args:
      error: what the line between ranks says.
      roll: of those that are there by now, and words: where one may have said why it failed.
      timeout: seconds for which ranks wait.
      hints: what else there is to say.
    """
    if roll is not None:
        roll.answer()
    said = None if words is None else words.read()
    who = "which one is not known." if said is None else "it has failed."
    if said is None and roll is not None:
        who = roll.call(is_cut=words is not None and words.is_cut)
    if timeout and "timed out" in str(error).lower():
        hints = (_SLOW.format(timeout), *hints)
    raised = RankError("".join([said or "", _GONE.format(who, error), *hints]))
    raised.is_gone = True  # type: ignore[attr-defined]
    return raised
