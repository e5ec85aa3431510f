"""What outlives the process: checkpoints that are whole or absent.

A checkpoint is a manifest, `<basename>.json`, and the safetensors files it lists. Each save makes
files under new names, and then replaces the manifest: that one step is the commit. What a file
should hold is known by its size and hash before any of it is believed. Nothing read is ever run.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from trax_torch._durable import sync_folder
from trax_torch._errors import CheckpointError

FORMAT = "trax_torch.checkpoint"
VERSION = 1
_MAX_MANIFEST = 2**28  # bytes; a history of millions of values has fewer

_BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PART = re.compile(
    r"(?P<basename>.+)\.(?P<generation>[0-9a-f]{16})\.(weights|state|opt_slots\d+)\.safetensors"
)
_STAGING = re.compile(r"\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\.[0-9a-f]{16}\.tmp")
_PERMANENT = re.compile(r"model_(?P<step>\d+)\.(json|[0-9a-f]{16}\.\w+\.safetensors)")

Parts = dict[str, dict[str, torch.Tensor]]


def check_basename(basename: str) -> str:
    """Returns a basename that is a plain file name.

    Raises:
      ValueError: if it is not: letters, digits, '_', '.', '-', not beginning with the last two.
    """
    if not isinstance(basename, str) or not _BASENAME.fullmatch(basename):
        raise ValueError(
            f"A checkpoint's name has 1 to 128 letters, digits, '_', '.' or '-', and begins with "
            f"none of the last two; got {basename!r}."
        )
    return basename


class Folder:
    """A folder of checkpoints.

    Args:
      path: the folder; it is made if it is not there.

    Raises:
      CheckpointError: if it cannot be made or written to.
    """

    def __init__(self, path: str):
        self.path = path
        self._mutex = threading.Lock()
        self._n_holders = 0  # of the lock, in this process
        self._lock_fd = -1
        with _reasons(path, "make"):
            if not os.path.isdir(path):
                os.makedirs(path, exist_ok=True)
                sync_folder(os.path.dirname(os.path.abspath(path)))
        if not os.access(path, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{path} cannot be written to. Give an output_dir of your own, or None."
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here for a while; may be held several times over.

        Raises:
          CheckpointError: if another process writes here now.
        """
        with self._mutex:
            if not self._n_holders:
                self._lock_fd = self._open_lock()
            self._n_holders += 1
        try:
            yield
        finally:
            with self._mutex:
                self._n_holders -= 1
                if not self._n_holders:
                    with contextlib.suppress(OSError):  # it is closed, and let go, all the same
                        os.close(self._lock_fd)

    def _open_lock(self) -> int:
        name = os.path.join(self.path, ".lock")
        with _reasons(name, "open"):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # Not flock: DataLoader workers, forked meanwhile, would go on holding it.
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise
            raise CheckpointError(
                f"Another process is training into {self.path} now. Give this one an output_dir "
                f"of its own, or wait."
            ) from None
        return fd

    def save(self, basename: str, parts: Parts, info: Mapping[str, Any]) -> str:
        """Saves a checkpoint under a name, in the place of an earlier one of that name.

        Whatever happens meanwhile, the name stands for the old checkpoint or the new one, whole.

        Args:
          basename: the name.
          parts: `{part: {name: tensor}}`; parts are 'weights', 'state' and 'opt_slots0', ...
          info: plain data for the manifest.

        Returns:
          The generation: what tells this save from every other.

        Raises:
          ValueError: if the name is not a plain one.
          CheckpointError: if the files cannot be written, with the reason.
        """
        check_basename(basename)
        generation = os.urandom(8).hex()
        staging = os.path.join(self.path, f".{basename}.{generation}.tmp")
        final: list[str] = []
        try:
            with _reasons(staging, "write"):
                os.mkdir(staging)
                files: dict[str, dict[str, Any]] = {}
                for part, tensors in parts.items():
                    name = f"{basename}.{generation}.{part}.safetensors"
                    size, sha256 = _write_tensors(os.path.join(staging, name), tensors)
                    files[part] = {"name": name, "size": size, "sha256": sha256}
                manifest = {
                    "format": FORMAT,
                    "version": VERSION,
                    "generation": generation,
                    "torch": str(torch.__version__),
                    "files": files,
                    "info": dict(info),
                }
                manifest["hash"] = _hash(_canonical(manifest))
                staged, text = os.path.join(staging, "manifest.json"), _canonical(manifest)
                if len(text) > _MAX_MANIFEST:
                    raise CheckpointError(
                        f"The manifest of {basename} would have {len(text)} bytes, and at most "
                        f"{_MAX_MANIFEST} are read. Keep what is large in tensors; the history "
                        f"grows by a few numbers an eval."
                    )
                _write(staged, text)
                for entry in files.values():
                    path = os.path.join(self.path, entry["name"])
                    final.append(path)
                    os.rename(os.path.join(staging, entry["name"]), path)
                sync_folder(self.path)
        except BaseException:
            for path in final:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            _remove(staging)
            raise
        with _reasons(self._manifest(basename), "write"):
            # From here on nothing is taken back: the new manifest may be live already.
            os.replace(staged, self._manifest(basename))
            sync_folder(self.path)
        _remove(staging)
        with contextlib.suppress(OSError):  # what could not be deleted now, the next save deletes
            self._sweep(basename, generation)
        return generation

    def keep_last(self, count: int, saved: int) -> None:
        """Deletes all but `count` permanent checkpoints, `model_<step>`, once a newer one is there.

        Those of later steps than `saved` are of a future that was given up, and go first. Leftovers
        of broken-off saves go too.

        Args:
          count: how many to keep, at least 1.
          saved: the step of the newest one.
        """
        found: dict[int, list[str]] = {}
        with _reasons(self.path, "clean"):
            for name in os.listdir(self.path):
                if match := _PERMANENT.fullmatch(name):
                    found.setdefault(int(match["step"]), []).append(name)
            whole = [s for s, names in found.items() if any(n.endswith(".json") for n in names)]
            kept = sorted(whole, key=lambda step: (step <= saved, step))[-count:]
            for step in found.keys() - set(kept):
                # The manifest first, so that none is left that lists what is gone.
                for name in sorted(found[step], key=lambda n: not n.endswith(".json")):
                    os.unlink(os.path.join(self.path, name))

    def _manifest(self, basename: str) -> str:
        return os.path.join(self.path, f"{basename}.json")

    def _sweep(self, basename: str, generation: str) -> None:
        """Deletes what earlier saves of this name left, and what any left that was broken off."""
        for name in os.listdir(self.path):
            match = _PART.fullmatch(name)
            if match and match["basename"] == basename and match["generation"] != generation:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.path, name))
            if _STAGING.fullmatch(name):  # of any name: who holds the lock saves alone
                _remove(os.path.join(self.path, name))


