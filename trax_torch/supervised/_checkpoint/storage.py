"""What outlives the process: checkpoints that are whole or absent.

A checkpoint is a manifest, `<basename>.json`, the safetensors files it lists, and the beginning of
a file of history that it shares with others (`history_file`). Each save makes files under new
names, and then replaces the manifest: that one step is the commit. What a file should hold is known
by its size and hash before any of it is believed. Nothing read is ever run.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any

import torch

from trax_torch._durable import sync_folder
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files, history_file, packing, shards, tensor_files
from trax_torch.supervised._checkpoint.files import hash_of, reasons

FORMAT = "trax_torch.checkpoint"
VERSION = 3  # 1 kept the history in the manifest, and had no forms of tensors
_WHOLE = 2  # of a checkpoint without tensors in pieces, which older versions of the library read
MAX_MANIFEST = 2**28  # bytes; a history of millions of values, as version 1 kept it, has fewer

_BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_STAGING = re.compile(r"\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\.[0-9a-f]{16}\.tmp")

Parts = dict[str, dict[str, torch.Tensor]]


def check_basename(basename: str) -> str:
    """Returns a basename that is a plain file name.

    Raises:
      ValueError: if it is not: letters, digits, '_', '.', '-', not beginning with the last two.
    """
    if not is_basename(basename):
        raise ValueError(
            f"A checkpoint's name has 1 to 128 letters, digits, '_', '.' or '-', and begins with "
            f"none of the last two; got {basename!r}."
        )
    return basename


def is_basename(name: Any) -> bool:
    """Tells whether a checkpoint may have a name; see `check_basename`."""
    return isinstance(name, str) and _BASENAME.fullmatch(name) is not None


class Folder:
    """A folder of checkpoints.

    Args:
      path: the folder; it is made if it is not there.

    Raises:
      CheckpointError: if it cannot be made or written to.
    """

    def __init__(self, path: str):
        self.path = path
        with reasons(path, "make"):
            if not os.path.isdir(path):
                os.makedirs(path, exist_ok=True)
                sync_folder(os.path.dirname(os.path.abspath(path)))
        if not os.access(path, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{path} cannot be written to. Give an output_dir of your own, or None."
            )

    def save(
        self,
        basename: str,
        parts: Parts,
        info: Mapping[str, Any],
        history: history_file.Entry | None = None,
        run: str | None = None,
    ) -> str:
        """Saves a checkpoint under a name, in the place of an earlier one of that name.

        Whatever happens meanwhile, the name stands for the old checkpoint or the new one, whole.

        Args:
          basename: the name.
          parts: `{part: {name: tensor}}`; parts are 'weights', 'state' and 'opt_slots0', ...
          info: plain data for the manifest.
          history: what the manifest is to list of a file of history; None for an empty one.
          run: what tells the run that saves from every other.

        Returns:
          The generation: what tells this save from every other.

        Raises:
          ValueError: if the name is not a plain one.
          CheckpointError: if the files cannot be written, with the reason, or a file of somebody
            else's has the manifest's name.
        """
        draft = self.begin(basename)
        with draft.kept_whole():
            draft.add(parts)
            draft.write_manifest(info, history, run)
        draft.commit()
        return draft.generation

    def begin(self, basename: str, generation: str | None = None) -> "Draft":
        """Begins a checkpoint that is made in steps; `save` takes all of them.

        Args:
          basename: its name, and generation: what tells it from all others; None makes one.

        Raises:
          ValueError: if the name is not a plain one.
          CheckpointError: as for `save`.
        """
        self._check_free(basename)
        return Draft(self, basename, generation or os.urandom(8).hex())

    def _check_free(self, basename: str) -> None:
        """Refuses to write over JSON that is no checkpoint's; what is damaged may have been one."""
        path = self.manifest(check_basename(basename))
        try:
            found = json.loads(files.read(path, MAX_MANIFEST) or b"")
        except (ValueError, RecursionError):
            return
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is there and is no checkpoint's manifest, so it is not written over. Move "
                f"it, or save under another name."
            )

    def manifest(self, basename: str) -> str:
        """Returns where the manifest of a name is."""
        return os.path.join(self.path, f"{basename}.json")

    def sweep(self, basename: str, generation: str) -> None:
        """Deletes what earlier saves of this name left, and what any left that was broken off."""
        for name in os.listdir(self.path):
            match = shards.PART.fullmatch(name)
            if match and match["basename"] == basename and match["generation"] != generation:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.path, name))
            if _STAGING.fullmatch(name):  # of any name: who holds the lock saves alone
                _remove(os.path.join(self.path, name))


