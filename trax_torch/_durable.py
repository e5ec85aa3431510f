"""What survives a loss of power."""

import contextlib
import os
from collections.abc import Generator
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: str) -> Generator[BinaryIO]:
    """Gives a file to write, which takes a path's place when it is whole, and on the disk.

    If that fails, what was at the path is as it was, and nothing is left beside it. The new name is
    on the disk with the folder; see `sync_folder`.
    """
    partial = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.tmp")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def sync_folder(path: str) -> None:
    """Does not return before the names in a folder are on the disk.

    Raises:
      OSError: if they cannot be brought there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
