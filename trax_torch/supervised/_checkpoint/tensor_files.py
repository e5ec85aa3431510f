"""Safetensors files: written as one, read tensor by tensor into memory of one's own.

A file is never mapped into memory: one that is cut meanwhile would end the process.
"""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import packing
from trax_torch.supervised._checkpoint.files import hash_of, read_first, reasons

_LENGTH = 8  # bytes that say how long the header is
_AT_ONCE = 2**22  # bytes that are read, hashed or written in one go
_METADATA = "__metadata__"
_MOST = 10**8  # bytes of a header, as the library has it
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


def write(path: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, str]:
    """Writes a file that did not exist, of plain tensors; returns its size and hash."""
    _write(path, tensors)
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        return os.fstat(f.fileno()).st_size, hashlib.file_digest(f, "sha256").hexdigest()


def write_pieces(path: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes a file that did not exist, of plain tensors that are read one by one.

    Returns:
      Its `size` in bytes, how many of them are its `header`, and the header's `sha256`.
    """
    _write(path, tensors)
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        size, header = os.fstat(f.fileno()).st_size, _LENGTH + _length_of(f.read(_LENGTH))
        f.seek(0)
        return {"size": size, "header": header, "sha256": hash_of(f.read(header))}


def hashes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns of each plain tensor the hash of its bytes, by name."""
    return {name: hashlib.sha256(_bytes_of(x)).hexdigest() for name, x in tensors.items()}


def _write(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, {"format": "pt"})
    except SafetensorError as error:  # what the operating system said is in its text alone
        raise OSError(errno.EIO, str(error), path) from error
    os.chmod(path, os.stat(os.path.dirname(path)).st_mode & 0o666)  # it leaves 0600


def stream(file: BinaryIO, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a file of tensors that are read one at a time.

    Args:
      file: where to.
      tensors: each has a `shape`, a `dtype`, and a `read` that returns it.
      metadata: texts that stand before them.

    Raises:
      ValueError: if the format has not the type of one; nothing is written then.
    """
    # Wide types come first, so that each tensor lies as its type wants, as the library has it.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + n_bytes(tensors[name])
        header[name] = {
            "dtype": _name_of_type(tensors[name].dtype, name),
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    file.write(len(text).to_bytes(_LENGTH, "little") + text)
    for name in names:
        file.write(_bytes_of(tensors[name].read().contiguous()))


def to_bytes(tensors: Mapping[str, torch.Tensor], info: Any) -> bytes:
    """Returns tensors and plain data as bytes, to be sent."""
    from safetensors.torch import save

    plain, forms = packing.to_plain(tensors)
    text = json.dumps([forms, info]).encode()
    return len(text).to_bytes(8, "little") + text + save(plain)


def from_bytes(data: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """Returns what `to_bytes` was given."""
    from safetensors.torch import load

    end = 8 + int.from_bytes(data[:8], "little")
    forms, info = json.loads(data[8:end])
    return packing.from_plain(load(data[end:]), forms), info


def n_bytes(tensor: Any) -> int:
    """Returns how many bytes a tensor has, by its `shape` and `dtype`."""
    n: int = math.prod(tensor.shape) * tensor.dtype.itemsize
    return n


def _name_of_type(dtype: torch.dtype, of: str) -> str:
    """Returns what the library calls a type, as it says itself."""
    from safetensors.torch import save

    try:
        data = save({of: torch.empty(0, dtype=dtype)})
    except KeyError as error:
        raise ValueError(
            f"A safetensors file has no numbers of type {error}, as {of} holds. Convert it to "
            f"another type first."
        ) from error
    name: str = json.loads(data[_LENGTH:])[of]["dtype"]
    return name


def entry_of(path: str) -> dict[str, Any]:
    """Returns for `TensorFile` what a file of somebody's says of itself; tensors have no hashes.

    Raises:
      CheckpointError: if it cannot be read.
    """
    with reasons(path, "read"):
        n_bytes = os.stat(path).st_size
    header = min(_LENGTH + _length_of(read_first(path, _LENGTH) or b""), n_bytes)
    if header > _MOST:
        raise CheckpointError(f"{path} is no safetensors file: its header has {header} bytes.")
    data = read_first(path, header) or b""
    return {"size": n_bytes, "header": header, "sha256": hash_of(data)}


class TensorFile:
    """A file whose tensors are read one by one; it is known to be whole, or its header is.

    Args:
      path: the file.
      entry: what a manifest says of it: `size`, `sha256`, and `header` if the hash is that of so
        many bytes, and tensors have hashes of their own.

    Raises:
      CheckpointError: if it is not there, or not as it was saved, with its name.
    """

    def __init__(self, path: str, entry: Mapping[str, Any]):
        self._path = path
        self._n_bytes = entry["size"]
        with reasons(path, "read"):
            try:
                # Without O_NONBLOCK a pipe in the file's place would wait for a writer for ever.
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                raise CheckpointError(
                    f"{path} is listed, and is not there. Where each machine has an output_dir of "
                    f"its own, other ranks go on from it when the files of all are in one folder."
                ) from None
            self._file = os.fdopen(fd, "rb", buffering=0)
            try:
                self._start, self._entries = self._check(entry)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def form_of(self, name: str) -> tuple[torch.dtype, list[int]]:
        """Returns the type and shape of a tensor, as they are in the file."""
        entry = self._entry(name)
        return _TYPES[entry["dtype"]], entry["shape"]

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        return [name for name in self._entries if name != _METADATA]

    def read_into(
        self, tensor: torch.Tensor, name: str, sha256: str | None, first: int | None = None
    ) -> None:
        """Fills a contiguous tensor on the CPU with the bytes of one of the file's.

        Args:
          tensor: is filled.
          name: of the other.
          sha256: the hash of all its bytes; None if that is not known.
          first: at which number in it to begin, if the tensor is to have some of its numbers.

        Raises:
          CheckpointError: if there are other bytes than were saved.
        """
        begin, end = self._entry(name)["data_offsets"]
        view = _bytes_of(tensor)
        if first is not None:
            begin = min(begin + first * tensor.itemsize, end)
            end = min(begin + len(view), end)
        digest = hashlib.sha256()
        if end - begin != len(view):
            raise self._damaged(f"{name} has {end - begin} bytes, and {len(view)} were saved")
        with reasons(self._path, "read"):
            for at in range(0, len(view), _AT_ONCE):
                part = view[at : at + _AT_ONCE]
                if os.preadv(self._file.fileno(), [part], self._start + begin + at) != len(part):
                    raise self._damaged(f"it ends within {name}")
                if sha256 is not None:
                    digest.update(part)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise self._damaged(f"{name} has other bytes than were saved")

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise self._damaged(f"it has no {name}")
        entry: dict[str, Any] = self._entries[name]
        return entry

    def _check(self, entry: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Returns where the tensors begin, and what the header says of them."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{self._path} is not a plain file.")
        if status.st_size != entry["size"]:
            raise self._damaged(f"it has {status.st_size} bytes of {entry['size']}")
        n = entry.get("header", entry["size"])
        if self._hash_of(n) != entry["sha256"]:
            raise self._damaged("it has other bytes than were saved")
        length = _length_of(os.pread(self._file.fileno(), _LENGTH, 0))
        if _LENGTH + length > n:
            raise self._damaged(f"its header has {length} bytes")
        try:
            entries = json.loads(os.pread(self._file.fileno(), length, _LENGTH))
            for name, each in entries.items():
                if name != _METADATA:
                    self._check_entry(each, entry["size"] - _LENGTH - length)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header is none: {error}") from error
        return _LENGTH + length, entries

    def _check_entry(self, entry: dict[str, Any], n_bytes: int) -> None:
        begin, end = entry["data_offsets"]
        numbers = [begin, end, *entry["shape"]]
        if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{numbers} are no numbers of bytes")
        n = _TYPES[entry["dtype"]].itemsize
        for extent in entry["shape"]:
            n *= extent
        if end - begin != n or end > n_bytes:
            raise ValueError(f"{entry} does not lie in it")

    def _hash_of(self, n_bytes: int) -> str:
        digest, at = hashlib.sha256(), 0
        while at < n_bytes:
            data = os.pread(self._file.fileno(), min(_AT_ONCE, n_bytes - at), at)
            if not data:
                break
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def _damaged(self, why: str) -> CheckpointError:
        folder, name = os.path.split(self._path)
        return CheckpointError(f"{name} is damaged: {why}. Load another checkpoint of {folder}.")


def _length_of(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor on the CPU."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