class Draft:
    """A checkpoint that is being made: `add` files, `write_manifest`, `commit`.

    Args:
      folder: where it is made.
      basename: its name, for which nothing changes before `commit`.
      generation: what tells this save from every other.

    Attributes:
      stem: what the names of its files begin with.
      staging: the folder that they are written in.

    Raises:
      CheckpointError: if it cannot be begun, with the reason.
    """

    def __init__(self, folder: Folder, basename: str, generation: str):
        self._folder = folder
        self._basename = basename
        self.generation = generation
        self.stem, self.staging = names_of_save(folder.path, basename, self.generation)
        self._entries: dict[str, dict[str, Any]] = {}
        self._final: list[str] = []
        with reasons(self.staging, "write"):
            try:
                os.mkdir(self.staging)
            except BaseException:
                _remove(self.staging)
                raise

    @contextlib.contextmanager
    def kept_whole(self) -> Generator[None]:
        """Takes all files back if its block fails; `commit` comes after it."""
        try:
            yield
        except BaseException:
            for path in self._final:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            _remove(self.staging)
            raise

    def add(self, parts: Parts) -> None:
        """Writes the tensors that are saved whole."""
        with reasons(self.staging, "write"):
            for part, tensors in parts.items():
                name = f"{self.stem}.{part}.safetensors"
                plain, forms = packing.to_plain(tensors)
                size, sha256 = tensor_files.write(os.path.join(self.staging, name), plain)
                self._entries[part] = {"name": name, "size": size, "sha256": sha256}
                if forms:
                    self._entries[part]["forms"] = forms

    def write_manifest(
        self,
        info: Mapping[str, Any],
        history: history_file.Entry | None,
        run: str | None,
        pieces: Mapping[str, Any] | None = None,
        written: Collection[str] = (),
    ) -> None:
        """Writes the manifest, and gives the files the names that it lists.

        Args:
          info: as for `Folder.save`, and history and run.
          pieces: what `shards.listed` made of the files that ranks have written.
          written: the names of those of them that are in this folder.
        """
        manifest = {
            "format": FORMAT,
            "version": VERSION if pieces else _WHOLE,
            "generation": self.generation,
            "torch": str(torch.__version__),
            "run": run,
            "files": self._entries,
            "history": history,
            "info": dict(info),
        }
        if pieces:
            manifest["shards"] = dict(pieces)
        manifest["hash"] = hash_of(_canonical(manifest))
        text = _canonical(manifest)
        if len(text) > MAX_MANIFEST:
            raise CheckpointError(
                f"The manifest of {self._basename} would have {len(text)} bytes, and at most "
                f"{MAX_MANIFEST} are read. Keep what is large in tensors."
            )
        names = [*(entry["name"] for entry in self._entries.values()), *written]
        with reasons(self.staging, "write"):
            _write(self._staged, text)
            for name in names:
                path = os.path.join(self._folder.path, name)
                self._final.append(path)
                os.rename(os.path.join(self.staging, name), path)
            sync_folder(self._folder.path)

    def commit(self, sweeps: bool = True) -> None:
        """Has the name stand for this checkpoint, and deletes what it stood for.

        Args:
          sweeps: False deletes nothing of that; `sweep` does.
        """
        path = self._folder.manifest(self._basename)
        with reasons(path, "write"):
            # From here on nothing is taken back: the new manifest may be live already.
            os.replace(self._staged, path)
            sync_folder(self._folder.path)
        _remove(self.staging)
        if sweeps:
            self.sweep()

    def sweep(self) -> None:
        """Deletes what the name stood for before."""
        with contextlib.suppress(OSError):  # what could not be deleted now, the next save deletes
            self._folder.sweep(self._basename, self.generation)

    @property
    def _staged(self) -> str:
        return os.path.join(self.staging, "manifest.json")


def names_of_save(directory: str, basename: str, generation: str) -> tuple[str, str]:
    """Returns what the names of a save's files begin with, and the folder they are written in."""
    return f"{basename}.{generation}", os.path.join(directory, f".{basename}.{generation}.tmp")


def read(
    directory: str, basename: str, check: Callable[[str, int, Any], None] | None = None
) -> tuple[Parts, dict[str, Any]] | None:
    """Returns the parts and info of a checkpoint, or None if there is none of that name.

    Among the info is the history, as `History.to_dict` gives it.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      check: is called with the manifest's path, its format version and info, before all else.

    Raises:
      CheckpointError: if it is damaged, or newer than this library, with the file's name.
    """
    manifest = read_manifest(directory, basename, check)
    return None if manifest is None else read_listed(directory, basename, manifest)


def read_manifest(
    directory: str, basename: str, check: Callable[[str, int, Any], None] | None = None
) -> dict[str, Any] | None:
    """Returns what a checkpoint's manifest says, or None if there is none of that name.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      check: is called with the manifest's path, its format version and info.

    Raises:
      CheckpointError: if it is damaged, or newer than this library, with the file's name.
    """
    check_basename(basename)
    path = os.path.join(directory, f"{basename}.json")
    data = files.read(path, MAX_MANIFEST)
    if data is None:
        return None
    manifest = parse_manifest(path, data)
    if check is not None:
        check(path, manifest["version"], manifest["info"])
    return manifest


def read_listed(
    directory: str,
    basename: str,
    manifest: dict[str, Any],
    like: shards.Like = shards.like_nothing,
) -> tuple[Parts, dict[str, Any]]:
    """Returns the parts and info of a checkpoint, as its manifest lists them.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      manifest: what `read_manifest` gave.
      like: as for `shards.read_own`; tensors that are its business are left out.

    Raises:
      CheckpointError: if a file is damaged, or not there, with its name.
    """
    parts = read_parts(directory, basename, manifest, manifest["files"], like)
    info = manifest["info"]
    info["history"] = read_history(directory, manifest)
    return parts, info


