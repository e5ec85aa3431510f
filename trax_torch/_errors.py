"""What can be wrong with files of weights and checkpoints, and with other ranks."""


class CheckpointError(Exception):
    """A checkpoint is damaged, incomplete or of another model; names the file and the reason."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds what no well-formed checkpoint holds; nothing in it was run."""


class MismatchError(CheckpointError, IndexError):
    """A sound checkpoint belongs to another model, optimizer or set of tasks."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no checkpoint where one was said to be."""


class RestoreError(CheckpointError, ValueError):
    """A part of a run does not take up what a sound checkpoint holds of it."""


class RankError(RuntimeError):
    """Another rank failed, is gone, or does not answer."""


class CallError(RankError):
    """Ranks called different things, where all must call the same; all of them raise it."""
