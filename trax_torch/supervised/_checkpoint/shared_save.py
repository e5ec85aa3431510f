"""A save that all ranks make: each writes its own part, and the chief commits when all are there.

A rank that fails, or dies, before the commit leaves the old checkpoint; after it, the new one.
Where ranks see several folders, each has its commit, and the old one is there until all are made.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import own_folders, shards, storage


def save(
    world: _distributed.World,
    path: str,
    folder: storage.Folder | None,
    basename: str,
    cut: shards.Cut,
    info: Mapping[str, Any],
    history: dict[str, Any] | None,
    run: str | None,
    beside: Sequence[int],
) -> str:
    """Saves a checkpoint under a name; all ranks of the world call it.

    Args:
      world: the ranks, each with a part of the tensors; or one process, with all of them.
      path: the folder.
      folder: the same, on the first of the ranks that see it; None on others.
      basename: the checkpoint's name.
      cut: the tensors, as this rank is to save them.
      info: as for `Folder.save`, and history and run; those of ranks with a `folder` count.
      beside: the ranks that see it.

    Returns:
      The generation.

    Raises:
      CheckpointError: on all ranks, if it cannot be written on one.
      RankError: if a rank is gone.
    """
    if folder is not None and not cut.is_cut:
        return folder.save(basename, cut.whole, info, history, run)
    draft, name = None, repr(basename)

    def phase(doing: str) -> contextlib.AbstractContextManager[None]:
        return world.phase(f"{doing} {name} of step {info['step']}", is_told=True)

    with phase("waiting for the chief to begin"):
        said = world.from_chief(os.urandom(8).hex().encode()).decode()
        n_folders = int(world.sum([folder is not None])[0])
        with world.together(CheckpointError):
            if folder is not None:
                draft = folder.begin(basename, said)
    with contextlib.nullcontext() if draft is None else draft.kept_whole():
        stem, staging = storage.names_of_save(path, basename, said)
        with phase("waiting for all parts of"):
            with world.together(CheckpointError):
                written = shards.write(staging, stem, world.rank, cut, phase)
            everyones = [json.loads(x) for x in world.gather(json.dumps(written).encode())]
        waiting = "waiting for the chief's list of" if draft is None else "listing the parts of"
        with phase(waiting), world.together(CheckpointError):
            if draft is not None:
                draft.add(cut.whole)
                pieces = shards.listed(everyones, beside)
                here = [part["file"] for rank in beside for part in everyones[rank].values()]
                names = [entry["name"] for entry in here if entry is not None]
                draft.write_manifest(info, history, run, pieces, names)
                if n_folders > 1:
                    own_folders.keep_earlier(path, basename)
    waiting = "waiting for the chief to commit" if draft is None else "committing"
    with phase(waiting), world.together(CheckpointError):
        if draft is not None:
            draft.commit(sweeps=n_folders == 1)
    if draft is not None and n_folders > 1:  # all have it now
        with contextlib.suppress(OSError):
            own_folders.forget_earlier(path, basename)
        draft.sweep()
    return said
