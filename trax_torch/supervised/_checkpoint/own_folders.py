"""Where machines have folders of their own: who shares one, and which checkpoint all of them have.

A checkpoint in pieces then lies in several folders, each with a manifest that lists all pieces. The
first rank of those that see a folder commits there. What a manifest said before is kept beside it
until all folders have the new one, so that after a crash there is one that all have.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from trax_torch import _distributed
from trax_torch._durable import sync_folder
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files, schema, storage

_log = logging.getLogger("trax_torch")
_MARK = re.compile(r"\.beside\.[0-9a-f]{16}\.\d+")
_DAY = 24 * 3600.0  # seconds; ranks wait for each other for minutes, and then none looks for a mark
_EARLIER = re.compile(r"\.(?P<basename>.+)\.[0-9a-f]{16}\.earlier")


def ranks_beside(path: str, world: _distributed.World) -> list[int]:
    """Returns the ranks that see the same folder as this one, which is there; all ranks call it.

    Raises:
      CheckpointError: on all ranks, if one cannot write to its folder.
    """
    if world.size == 1:
        return [0]
    name = f".beside.{world.from_chief(os.urandom(8).hex().encode()).decode()}"
    mine = os.path.join(path, f"{name}.{world.rank}")
    try:
        with world.together(CheckpointError), files.reasons(mine, "write"):
            os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        with world.together(CheckpointError), files.reasons(path, "read"):
            # One by one: a network's folders may be listed as they were a while ago.
            found = [rank for rank in range(world.size) if _is_there(path, f"{name}.{rank}")]
        if found[:1] == [world.rank]:
            _sweep(path, mine, max(_DAY, 2 * world.timeout))
        return found
    finally:
        with contextlib.suppress(OSError):
            os.unlink(mine)


def _is_there(path: str, name: str) -> bool:
    try:
        os.stat(os.path.join(path, name))
        return True
    except FileNotFoundError:
        return False


def _sweep(path: str, mine: str, limit: float) -> None:
    """Deletes marks of starts that were killed: those so many seconds older than this one."""
    with contextlib.suppress(OSError):
        now = os.stat(mine).st_mtime  # by the clock of who keeps the files
        for name in filter(_MARK.fullmatch, os.listdir(path)):
            other = os.path.join(path, name)
            with contextlib.suppress(OSError):  # another rank's, which has just been taken away
                if now - os.stat(other).st_mtime > limit:
                    os.unlink(other)


def keep_earlier(path: str, basename: str) -> None:
    """Keeps the manifest of a name, which is about to be replaced, under another name."""
    manifest = os.path.join(path, f"{basename}.json")
    data = files.read(manifest, storage.MAX_MANIFEST)
    try:
        generation = storage.parse_manifest(manifest, data or b"")["generation"]
    except CheckpointError:  # damaged, or not there
        return
    earlier = os.path.join(path, f".{basename}.{generation}.earlier")
    with files.reasons(earlier, "write"):
        with contextlib.suppress(FileExistsError):
            os.link(manifest, earlier)
        sync_folder(path)


def forget_earlier(path: str, basename: str) -> None:
    """Forgets them, once all folders have a newer one."""
    for name in _earlier(path, basename):
        os.unlink(os.path.join(path, name))


def _earlier(path: str, basename: str) -> list[str]:
    try:
        found = [(name, _EARLIER.fullmatch(name)) for name in sorted(os.listdir(path))]
    except OSError:
        return []
    return [name for name, match in found if match and match["basename"] == basename]


def manifest_of_all(
    directory: str, basename: str, world: _distributed.World
) -> dict[str, Any] | None:
    """Returns the manifest, of this rank's folder, of the newest checkpoint that all folders have.

    All ranks call it.

    Args:
      directory: this rank's folder, and basename: the checkpoint's name in it.
      world: the ranks.

    Returns:
      As `storage.read_manifest` does, with `current`, the generation of the folder's own; None on
      all ranks if none has any.

    Raises:
      CheckpointError: on all ranks, if there is none that all have, or one cannot be read.
    """
    mine: dict[str, dict[str, Any]] = {}
    with world.together(CheckpointError):
        for name in (f"{basename}.json", *_earlier(directory, basename)):
            data = files.read(os.path.join(directory, name), storage.MAX_MANIFEST)
            if data is not None:
                manifest = storage.parse_manifest(os.path.join(directory, name), data)
                mine.setdefault(manifest["generation"], manifest)
    steps = {generation: each["info"].get("step") for generation, each in mine.items()}
    everyones = [json.loads(each) for each in world.gather(json.dumps(steps).encode())]
    if not any(everyones):
        return None
    common = [each for each in everyones[0] if all(each in theirs for theirs in everyones)]
    if not common:
        raise CheckpointError(_apart(directory, basename, everyones))
    chosen = max(common, key=lambda each: everyones[0][each])
    current = next(iter(mine))
    if chosen != current:
        _log.warning(
            "%s in %s is of step %s, which not all folders have: step %s is gone on from.",
            *(basename, directory, steps[current], steps[chosen]),
        )
    with world.together(CheckpointError):
        manifest = mine[chosen]
        schema.check(os.path.join(directory, f"{basename}.json"), *_checked(manifest))
    return {**manifest, "current": current}


def _checked(manifest: dict[str, Any]) -> tuple[int, Any]:
    return manifest["version"], manifest["info"]


def _apart(directory: str, basename: str, everyones: Sequence[dict[str, Any]]) -> str:
    """Says what each rank's folder has, where they have nothing in common."""
    first = [next(iter(each.values()), "nothing") for each in everyones]
    told = ", ".join(f"{step} on rank {rank}" for rank, step in enumerate(first))
    return (
        f"{basename} in {directory} is of other steps in the folders of other ranks, or of another "
        f"run: {told}. Bring those of one run together, or begin anew in an empty folder."
    )
