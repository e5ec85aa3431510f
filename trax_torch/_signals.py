"""Signals that ask a run to end: a handler sets a flag, and nothing else.

What is done about it, the loop decides between two steps.
"""

import contextlib
import functools
import gc
import multiprocessing.sharedctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, SimpleNamespace
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT)
_mutex = threading.Lock()
_numbers: dict[int, Any] = {}  # of runs under way, by process


def n_running() -> Any:
    """Returns the number of runs under way in this process, as an object that its workers share."""
    with _mutex:
        number = _number()
        if isinstance(number, SimpleNamespace):
            number = multiprocessing.sharedctypes.RawValue("i", number.value)
            _numbers[os.getpid()] = number
        return number


_ECHO = 1.0  # seconds


class Stopper:
    """While its block runs, SIGTERM and SIGINT set a flag instead of ending the process.

    A second one ends the process at once; within a second it is taken for the same one, which a
    launcher passes on to processes that have got it themselves. One that came too late for the
    block to act on ends the process after the block. Where somebody types at the process, SIGINT
    ends the command alone, as `KeyboardInterrupt`. A signal that is ignored (by `nohup`, say)
    stays so, and outside the main thread, where Python takes no signals, nothing is changed.

    Attributes:
      signum: the number of the signal that came; None while none has.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        _count(1)
        if threading.current_thread() is threading.main_thread():
            for signum in ASKING:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        _count(-1)
        if self.signum is not None and kind is None:
            raise end_by(self.signum)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._asked_at = signum, now
        elif now - self._asked_at > _ECHO:
            if isinstance(end := end_by(signum), KeyboardInterrupt):
                raise end
            os._exit(exit_code(signum))


def is_interactive() -> bool:
    """Tells whether somebody types at this process: at a prompt, in a notebook, `python -i`."""
    return hasattr(sys, "ps1") or bool(sys.flags.inspect)


def end_by(signum: int) -> BaseException:
    """Returns what ends a run after a signal: the process, or, where somebody types, the command.

    Ctrl-C at a prompt is a `KeyboardInterrupt`, after which the session goes on.
    """
    if signum == signal.SIGINT and is_interactive():
        return KeyboardInterrupt()
    return SystemExit(exit_code(signum))


def exit_code(signum: int) -> int:
    """Returns what a shell calls the end by a signal: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + signum


@contextlib.contextmanager
def held() -> Generator[None]:
    """Holds signals that ask a run to end back while its block starts workers.

    So do forked workers, until what `worker_init` returns is called: before that a signal to the
    group would end one that has only begun, and the run with an error.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_init(worker_init_fn: Any) -> Callable[[int], None]:
    """Returns what a DataLoader's worker begins with, so that it lives while its loop needs it.

    It ignores the first signal, which its process's group may all get: the loop decides when to
    stop. A second one, a second later or more, ends the worker, so that one that hangs can be
    ended; and so does the first while no run is under way, for that is how Python ends the workers
    that are left, and waits for them, when it exits. Where somebody types, Ctrl-C is the loop's
    alone: the next run needs the worker.

    Args:
      worker_init_fn: is called after that; or None.
    """
    return functools.partial(_outlive_first, n_running(), is_interactive(), worker_init_fn)


def _outlive_first(
    n_running: Any, is_interactive: bool, worker_init_fn: Any, worker_id: int
) -> None:
    asked_at: float | None = None
    gc.freeze()  # a forked process is no judge of what its parent left: loaders would complain

    def ignore_first(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not n_running.value:
            os._exit(0)  # as torch's own workers do; it would speak of one that is killed
        if asked_at is None:
            asked_at = time.monotonic()
        elif time.monotonic() - asked_at > _ECHO:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    for signum in ASKING:
        signal.signal(signum, ignore_first)
    if is_interactive:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)  # see `held`
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _number() -> Any:  # shared memory is taken where workers need it; a forked process has its own
    return _numbers.setdefault(os.getpid(), SimpleNamespace(value=0))


def _count(change: int) -> None:
    with _mutex:
        _number().value += change
