"""What was measured, in a file that grows: a save appends what is new, and rewrites nothing.

A checkpoint lists the file with how many of its bytes belong to it, and their hash. Bytes after
those are of a later checkpoint, or of a save that was broken off: each reader stops at its own.
A line of the file is what one save had to add, as `History.between` gives it, in JSON.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files
from trax_torch.supervised.history import History

_NAME = re.compile(r"history\.[0-9a-f]{16}\.jsonl")

Entry = dict[str, Any]  # of a manifest: the file's name, the size in bytes of the part, its sha256


class HistoryFile:
    """The file that a run's history grows in.

    A file is cut back to the bytes that this run knows of, and grows from there, unless another
    checkpoint lists more of it: then the run has gone on from an older one, and its history begins
    a file of its own, so that no checkpoint loses what is its own.

    Args:
      directory: the folder.
      listed: tells how many bytes of a file, by name, the folder's checkpoints list at most.
    """

    def __init__(self, directory: str, listed: Callable[[str], float]):
        self._directory = directory
        self._listed = listed
        self.goes_on(None, {})

    def goes_on(self, entry: Entry | None, lengths: dict[str, dict[str, int]]) -> None:
        """Goes on from a checkpoint.

        Args:
          entry: what its manifest lists; None begins a new file with the next save.
          lengths: `History.lengths` of what is in that file.
        """
        self._name: str | None = entry["name"] if entry else None
        self._size: int = entry["size"] if entry else 0
        self._sha256 = entry["sha256"] if entry else ""
        self._hash = hashlib.sha256()  # of the same, once the file was looked at
        self._lengths = lengths if entry else {}
        self._seen: tuple[int, ...] | None = None  # how the file was left, if by this run

    @property
    def name(self) -> str | None:
        """The file's name, once there is one."""
        return self._name

    def append(self, history: History, lengths: dict[str, dict[str, int]]) -> Entry | None:
        """Brings what is new to the disk; the folder's lock is held meanwhile.

        Args:
          history: of the run.
          lengths: `History.lengths` of what is to be saved; it may have grown since.

        Returns:
          What a manifest is to list; None if nothing was ever recorded.

        Raises:
          CheckpointError: if it cannot be written; what was listed before is intact.
        """
        is_as_left = self._seen is not None and self._look() == self._seen
        if self._name is not None and not is_as_left and not self._may_go_on():
            self.goes_on(None, {})
        data = _line(history.between(self._lengths, lengths))
        if data:
            name = self._name or f"history.{os.urandom(8).hex()}.jsonl"
            seen = self._write(name, data)
            self._hash.update(data)
            self._sha256, self._size = self._hash.hexdigest(), self._size + len(data)
            self._name, self._lengths, self._seen = name, lengths, seen
        if self._name is None:
            return None
        return {"name": self._name, "size": self._size, "sha256": self._sha256}

    def _write(self, name: str, data: bytes) -> tuple[int, ...]:
        """Writes at the end of what is known of the file, which it cuts there."""
        path = os.path.join(self._directory, name)
        new = os.O_CREAT | os.O_EXCL if self._name is None else 0
        with files.reasons(path, "write"):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | new, 0o666)
            try:
                os.ftruncate(fd, self._size)
                n_written = 0
                while n_written < len(data):
                    n_written += os.pwrite(fd, data[n_written:], self._size + n_written)
                os.fsync(fd)
                return _form(os.fstat(fd))
            finally:
                os.close(fd)

    def _look(self) -> tuple[int, ...] | None:
        """Returns how the file is; None if there is none."""
        path = os.path.join(self._directory, self._name or "")
        with files.reasons(path, "look at"):
            try:
                return _form(os.stat(path))
            except FileNotFoundError:
                return None

    def _may_go_on(self) -> bool:
        """Tells whether the file begins as it should, and nobody needs what may come then."""
        name = self._name or ""
        data = files.read_first(os.path.join(self._directory, name), self._size)
        if data is None or files.hash_of(data) != self._sha256:
            return False
        self._hash = hashlib.sha256(data)
        return self._listed(name) <= self._size


def is_name(name: str) -> bool:
    """Tells whether a file of this name is one of a run's history."""
    return _NAME.fullmatch(name) is not None


def names_in(text: str) -> list[str]:
    """Returns the names of such files that occur in a text."""
    return _NAME.findall(text)


def read(directory: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `History.to_dict` gave when a checkpoint was saved.

    Args:
      directory: the folder.
      entry: what the checkpoint's manifest lists.

    Raises:
      CheckpointError: if it is not there, or damaged.
    """
    path, size = os.path.join(directory, entry["name"]), entry["size"]
    data = files.read_first(path, size)
    if data is None:
        raise CheckpointError(
            f"{path}, the checkpoint's history, is not there. Bring it beside the checkpoint's "
            f"other files."
        )
    if len(data) != size or files.hash_of(data) != entry["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: it has {len(data)} bytes of {size}, or other ones than were "
            f"saved. Load another checkpoint of {directory}."
        )
    values: dict[str, dict[str, list[Any]]] = {}
    try:
        for line in data.splitlines():
            for mode, metrics in json.loads(line).items():
                for metric, pairs in metrics.items():
                    found = values.setdefault(mode, {}).setdefault(metric, [])
                    found.extend((int(step), value) for step, value in pairs)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or no history: {error}") from error
    return {"_values": values}


def _line(news: dict[str, Any]) -> bytes:
    if not news:
        return b""
    try:
        return json.dumps(news, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The history cannot be saved: {error}. It holds numbers.") from error


def _form(status: os.stat_result) -> tuple[int, ...]:
    """What of a file changes when somebody else writes to it."""
    return status.st_ino, status.st_size, status.st_mtime_ns
