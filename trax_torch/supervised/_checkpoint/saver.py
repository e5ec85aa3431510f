"""The saves of one run: under which names, one at a time, in the foreground or behind it.

What a checkpoint is, and how it becomes whole, `storage` knows; this room decides when its work
is done and who waits for it.
"""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import torch

from trax_torch import _distributed, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import storage

_log = logging.getLogger("trax_torch")


class Saver:
    """Saves a run's checkpoints into its folder.

    Where several ranks train, all of them call what is here. The chief alone touches files, and
    what it comes to, a save or an error, all ranks come to.

    A save in the background works on a copy of the tensors, which is made before `save` returns and
    whose memory is used again by the next one. One is in flight at a time. If it fails, the next
    save or `wait` raises, and so does the end of a `running` block: a failure is never lost.

    Args:
      path: the folder; made if it is not there.
      world: the ranks that train together.
      keep_last: how many permanent checkpoints, `model_<step>`, to keep; None keeps all.
    """

    def __init__(self, path: str, world: _distributed.World, keep_last: int | None = None):
        self._path = path
        self._world = world
        self._keep_last = keep_last
        self._generation: str | None = None  # of the checkpoint 'model' that the run goes on from
        self._executor: futures.ThreadPoolExecutor | None = None
        self._in_flight: futures.Future[None] | None = None
        self._copies: storage.Parts = {}
        self._folder: storage.Folder | None = None  # the chief's
        with self._together():
            if world.is_chief:
                self._folder = storage.Folder(path)

    def save(
        self,
        basenames: Sequence[str],
        parts: storage.Parts,
        info: Mapping[str, Any],
        blocking: bool,
        frozen: Collection[str] = (),
    ) -> None:
        """Saves one state of the run under one name or several, one after another.

        Args:
          basenames: the names.
          parts: the tensors.
          info: plain data.
          blocking: False writes in the background.
          frozen: names of weights that are not trained, which may be infinite.

        Raises:
          CheckpointError: if it cannot be written, or the save before could not.
          NonFiniteError: if a tensor is not finite; nothing is saved then.
        """
        self.wait()
        with self._together():
            if self._folder is None:
                return
            if blocking:
                with self._folder.lock():
                    self._save(self._folder, basenames, parts, info, frozen)
                return
            parts = {part: self._copy(part, tensors) for part, tensors in parts.items()}
            held = contextlib.ExitStack()
            held.enter_context(self._folder.lock())  # here: another's lock is spoken of at once
            if self._executor is None:
                self._executor = futures.ThreadPoolExecutor(1, "trax_torch-save")
            what = (self._folder, basenames, parts, info, frozen)
            self._in_flight = self._executor.submit(self._save_and_let_go, held, *what)
            self._in_flight.add_done_callback(_log_failure)

    def has(self, basename: str) -> bool:
        """Tells whether there is a checkpoint of a name, whole or damaged."""
        found = os.path.lexists(os.path.join(self._path, f"{basename}.json"))
        return self._world.from_chief(b"yes" if found else b"no") == b"yes"

    def wait(self) -> None:
        """Waits for the save in flight, if there is one, and raises what it raised."""
        with self._together():
            self._wait_here()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing here for a while.

        Raises:
          CheckpointError: if another process writes here now.
        """
        with contextlib.ExitStack() as held:
            with self._together():
                if self._folder is not None:
                    held.enter_context(self._folder.lock())
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Holds the lock for a run, and does not end before the save in flight has."""
        with self.locked():
            try:
                yield
            except BaseException as error:
                try:
                    self._wait_here()
                except Exception as failure:
                    error.add_note(f"Besides, a save in the background failed: {failure}")
                raise
            self.wait()

    def goes_on_from(self, basename: str) -> None:
        """Remembers that the run was put where a checkpoint of the folder left it."""
        self._generation = storage.generation_of(self._path, basename)

    def check_not_overtaken(self) -> None:
        """Refuses to go on where another process has trained since this one read or saved last.

        Raises:
          CheckpointError: if one has.
        """
        self.wait()
        with self._together():
            if self._folder is None:
                return
            current = storage.generation_of(self._path, "model")
            if current != self._generation and current is not None:
                raise CheckpointError(
                    f"Another process has trained into {self._path} since this run saved or loaded "
                    f"last. Call load_checkpoint() to go on from there, or give this one an "
                    f"output_dir of its own."
                )

    def _together(self) -> contextlib.AbstractContextManager[None]:
        return self._world.together(CheckpointError)

    def _wait_here(self) -> None:
        if self._in_flight is not None:
            futures.wait([self._in_flight])  # broken off, it leaves the save in flight
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def _save_and_let_go(self, held: contextlib.ExitStack, *what: Any) -> None:
        with held:
            self._save(*what)

    def _save(
        self,
        folder: storage.Folder,
        basenames: Sequence[str],
        parts: storage.Parts,
        info: Mapping[str, Any],
        frozen: Collection[str],
    ) -> None:
        _check_all_finite(parts, frozen)
        for basename in basenames:
            try:
                generation = folder.save(basename, parts, info)
            except BaseException:  # the new one may be live all the same
                if basename == "model":
                    self.goes_on_from(basename)
                raise
            if basename == "model":
                self._generation = generation
            if basename == f"model_{info['step']}" and self._keep_last is not None:
                folder.keep_last(self._keep_last, info["step"])

    def _copy(self, part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the tensors' values on the CPU, in the memory of the last copy where it fits."""
        before = self._copies.get(part, {})
        copies = {}
        for name, tensor in tensors.items():
            place = before.get(name)
            if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
                on_gpu = tensor.device.type == "cuda"
                place = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=on_gpu
                )
            copies[name] = place.copy_(tensor.detach())
        self._copies[part] = copies
        return copies


def _log_failure(save: "futures.Future[None]") -> None:
    """Logs a failure, for a process that ends without waiting for it."""
    if (error := save.exception()) is not None:
        _log.error("A save in the background failed: %s", error)


def read(
    directory: str, basename: str, world: _distributed.World
) -> tuple[storage.Parts, dict[str, Any] | None]:
    """Returns the parts and info of a checkpoint that the chief reads, or `({}, None)`.

    Raises:
      CheckpointError: if it cannot be read, on all ranks.
    """
    found = None
    with world.together(CheckpointError):
        if world.is_chief:
            found = storage.read(directory, basename)
    return world.share(*(found or ({}, None)))


def _check_all_finite(parts: storage.Parts, frozen: Collection[str]) -> None:
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
                continue
            # A sum may overflow, and what is not trained may well hold infinities: masks do.
            is_trained = part == "weights" and name not in frozen
            good = torch.isfinite(tensor) if is_trained else ~torch.isnan(tensor)
            if not bool(good.all()):
                raise optimizers.NonFiniteError(
                    f"{name} of the {part} is not finite, so nothing was saved. Go back to the "
                    f"last checkpoint: load_checkpoint()."
                )
