"""Files of bytes: read with a bound, known by their hash, with the system's errors in words."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Generator

from trax_torch._errors import CheckpointError


def hash_of(data: bytes) -> str:
    """Returns the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def read(path: str, size: int) -> bytes | None:
    """Returns the bytes of a plain file of at most `size` bytes; None if there is no file.

    Raises:
      CheckpointError: if it has more, or cannot be read.
    """
    return _read(path, size, is_whole=True)


def read_first(path: str, size: int) -> bytes | None:
    """Returns the first `size` bytes of a plain file, or all if it has fewer; None for no file.

    Raises:
      CheckpointError: if it cannot be read.
    """
    return _read(path, size, is_whole=False)


def _read(path: str, size: int, is_whole: bool) -> bytes | None:
    with reasons(path, "read"):
        try:
            # Without O_NONBLOCK a pipe in the file's place would wait for a writer for ever.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CheckpointError(f"{path} is not a plain file.")
        with os.fdopen(fd, "rb") as f:
            found = os.fstat(fd).st_size
            if found > size and is_whole:
                raise CheckpointError(
                    f"{path} is damaged: it has {found} bytes, and {size} at most were written. "
                    f"Load another checkpoint of that folder."
                )
            return f.read(min(found, size))


@contextlib.contextmanager
def reasons(path: str, verb: str) -> Generator[None]:
    """Turns the operating system's errors into CheckpointErrors that say what could not be done."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"Could not {verb} {error.filename or path}: {reason}. What was saved before is intact."
        ) from error
