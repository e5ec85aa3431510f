"""What checkpoints a folder has, and whether each is whole: every byte is read."""

import os
from dataclasses import dataclass, field

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import places, schema, storage
from trax_torch.supervised.history import History


@dataclass(frozen=True)
class Found:
    """A checkpoint of a folder.

    Attributes:
      name: its name.
      step: how many steps were taken; None where it cannot be read.
      n_weights: how many numbers its weights have.
      n_bytes: of its files of tensors, as far as they are listed.
      problem: why it cannot be gone on from; "" if it is whole.
      history: what was measured.
    """

    name: str
    step: int | None = None
    n_weights: int = 0
    n_bytes: int = 0
    problem: str = ""
    history: History = field(default_factory=History)


def found_in(directory: str) -> list[Found]:
    """Returns a folder's checkpoints, the newest step last; those that are damaged, first.

    Raises:
      MissingCheckpointError: if there is no folder, or no checkpoint in it.
    """
    directory = os.path.expanduser(directory)
    names = storage.names_in(directory)
    if not names:
        raise places.missing(directory, "model")
    found = [_looked_at(directory, name) for name in names]
    return sorted(found, key=lambda each: (-1 if each.step is None else each.step, each.name))


def _looked_at(directory: str, name: str) -> Found:
    step, n_bytes = None, 0
    try:
        manifest = storage.read_manifest(directory, name, schema.check)
        if manifest is None:
            return Found(name, problem="its manifest has gone")
        step = manifest["info"]["step"]
        n_bytes = sum(entry["size"] for entry in storage.files_of(manifest))
        parts, info = storage.read_listed(directory, name, manifest)
    except CheckpointError as error:
        return Found(name, step, 0, n_bytes, str(error))
    n_weights = sum(tensor.numel() for tensor in parts["weights"].values())
    return Found(name, step, n_weights, n_bytes, "", History.from_dict(info["history"]))
