"""One writer a folder: a lock that other processes see, and other Loops of this one."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import struct
import sys
import threading
from collections.abc import Generator

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint.files import reasons

_log = logging.getLogger("trax_torch")

# Such a lock belongs to the file as it was opened, where an older one belongs to the process: that
# one is shared by all Loops of it, and gone as soon as one of them closes the file.
_SETLK = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
_NOT_THERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()  # files that this process has locked


class FolderLock:
    """The right to write into a folder.

    Args:
      directory: the folder.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._mutex = threading.Lock()
        self._n_holders = 0
        self._fd = -1

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Keeps others from writing here for a while; may be held several times over.

        Raises:
          CheckpointError: if another process, or another Loop of this one, writes here now.
        """
        with self._mutex:
            if not self._n_holders:
                self._fd = self._open()
            self._n_holders += 1
        try:
            yield
        finally:
            with self._mutex:
                self._n_holders -= 1
                if not self._n_holders:
                    _let_go(self._fd)

    def _open(self) -> int:
        name = os.path.join(self._directory, ".lock")
        with reasons(name, "open"):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            _held.add(fd)
            try:
                _lock(fd)
            except BaseException as error:
                _let_go(fd)
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                raise CheckpointError(
                    f"Another process is training into {self._directory} now, or another Loop of "
                    f"this one. Give this Loop an output_dir of its own, or wait. Or give it none, "
                    f"and call load_checkpoint({self._directory!r}), to read what is saved there."
                ) from None
        return fd


def _lock(fd: int) -> None:
    """Locks a file.

    Raises:
      BlockingIOError or PermissionError: if it is locked.
    """
    if _SETLK is not None:
        try:
            _set(fd, fcntl.F_WRLCK)
            return
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
    _tell_once()
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _let_go(fd: int) -> None:
    """Unlocks and closes a file, unless a fork has done so."""
    if fd in _held:
        _held.discard(fd)
        with contextlib.suppress(OSError):  # closing lets go, too, unless it is open elsewhere
            _set(fd, fcntl.F_UNLCK)
        with contextlib.suppress(OSError):  # it is closed all the same
            os.close(fd)


def _set(fd: int, kind: int) -> None:
    """Locks or unlocks a whole file: a `struct flock` of 64-bit offsets, and of no process."""
    if _SETLK is not None:
        fcntl.fcntl(fd, _SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


@functools.cache
def _tell_once() -> None:
    _log.warning(
        "There are no open-file-description locks here: other processes are kept from writing into "
        "a Loop's output_dir, other Loops of this process are not. Give each Loop its own."
    )


def _close_in_child() -> None:
    """Lets go of what is the parent's: a DataLoader's workers may outlive it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)