def read(directory: str, basename: str) -> tuple[Parts, dict[str, Any]] | None:
    """Returns the parts and info of a checkpoint, or None if there is none of that name.

    Raises:
      CheckpointError: if it is damaged, or newer than this library, with the file's name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    check_basename(basename)
    path = os.path.join(directory, f"{basename}.json")
    data = _read(path, _MAX_MANIFEST)
    if data is None:
        return None
    manifest = _parse_manifest(path, data)
    parts: Parts = {}
    for part, entry in manifest["files"].items():
        name = entry["name"]
        match = _PART.fullmatch(name)
        if not match or match["basename"] != basename:
            raise CheckpointError(f"{path} lists a file of another name: {name!r}.")
        content = _read(os.path.join(directory, name), entry["size"])
        if content is None:
            raise CheckpointError(f"{path} lists {name}, which is not there.")
        if len(content) != entry["size"] or _hash(content) != entry["sha256"]:
            raise CheckpointError(
                f"{name} is damaged: it has {len(content)} bytes of {entry['size']}, or other "
                f"ones than were saved. Load another checkpoint of {directory}."
            )
        try:
            parts[part] = load(content)
        except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
            raise CheckpointError(f"{name} is damaged: {error}") from error
    return parts, manifest["info"]


def generation_of(directory: str, basename: str) -> str | None:
    """Returns which save of a name is the current one; None if there is none that can be read."""
    path = os.path.join(directory, f"{basename}.json")
    try:
        data = _read(path, _MAX_MANIFEST)
        return None if data is None else str(_parse_manifest(path, data)["generation"])
    except CheckpointError:
        return None


def pack(nest: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns `nest` as plain data for JSON; its tensors go into `tensors`, under `prefix`.

    Raises:
      CheckpointError: if a leaf is neither plain data nor a tensor.
    """
    if isinstance(nest, torch.Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = nest
        return {"tensor": name}
    if isinstance(nest, np.generic):
        nest = nest.item()
    if isinstance(nest, np.ndarray):
        return {"array": pack(torch.from_numpy(nest.copy()), prefix, tensors)}
    if isinstance(nest, dict):
        return {
            "dict": [[pack(k, prefix, tensors), pack(v, prefix, tensors)] for k, v in nest.items()]
        }
    if isinstance(nest, tuple):
        return {"tuple": [pack(x, prefix, tensors) for x in nest]}
    if isinstance(nest, list):
        return [pack(x, prefix, tensors) for x in nest]
    if isinstance(nest, bytes):
        return {"bytes": nest.hex()}
    if nest is None or isinstance(nest, (bool, int, float, str)):
        return nest
    raise CheckpointError(
        f"A {type(nest).__name__} cannot be saved in {prefix}: a state is made of numbers, "
        f"strings, tensors, lists, tuples and dicts."
    )


def to_bytes(tensors: Mapping[str, torch.Tensor], info: Any) -> bytes:
    """Returns tensors and plain data as bytes, to be sent."""
    from safetensors.torch import save

    text = json.dumps(info).encode()
    return len(text).to_bytes(8, "little") + text + save(_plain(tensors))


def from_bytes(data: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """Returns what `to_bytes` was given."""
    from safetensors.torch import load

    end = 8 + int.from_bytes(data[:8], "little")
    return load(data[end:]), json.loads(data[8:end])


def unpack(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns the nest that `pack` packed."""
    if isinstance(data, list):
        return [unpack(x, tensors) for x in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return unpack(content, tensors).numpy()
    if kind == "tuple":
        return tuple(unpack(x, tensors) for x in content)
    if kind == "bytes":
        return bytes.fromhex(content)
    return {unpack(k, tensors): unpack(v, tensors) for k, v in content}


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns tensors that safetensors takes: on the CPU, contiguous, none sharing memory."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _parse_manifest(path: str, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        form, version = manifest["format"], manifest["version"]
        as_written = _canonical(manifest) == data
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint's manifest: {error}") from error
    if form != FORMAT or not isinstance(version, int):
        raise CheckpointError(f"{path} is no manifest of a trax_torch checkpoint.")
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this library reads up to {VERSION}. Update it."
        )
    claimed = manifest.pop("hash", None)
    if not as_written or claimed != _hash(_canonical(manifest)):
        raise CheckpointError(f"{path} is damaged: its hash is not that of its content.")
    if not _is_well_formed(manifest):
        raise CheckpointError(f"{path} is damaged: it lists no files, or not as it should.")
    return manifest


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Tells whether a manifest has what `save` writes; a hash anybody can compute."""
    files, info = manifest.get("files"), manifest.get("info")
    if not (isinstance(files, dict) and isinstance(info, dict) and "generation" in manifest):
        return False
    return all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("sha256"), str)
        and isinstance(size := entry.get("size"), int)
        and 0 <= size < 2**63
        for entry in files.values()
    )


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: str, size: int) -> bytes | None:
    """Returns the bytes of a plain file of at most `size` bytes; None if there is no file."""
    with _reasons(path, "read"):
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
            if found > size:
                raise CheckpointError(
                    f"{path} is damaged: it has {found} bytes, and {size} at most were written. "
                    f"Load another checkpoint of that folder."
                )
            return f.read(found)


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _write_tensors(path: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, str]:
    """Writes a safetensors file that did not exist; returns its size and hash."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(_plain(tensors), path, {"format": "pt"})
    except SafetensorError as error:  # what the operating system said is in its text alone
        raise OSError(errno.EIO, str(error), path) from error
    os.chmod(path, os.stat(os.path.dirname(path)).st_mode & 0o666)  # it leaves 0600
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        return os.fstat(f.fileno()).st_size, hashlib.file_digest(f, "sha256").hexdigest()


def _remove(folder: str) -> None:
    """Deletes a folder, or what of it can be: the next save deletes the rest."""
    with contextlib.suppress(OSError):  # which ignore_errors alone lets through now and then
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _reasons(path: str, verb: str) -> Iterator[None]:
    """Turns the operating system's errors into CheckpointErrors that say what could not be done."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"Could not {verb} {error.filename or path}: {reason}. What was saved before is intact."
        ) from error
