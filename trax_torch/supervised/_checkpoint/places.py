"""Where a caller says that a checkpoint is: a folder, a name in it, or a file that bears the name.

A place that somebody names is to be found, so its absence is an error that says what is there.
"""

import os

from trax_torch._errors import MissingCheckpointError
from trax_torch.supervised._checkpoint import stand_in, storage
from trax_torch.supervised._checkpoint.stand_in import ENDING as _TRAX


def split(place: str | os.PathLike[str]) -> tuple[str, str]:
    """Returns the folder and the name of the checkpoint that a place stands for.

    Args:
      place: a folder, whose 'model' is meant; or a checkpoint's name after its folder, with or
        without the ending of its manifest, '.json', or of Trax's files, '.pkl.gz'. What stands for
        a checkpoint, whatever it is called, leads to it.
    """
    path = os.path.expanduser(os.fspath(place))
    if os.path.isdir(path):
        return path, "model"
    folder, name = os.path.split(path)
    name = stand_in.manifest_of(path) or name
    if not os.path.lexists(f"{path}.json"):  # a name may end like a file, too
        name = name.removesuffix(".json").removesuffix(_TRAX)
    return folder or os.curdir, name


def trax_file(directory: str, basename: str) -> str | None:
    """Returns the path of Trax's own checkpoint of a name, if there is one."""
    path = os.path.join(directory, basename + _TRAX)
    return path if os.path.lexists(path) and stand_in.manifest_of(path) is None else None


def missing(directory: str, basename: str) -> MissingCheckpointError:
    """Returns the error that says that a checkpoint is not where it was said to be."""
    if not os.path.isdir(directory):
        found = f"There is no folder {directory}"
    else:
        there = _names_in(directory)
        has = ", ".join(there) if there else "none"
        found = f"There is no checkpoint {basename!r} in {directory}; its checkpoints are: {has}"
    return MissingCheckpointError(
        f"{found}. Name the folder that a run saved in, or a checkpoint there, as in "
        f"{os.path.join('run', 'model')}."
    )


def _names_in(directory: str) -> list[str]:
    """Returns the names of the checkpoints in a folder, ours and Trax's, whole or damaged."""
    names = set(storage.names_in(directory))
    names |= {n.removesuffix(_TRAX) for n in os.listdir(directory) if n.endswith(_TRAX)}
    return sorted(names)
