"""The saves of one run: under which names, one at a time, in the foreground or behind it.

What a checkpoint is, and how it becomes whole, `storage` knows; this room decides when its work
is done and who waits for it.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent import futures
from typing import Any

import torch

from trax_torch import _distributed, _memory_order, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import (
    own_folders,
    retention,
    schema,
    shards,
    shared_save,
    stand_in,
    storage,
)
from trax_torch.supervised._checkpoint.history_file import HistoryFile
from trax_torch.supervised._checkpoint.lock import FolderLock
from trax_torch.supervised.history import History

_log = logging.getLogger("trax_torch")


class Saver:
    """Saves a run's checkpoints into its folder.

    Where several ranks train, all of them call what is here. The chief alone touches files, but
    for those of tensors of which each rank holds a part: these each rank writes for itself, and the
    chief commits when all are there; where machines have folders of their own, the first rank of
    each does. What it comes to, a save or an error, all ranks come to.

    A save in the background works on a copy of the tensors, which is made before `save` returns and
    whose memory is used again by the next one. One is in flight at a time. If it fails, the next
    save or `wait` raises, and so does the end of a `running` block: a failure is never lost.

    Args:
      path: the folder; made if it is not there.
      world: the ranks that train together.
      keep_last: how many permanent checkpoints of the run, `model_<step>`, to keep; None keeps all.
      has_stand_in: whether a `model.pkl.gz` stands for 'model'; see `stand_in`.
      is_cut: whether each rank holds a part of tensors, and writes it.
    """

    def __init__(
        self,
        path: str,
        world: _distributed.World,
        keep_last: int | None = None,
        has_stand_in: bool = False,
        is_cut: bool = False,
    ):
        self._path = path
        self._world = world
        self._keep_last = keep_last
        self._has_stand_in = has_stand_in
        self._generation: str | None = None  # of the checkpoint 'model' that the run goes on from
        self._executor: futures.ThreadPoolExecutor | None = None
        self._in_flight: futures.Future[None] | None = None
        self._copies: storage.Parts = {}
        self._beside: _distributed.World | None = None  # how the thread behind talks to others'
        self._folder: storage.Folder | None = None  # the chief's, or the first's who sees it
        self._lock = FolderLock(path)
        self._shelf = retention.Shelf(path)
        self._history_file = HistoryFile(path, self._shelf.bytes_of)
        self._run = _new_run()
        self._beside_here: list[int] = [*range(world.size)]  # the ranks that see the folder
        with self._together():
            if world.is_chief or is_cut:
                self._folder = storage.Folder(path)
        if is_cut:
            self._beside_here = own_folders.ranks_beside(path, world)
            if self._beside_here[0] != world.rank:
                self._folder = None

    def save(
        self,
        basenames: Sequence[str],
        parts: storage.Parts,
        info: Mapping[str, Any],
        history: History,
        blocking: bool,
        frozen: Collection[str] = (),
    ) -> None:
        """Saves one state of the run under one name or several, one after another.

        Args:
          basenames: the names.
          parts: the tensors.
          info: plain data.
          history: what was measured; what is new since the last save is written.
          blocking: False writes in the background.
          frozen: names of weights that are not trained, which may be infinite.

        Raises:
          CheckpointError: if it cannot be written, or the save before could not.
          NonFiniteError: if a tensor is not finite; nothing is saved then.
        """
        self.wait()
        cut = shards.cut(parts, self._world.rank, self._beside_here)
        world, chief = self._talking(cut, blocking), self._folder is not None
        lengths = history.lengths()  # of now: it grows behind a save in the background
        with contextlib.ExitStack() as held:
            with self._together():
                if chief:  # here: another's lock is spoken of at once
                    held.enter_context(self._lock.held())
                if not blocking:
                    cut = self._copied(cut)
            what = (world, basenames, cut, info, history, lengths, frozen)
            if cut.is_cut and blocking:
                self._save(*what)
            elif blocking:
                with self._together():
                    if chief:
                        self._save(*what)
            elif chief or cut.is_cut:
                if self._executor is None:
                    self._executor = futures.ThreadPoolExecutor(1, "trax_torch-save")
                self._in_flight = self._executor.submit(
                    self._save_and_let_go, held.pop_all(), *what
                )
                self._in_flight.add_done_callback(_log_failure)

    def has(self, basename: str) -> bool:
        """Tells whether there is a checkpoint of a name, whole or damaged."""
        found = os.path.lexists(os.path.join(self._path, f"{basename}.json"))
        return self._world.all_agree(found or self._folder is None)

    def history_of(self, basename: str, step: int) -> History | None:
        """Returns what a checkpoint holds of the history, if it is whole, and of a step."""
        found: dict[str, Any] | None = None
        with self._together():
            if self._folder is not None:
                with contextlib.suppress(CheckpointError):
                    manifest = storage.read_manifest(self._path, basename, schema.check)
                    if manifest is not None and manifest["info"]["step"] == step:
                        found = storage.read_history(self._path, manifest)
        found = json.loads(self._world.from_chief(json.dumps(found).encode()))
        return None if found is None else History.from_dict(found)

    def put_aside_if_removed(self) -> str | None:
        """Puts 'model' aside if its stand-in was removed; returns to which folder, on the chief."""
        with self._together():
            if self._folder is not None:
                return stand_in.put_aside_if_removed(self._path, "model")
        return None

    def wait(self) -> None:
        """Waits for the save in flight, if there is one, and raises what it raised."""
        with self._together():
            self._wait_here()

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Keeps other processes from writing here for a while.

        Raises:
          CheckpointError: if another process writes here now.
        """
        with contextlib.ExitStack() as held:
            with self._together():
                if self._folder is not None:
                    held.enter_context(self._lock.held())
            yield

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
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

    def goes_on_from(self, basename: str, manifest: Mapping[str, Any], history: History) -> None:
        """Remembers to where the run was put.

        Args:
          basename: the checkpoint's name.
          manifest: what it was read by, if it is of this folder; {} for another's, or Trax's own.
          history: the run's, as it was read.
        """
        if self._folder is None:
            return
        if manifest:
            is_model = basename == "model"
            read = manifest.get("current", manifest["generation"])
            self._generation = read if is_model else self._current()
        self._run = manifest.get("run") or _new_run()  # format version 1 knew of none
        self._history_file.goes_on(manifest.get("history"), history.lengths())

    def check_not_overtaken(self) -> None:
        """Refuses to go on where another process has trained since this one read or saved last.

        Raises:
          CheckpointError: if one has.
        """
        self.wait()
        with self._together():
            if self._folder is None:
                return
            current = self._current()
            if current != self._generation and current is not None:
                raise CheckpointError(
                    f"Another process has trained into {self._path} since this run saved or loaded "
                    f"last. Call load_checkpoint() to go on from there, or give this one an "
                    f"output_dir of its own."
                )

    def _current(self) -> str | None:
        return storage.generation_of(self._path, "model")

    def _together(self) -> contextlib.AbstractContextManager[None]:
        return self._world.together(CheckpointError)

    def _wait_here(self) -> None:
        if self._in_flight is not None:
            futures.wait([self._in_flight])  # broken off, it leaves the save in flight
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def _talking(self, cut: shards.Cut, blocking: bool) -> _distributed.World:
        """Returns those who save: the chief alone, or all ranks, by a group of this thread's."""
        if not cut.is_cut:
            return _distributed.World(0, 1, self._world.device)
        if blocking:
            return self._world
        if self._beside is None:
            self._beside = self._world.aside()
        return self._beside

    def _save_and_let_go(self, held: contextlib.ExitStack, *what: Any) -> None:
        with held:
            self._save(*what)

    def _save(
        self,
        world: _distributed.World,
        basenames: Sequence[str],
        cut: shards.Cut,
        info: Mapping[str, Any],
        history: History,
        lengths: dict[str, dict[str, int]],
        frozen: Collection[str],
    ) -> None:
        """Saves one state under one name after another; those of `world` do so together."""
        folder, entry = self._folder, None
        with world.together(CheckpointError):
            _check_all_finite(cut.own, frozen)
            if folder is not None:
                _check_all_finite(cut.whole, frozen)
                entry = self._history_file.append(history, lengths)
        for basename in basenames:
            beside = {}
            with world.together(CheckpointError):
                if folder is not None and self._has_stand_in and basename == "model":
                    beside = stand_in.put(self._path, basename)
            try:
                what = (basename, cut, {**info, **beside}, entry, self._run)
                generation = shared_save.save(world, self._path, folder, *what, self._beside_here)
            except BaseException:  # the new one may be live all the same
                if basename == "model":
                    self._generation = self._current()
                raise
            if basename == "model":
                self._generation = generation
            with world.together(CheckpointError):
                is_permanent = basename == f"model_{info['step']}"
                if folder is not None and is_permanent and self._keep_last is not None:
                    self._shelf.keep_last(self._keep_last, self._run, info["step"])
        if folder is not None:
            with contextlib.suppress(CheckpointError):  # the next save deletes what is left
                self._shelf.sweep_histories(self._history_file.name)

    def _copied(self, cut: shards.Cut) -> shards.Cut:
        """Returns what this rank saves of it, on the CPU, out of training's way."""
        whole = cut.whole if self._folder is not None else {}
        return dataclasses.replace(
            cut,
            whole={part: self._copy(part, tensors) for part, tensors in whole.items()},
            own={part: self._copy(f"own {part}", x) for part, x in cut.own.items()},
        )

    def _copy(self, part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the tensors' values on the CPU, in the memory of the last copy where it fits."""
        before = self._copies.get(part, {})
        copies = {}
        for name, tensor in tensors.items():
            place, order = before.get(name), _memory_order.order_of(tensor)
            form = (tensor.shape, tensor.dtype, order)
            if place is None or (place.shape, place.dtype, _memory_order.order_of(place)) != form:
                place = _memory_order.empty_in_order(*form, device="cpu")
                if tensor.device.type == "cuda":
                    place = place.pin_memory()
            copies[name] = place.copy_(tensor.detach())
        self._copies[part] = copies
        return copies


def _log_failure(save: "futures.Future[None]") -> None:
    """Logs a failure, for a process that ends without waiting for it."""
    if (error := save.exception()) is not None:
        _log.error("A save in the background failed: %s", error)


def read(
    directory: str,
    basename: str,
    world: _distributed.World,
    like: shards.Like = shards.like_nothing,
    until: contextlib.ExitStack | None = None,
    make_room: Callable[[], Any] = lambda: None,
) -> tuple[storage.Parts, dict[str, Any] | None, dict[str, Any]]:
    """Returns the parts and info of a checkpoint, or `({}, None, {})`.

    The chief reads what each rank is to have whole. Of what is to be in pieces each rank reads its
    own, however it was saved; where some rank does not see the folder, the chief reads that, too.
    The third is the manifest, on the chief, and on others that read.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      world: the ranks that train together.
      like: tells of which tensors, and how, each rank is to have a part.
      until: as for `shards.read_own`.
      make_room: is called before a rank reads its own.

    Raises:
      CheckpointError: if it cannot be read, on all ranks, with the names of others that can.
    """
    found, manifest = None, None
    path = os.path.join(directory, f"{basename}.json")
    if like is not shards.like_nothing:
        there = world.each(os.path.lexists(path))
        if any(there) and not there[0]:
            raise CheckpointError(
                f"{basename} is in {directory} of rank {there.index(1)}, and not of rank 0. Copy "
                f"the files of a machine that has them, or have it come first; or clear all."
            )
        if not all(there):
            like = shards.like_nothing
    is_cut = like is not shards.like_nothing
    if is_cut and world.size > 1:
        with _ways_around(directory, basename):
            manifest = own_folders.manifest_of_all(directory, basename, world)
    with world.together(CheckpointError):
        if world.is_chief:
            with _ways_around(directory, basename):
                if not is_cut or world.size == 1:
                    manifest = storage.read_manifest(directory, basename, schema.check)
                if manifest is not None:
                    found = storage.read_listed(directory, basename, manifest, like)
    parts, info = found or ({}, None)
    parts, info = world.share(parts, info)
    if is_cut:
        listed = {key: (manifest or {}).get(key, {}) for key in ("files", "shards")}
        with world.together(CheckpointError), _ways_around(directory, basename):
            if info is not None:
                make_room()
            own = shards.read_own(directory, basename, listed, like, until)
            for part, tensors in own.items():
                parts[part] = parts.get(part, {}) | tensors
    return parts, info, manifest or {}


@contextlib.contextmanager
def _ways_around(directory: str, basename: str) -> Generator[None]:
    """Has errors say from which checkpoints a run may start."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_way_around(directory, basename)}") from error


def _way_around(directory: str, basename: str) -> str:
    """Says from which checkpoints a run may start, where one cannot be read."""
    whole = retention.whole_others(directory, basename)
    if not whole:
        return f"No other checkpoint in {directory} is whole."
    return (
        f"These are whole, the newest first: {', '.join(whole)}. To start from one: "
        f"Loop(..., resume_from={whole[0]!r})."
    )


def _new_run() -> str:
    """Returns what tells a run from every other."""
    return os.urandom(8).hex()


def _check_all_finite(parts: storage.Parts, frozen: Collection[str]) -> None:
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            numbers = _as_floats(tensor)
            if numbers is None or bool(torch.isfinite(numbers.sum())):
                continue
            # A sum may overflow, and what is not trained may well hold infinities: masks do.
            is_trained = part == "weights" and name not in frozen
            good = torch.isfinite(numbers) if is_trained else ~torch.isnan(numbers)
            if not bool(good.all()):
                raise optimizers.NonFiniteError(
                    f"{name} of the {part} is not finite, so nothing was saved. Go back to the "
                    f"last checkpoint: load_checkpoint()."
                )


def _as_floats(tensor: torch.Tensor) -> torch.Tensor | None:
    """Returns a tensor as real numbers of which torch tells whether they are finite; None of none.

    torch cannot tell of floats of 8 bits; those of 4 are all finite.
    """
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or "float4" in str(tensor.dtype):
        return None
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor
