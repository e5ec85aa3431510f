"""A save that all ranks make: each writes its own part, and the chief commits when all are there.

A rank that fails, or dies, before the commit leaves the old checkpoint; after it, the new one.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import shards, storage


def save(
    world: _distributed.World,
    path: str,
    folder: storage.Folder | None,
    basename: str,
    cut: shards.Cut,
    info: Mapping[str, Any],
    history: dict[str, Any] | None,
    run: str | None,
) -> str:
    """Saves a checkpoint under a name; all ranks of the world call it.

    Args:
      world: the ranks, each with a part of the tensors; or one process, with all of them.
      path: the folder.
      folder: the same, on the chief; None elsewhere.
      basename: the checkpoint's name.
      cut: the tensors, as this rank is to save them.
      info: as for `Folder.save`, and history and run; the chief's count.

    Returns:
      The generation.

    Raises:
      CheckpointError: on all ranks, if it cannot be written on one.
      RankError: if a rank is gone.
    """
    if folder is not None and not cut.is_cut:
        return folder.save(basename, cut.whole, info, history, run)
    draft = None
    with world.together(CheckpointError):
        if folder is not None:
            draft = folder.begin(basename)
    with contextlib.nullcontext() if draft is None else draft.kept_whole():
        said = world.from_chief(b"" if draft is None else draft.generation.encode())
        stem, staging = storage.names_of_save(path, basename, said.decode())
        with world.together(CheckpointError):
            written = shards.write(staging, stem, world.rank, cut)
        everyones = world.gather(json.dumps(written).encode())
        with world.together(CheckpointError):
            if draft is not None:
                draft.add(cut.whole)
                pieces = shards.listed([json.loads(each) for each in everyones])
                draft.write_manifest(info, history, run, pieces)
    with world.together(CheckpointError):
        if draft is not None:
            draft.commit()
    return said.decode()
