"""Gzip files as streams of bounded size that must end cleanly.

This room knows files and bytes. It never takes memory for bytes that have not arrived.
"""

import io
import os
import stat
import zlib
from collections.abc import Generator
from contextlib import contextmanager

from trax_torch._errors import CheckpointError, UnsafeCheckpointError

_CHUNK = 1 << 18


class Budget:
    """How many bytes may still be unpacked; one budget serves all files of a checkpoint.

    Args:
      max_bytes: how many at the start.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.left = max_bytes

    def check(self, n_bytes: int) -> None:
        """Raises UnsafeCheckpointError unless `n_bytes` more would fit; takes nothing."""
        if n_bytes > self.left:
            raise UnsafeCheckpointError(
                f"it unpacks to more than max_bytes={self.max_bytes}; if you trust the file, read "
                f"it with a larger max_bytes"
            )

    def take(self, n_bytes: int) -> None:
        """Takes `n_bytes`, or raises UnsafeCheckpointError."""
        self.check(n_bytes)
        self.left -= n_bytes


class GzipReader:
    """One gzip member, unpacked as it is asked for.

    Args:
      file: a binary file at its start.
      budget: pays for each unpacked byte.
    """

    def __init__(self, file: io.BufferedIOBase | io.RawIOBase, budget: Budget):
        self.budget = budget
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)  # 31: gzip's header and checksum

    def read(self, n_bytes: int) -> bytearray:
        """Returns the next `n_bytes`, fewer only where the stream ends, whole and checked.

        Raises:
          CheckpointError: if the file is cut or damaged.
          UnsafeCheckpointError: if the budget is used up, or bytes follow the stream's end.
        """
        out = bytearray()
        while len(out) < n_bytes and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(_CHUNK) or b""
            try:
                part = self._inflate.decompress(packed, min(n_bytes - len(out), _CHUNK))
            except zlib.error as error:
                raise CheckpointError(f"it is no whole gzip file ({error})") from None
            if not packed and not part and not self._inflate.eof:
                raise CheckpointError("it is cut off: the gzip stream does not end")
            self.budget.take(len(part))
            out += part
        if self._inflate.eof and (self._inflate.unused_data or self._file.read(1)):
            raise UnsafeCheckpointError("bytes follow the end of the gzip stream")
        return out

    def read_all(self) -> bytearray:
        """Returns all bytes up to the stream's end."""
        out = bytearray()
        while part := self.read(_CHUNK):
            out += part
        return out


@contextmanager
def opened(path: str, budget: Budget) -> Generator[GzipReader]:
    """Opens a regular file as a gzip stream, and names it in the errors of the `with` block.

    Raises:
      FileNotFoundError: if there is none.
      CheckpointError: if it is no regular file, or cannot be read.
    """
    try:
        with regular_file(path) as file:
            yield GzipReader(file, budget)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f"{path} is not as Trax writes files: {error}. Nothing in it was run."
        ) from None
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Copy it again from where Trax wrote it."
        ) from None


@contextmanager
def regular_file(path: str) -> Generator[io.BufferedReader]:
    """Opens a regular file; CheckpointError if there is something else."""
    check_is_file(path)
    # Without O_NONBLOCK, a FIFO put in the file's place after the check would hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError("it is no regular file")
        yield file


def check_is_file(path: str) -> int:
    """Returns the size in bytes of a regular file; CheckpointError if there is something else."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, a device or a socket"
        raise CheckpointError(f"it is {kind}, where a file is needed")
    return status.st_size