def read_history(directory: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the history of a checkpoint, as `History.to_dict` gives it."""
    if manifest["version"] == 1:
        inside: dict[str, Any] = manifest["info"]["history"]
        return inside
    entry = manifest["history"]
    return history_file.read(directory, entry) if entry else {"_values": {}}


def read_parts(
    directory: str,
    basename: str,
    manifest: dict[str, Any],
    names: Collection[str],
    like: shards.Like = shards.like_nothing,
) -> Parts:
    """Returns parts of a checkpoint by their names, as its manifest lists them.

    Raises:
      CheckpointError: if a file is damaged, or not there, with its name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = os.path.join(directory, f"{basename}.json")
    parts: Parts = {}
    is_cut = like is not shards.like_nothing  # then no file is read as one
    for part, entry in manifest["files"].items():
        if part not in names or is_cut:
            continue
        name = entry["name"]
        shards.check_name(directory, basename, name)
        content = files.read(os.path.join(directory, name), entry["size"])
        if content is None:
            raise CheckpointError(f"{path} lists {name}, which is not there.")
        if len(content) != entry["size"] or hash_of(content) != entry["sha256"]:
            raise CheckpointError(
                f"{name} is damaged: it has {len(content)} bytes of {entry['size']}, or other "
                f"ones than were saved. Load another checkpoint of {directory}."
            )
        try:
            parts[part] = packing.from_plain(load(content), entry.get("forms", {}))
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            # KeyError: a type that torch has not; the last three: a form that does not fit
            raise CheckpointError(f"{name} is damaged: {error}") from error
    with shards.opened(directory, basename, manifest, names, with_whole=is_cut) as cut:
        for part, tensors in cut.items():
            parts.setdefault(part, {})
            for name, saved in tensors.items():
                if like(part, name, saved.shape) is None:
                    parts[part][name] = saved.read()
    return parts


def names_in(directory: str) -> list[str]:
    """Returns the names of the checkpoints in a folder, whole or damaged."""
    try:
        files = set(os.listdir(directory))
    except OSError:
        return []
    names = {match["basename"] for match in map(shards.PART.fullmatch, files) if match}
    return sorted(name for name in names if f"{name}.json" in files)


def files_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the entries of all files that hold tensors of a checkpoint, pieces too."""
    cut = [entry for each in manifest.get("shards", {}).values() for entry in each["files"]]
    return [*manifest["files"].values(), *cut]


def generation_of(directory: str, basename: str) -> str | None:
    """Returns which save of a name is the current one; None if there is none that can be read."""
    try:
        manifest = read_manifest(directory, basename)
        return None if manifest is None else str(manifest["generation"])
    except CheckpointError:
        return None


def owner_of(name: str) -> str | None:
    """Returns of which checkpoint a file of this name is a part; None if it is none."""
    match = shards.PART.fullmatch(name)
    return match and match["basename"]


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def parse_manifest(path: str, data: bytes) -> dict[str, Any]:
    """Returns what a manifest's bytes say.

    Raises:
      CheckpointError: if they are damaged, or newer than this library, with the file's name.
    """
    try:
        manifest = json.loads(data)
        form, version = manifest["format"], manifest["version"]
        as_written = _canonical(manifest) == data
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint's manifest: {error}") from error
    if form != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is no manifest of a trax_torch checkpoint.")
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this library reads up to {VERSION}. Update it."
        )
    claimed = manifest.pop("hash", None)
    if not as_written or claimed != hash_of(_canonical(manifest)):
        raise CheckpointError(f"{path} is damaged: its hash is not that of its content.")
    if not _is_well_formed(manifest):
        raise CheckpointError(f"{path} is damaged: it lists no files, or not as it should.")
    result: dict[str, Any] = manifest
    return result


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Tells whether a manifest has what `save` writes; a hash anybody can compute."""
    entries, info = manifest.get("files"), manifest.get("info")
    generation = manifest.get("generation")
    if not (isinstance(entries, dict) and isinstance(info, dict) and isinstance(generation, str)):
        return False
    history, run = manifest.get("history"), manifest.get("run")
    if manifest["version"] > 1 and not (
        isinstance(run, str | None)
        and {"history", "run"} <= manifest.keys()
        and (history is None or (_is_entry(history) and history_file.is_name(history["name"])))
    ):
        return False
    if manifest["version"] > 2 and not shards.is_well_formed(manifest.get("shards")):
        return False
    return all(map(_is_entry, entries.values()))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("forms", {}), dict)
        and isinstance(size := entry.get("size"), int)
        and 0 <= size < 2**63
    )


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _remove(folder: str) -> None:
    """Deletes a folder, or what of it can be: the next save deletes the rest."""
    with contextlib.suppress(OSError):  # which ignore_errors alone lets through now and then
        shutil.rmtree(folder, ignore_errors=True)
