"""`model.pkl.gz` where Trax would have it: a small file that stands for the checkpoint beside it.

Programs written for Trax look whether it is there, fill models from it, and delete it to have a run
begin afresh. So it is there before a manifest that tells of it is, and where the manifest tells of
one that is not there, somebody has removed it: the checkpoint is then put aside, not gone on from.
"""

import contextlib
import json
import os
import shutil
from typing import Any

from trax_torch._durable import sync_folder, whole_file
from trax_torch.supervised._checkpoint import files, storage

ENDING = ".pkl.gz"  # of Trax's files, too
FORMAT = "trax_torch.stand_in"
_SIZE = 1024  # bytes; what is larger is none
_ASIDE = "set_aside"


def manifest_of(path: str) -> str | None:
    """Returns the name of the manifest that a file stands for; None if it is no stand-in."""
    if not os.path.isfile(path) or os.path.getsize(path) > _SIZE:
        return None
    try:
        found = json.loads(files.read_first(path, _SIZE) or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    name = found.get("manifest")
    is_name = storage.is_basename(name) and str(name).endswith(".json")
    return str(name) if is_name else None


def put(folder: str, basename: str) -> dict[str, Any]:
    """Puts a checkpoint's stand-in into its folder, unless a file of its name is there, of Trax's.

    It is on the disk with the next file that is.

    Returns:
      What the manifest, which is to be written after it, is to tell of it.

    Raises:
      CheckpointError: if it cannot be written.
    """
    path = os.path.join(folder, basename + ENDING)
    if not os.path.lexists(path):
        text = json.dumps({"format": FORMAT, "manifest": f"{basename}.json"})
        with files.reasons(path, "write"), whole_file(path) as file:
            file.write(f"{text}\n".encode())
    return {"stand_in": True}


def put_aside_if_removed(folder: str, basename: str) -> str | None:
    """Puts a checkpoint aside whose stand-in somebody has removed.

    All of it is in a folder of its own before its manifest is taken away, and that is one step: a
    crash leaves the checkpoint where it was, or there.

    Returns:
      The folder; None if nothing was removed.

    Raises:
      CheckpointError: if the checkpoint is damaged, or the system has no room for it.
    """
    manifest = storage.read_manifest(folder, basename)
    if manifest is None or not manifest["info"].get("stand_in"):
        return None
    if os.path.lexists(os.path.join(folder, basename + ENDING)):
        return None
    aside = os.path.join(folder, _ASIDE, manifest["generation"])
    with files.reasons(aside, "write"):
        os.makedirs(aside, exist_ok=True)
        history = [manifest["history"]["name"]] if manifest.get("history") else []
        for name in [entry["name"] for entry in storage.files_of(manifest)] + history:
            _keep(folder, aside, name, may_link=name not in history)
        put(aside, basename)
        _keep(folder, aside, f"{basename}.json")
        for path in (aside, os.path.dirname(aside), folder):
            sync_folder(path)
        os.unlink(os.path.join(folder, f"{basename}.json"))
        sync_folder(folder)
    return aside


def _keep(folder: str, aside: str, name: str, may_link: bool = True) -> None:
    """Has a file be in another folder, too; one that is still written to is copied."""
    path, other = os.path.join(folder, name), os.path.join(aside, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(other)
    if may_link:
        with contextlib.suppress(OSError):  # some file systems have no links
            os.link(path, other)
            return
    shutil.copyfile(path, other)
    with open(other, "rb+") as f:
        os.fsync(f.fileno())
