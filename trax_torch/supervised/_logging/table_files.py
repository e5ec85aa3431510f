"""Files of rows: what is written to them is there whole or not at all."""

import io
import os
import tempfile


def read(path: str) -> bytes:
    """Returns what is in a file; nothing, if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def is_whole(path: str) -> bool:
    """Tells whether a file is there still, and ends with a line that is whole."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    except OSError:  # it is not there, or empty
        return False


def append(path: str, data: bytes, instead_of: bytes) -> None:
    """Appends to a file, in the place of what it ends with, if it does: all or nothing."""
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END) - len(instead_of)
        file.seek(max(before, 0))
        if before < 0 or file.read() != instead_of:
            before, instead_of = file.seek(0, os.SEEK_END), b""
        try:
            file.truncate(before)
            _write(file, data)
        except OSError:
            file.truncate(before)
            _write(file, instead_of)
            raise


def _write(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that fills up takes a part, and raises when asked again
        rest = rest[file.write(rest) :]


def put(path: str, data: bytes) -> None:
    """Writes a file in the place of what is there, whole or not at all."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished:
        new = os.path.join(unfinished, "new")
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def set_aside(path: str) -> None:
    """Keeps a copy of a file under the first free name: with a number before its ending."""
    stem, ending = os.path.splitext(path)
    number = 1
    while os.path.exists(f"{stem}.{number}{ending}"):
        number += 1
    put(f"{stem}.{number}{ending}", read(path))
