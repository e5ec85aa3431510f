"""Which files of a folder stay, as its manifests say; and which checkpoints of it are whole."""

import contextlib
import math
import os
import re
import stat
from dataclasses import dataclass, field

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files, history_file, schema, storage

_MANIFEST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\.json")
_PERMANENT = re.compile(r"model_\d+")


@dataclass(frozen=True)
class Listed:
    """What is of interest in a file that may be a manifest.

    Attributes:
      run: which run saved it; None where that is not known.
      step: of the checkpoint; None for a file that is no manifest that can be read.
      histories: how many bytes of which history file belong to it. Where that cannot be read, all.
    """

    run: str | None = None
    step: int | None = None
    histories: dict[str, float] = field(default_factory=dict)


class Shelf:
    """The checkpoints of a folder, to be kept or let go; each manifest is read once.

    Args:
      directory: the folder.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._known: dict[str, tuple[tuple[int, ...], Listed]] = {}

    def manifests(self) -> dict[str, Listed]:
        """Returns what there is, by basename.

        Raises:
          CheckpointError: if a file cannot be read now.
        """
        known = {}
        with files.reasons(self._directory, "read"):
            for name in os.listdir(self._directory):
                match = _MANIFEST.fullmatch(name)
                if match and (form := self._form_of(name)) is not None:
                    before = self._known.get(name)
                    is_known = before is not None and before[0] == form
                    known[name] = before if before and is_known else (form, self._look_into(name))
        self._known = known
        return {name.removesuffix(".json"): listed for name, (_, listed) in known.items()}

    def _form_of(self, name: str) -> tuple[int, ...] | None:
        """Returns what changes with a file; None for what can be no manifest."""
        try:
            status = os.stat(os.path.join(self._directory, name))
        except FileNotFoundError:
            return None
        may_be_one = stat.S_ISREG(status.st_mode) and status.st_size <= storage.MAX_MANIFEST
        return (status.st_ino, status.st_size, status.st_mtime_ns) if may_be_one else None

    def _look_into(self, name: str) -> Listed:
        """Reads what may be a manifest; what it may list is spared also where it is damaged."""
        path = os.path.join(self._directory, name)
        data = files.read(path, storage.MAX_MANIFEST) or b""
        try:
            manifest = storage.parse_manifest(path, data)
            entry, step = manifest.get("history"), manifest["info"].get("step")
            histories = {entry["name"]: entry["size"]} if entry else {}
            return Listed(manifest.get("run"), step if isinstance(step, int) else None, histories)
        except CheckpointError:
            named = history_file.names_in(data.decode(errors="replace"))
            return Listed(histories=dict.fromkeys(named, math.inf))

    def bytes_of(self, history: str) -> float:
        """Returns how many bytes of a history file belong to checkpoints; 0 if none lists it."""
        return max(
            (each.histories.get(history, 0) for each in self.manifests().values()), default=0
        )

    def keep_last(self, count: int, run: str, step: int) -> None:
        """Deletes permanent checkpoints, `model_<step>`, of a run, once a newer one is there.

        Those that another run made, or the user, or this run at later steps, before it went back,
        are not its business. What a save or deletion that was broken off left of one is.

        Args:
          count: how many to keep, at least 1.
          run: which run saves.
          step: at which step.
        """
        with files.reasons(self._directory, "clean"):
            manifests = self.manifests()
            steps = sorted(
                each.step
                for basename, each in manifests.items()
                if each.run == run and each.step is not None and each.step <= step
                if basename == f"model_{each.step}"
            )
            gone = {f"model_{old}" for old in steps[:-count]}
            for basename in sorted(
                gone
            ):  # the manifest first: none is left that lists what is gone
                os.unlink(os.path.join(self._directory, f"{basename}.json"))
            for name in os.listdir(self._directory):
                basename = storage.owner_of(name) or ""
                if _PERMANENT.fullmatch(basename) and (
                    basename in gone or basename not in manifests
                ):
                    os.unlink(os.path.join(self._directory, name))

    def sweep_histories(self, current: str | None) -> None:
        """Deletes files of history that no manifest lists.

        Args:
          current: the name of the one in use, which stays.
        """
        with files.reasons(self._directory, "clean"):
            names = set(filter(history_file.is_name, os.listdir(self._directory))) - {current}
            if names:
                listed = {name for each in self.manifests().values() for name in each.histories}
                for name in names - listed:
                    os.unlink(os.path.join(self._directory, name))


def others(directory: str, but: str) -> list[str]:
    """Returns the names of a folder's checkpoints, the newest step first, but for one.

    Args:
      directory: the folder; it need not be there.
      but: the name that is left out.
    """
    try:
        found = Shelf(directory).manifests()
    except CheckpointError:
        return []
    steps = {name: x.step for name, x in found.items() if x.step is not None and name != but}
    return sorted(steps, key=lambda name: (-steps[name], name != f"model_{steps[name]}", name))


def whole_others(directory: str, but: str, n: int = 3) -> list[str]:
    """Returns likewise the first `n` names of which every byte is as it was saved."""
    whole: list[str] = []
    for name in others(directory, but):
        if len(whole) == n:
            break
        with contextlib.suppress(CheckpointError):
            if storage.read(directory, name, schema.check) is not None:
                whole.append(name)
    return whole
