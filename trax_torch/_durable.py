"""What survives a loss of power."""

import os


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
