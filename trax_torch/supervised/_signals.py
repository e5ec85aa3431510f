"""Signals that ask a run to end: a handler sets a flag, and nothing else.

What is done about it, the loop decides between two steps.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT)

_ECHO = 1.0  # seconds


class Stopper:
    """While its block runs, SIGTERM and SIGINT set a flag instead of ending the process.

    A second one ends the process at once; within a second it is taken for the same one, which a
    launcher passes on to processes that have got it themselves. A signal that is ignored (by
    `nohup`, say) stays so, and outside the main thread, where Python takes no signals, nothing is
    changed.

    Attributes:
      signum: the number of the signal that came; None while none has.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():
            for signum in ASKING:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._asked_at = signum, now
        elif now - self._asked_at > _ECHO:
            os._exit(exit_code(signum))


def exit_code(signum: int) -> int:
    """Returns what a shell calls the end by a signal: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + signum


def outlive_first(worker_init_fn: Any, worker_id: int) -> None:
    """Has a DataLoader's worker ignore the first signal, which its process's group may all get.

    The loop decides when to stop, and needs its workers until then. A second one ends the worker,
    so that a worker that hangs can be ended.
    """

    def ignore_once(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    for signum in ASKING:
        signal.signal(signum, ignore_once)
    if worker_init_fn is not None:
        worker_init_fn(worker_id)
