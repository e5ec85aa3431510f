"""Breaks the file system, one call after another."""

import builtins
import os
import signal

import safetensors.torch

from trax_torch.supervised._checkpoint import storage

CALLS = {
    os: "mkdir rename replace fsync fstat stat lstat chmod open close unlink rmdir listdir scandir "
    "pwrite ftruncate link",
    builtins: "open",
    safetensors.torch: "save_file",
    storage: "_write",
}
WRITERS = ("save_file", "_write")


class Saboteur:
    """Breaks the n-th file-system call of a save; of one that writes, after half of the file.

    Args:
      n: which call, counted from 1; 0 breaks none.
      how: what is raised; or 'death', which kills the process.
    """

    def __init__(self, patch, n, how):
        self.n, self.how, self.count = n, how, 0
        for owner, names in CALLS.items():
            for name in names.split():
                patch.setattr(owner, name, self.wrap(name, getattr(owner, name)))

    def wrap(self, name, call):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                if name in WRITERS:
                    self.n = 0  # what it calls itself is not to break
                    call(*args, **kwargs)
                    path = next(a for a in args if isinstance(a, str))
                    os.truncate(path, os.path.getsize(path) // 2)
                if name == "pwrite":
                    fd, data, place = args
                    call(fd, data[: len(data) // 2], place)
                if self.how == "death":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise self.how("sabotage")
            return call(*args, **kwargs)

        return wrapped
