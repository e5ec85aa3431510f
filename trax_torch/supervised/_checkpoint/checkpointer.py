"""The checkpoints of one run: what goes into them, and the way back to where one was saved.

When something is saved, and under which names, `Loop` decides; how it gets to the disk, `saver`.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from trax_torch import _distributed, _heap, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import _logging
from trax_torch.supervised._checkpoint import (
    from_trax,
    optimizer_state,
    places,
    retention,
    storage,
    tensor_files,
    unfilled,
)
from trax_torch.supervised._checkpoint.saver import Saver, read
from trax_torch.supervised._checkpoint.state import Members
from trax_torch.supervised.history import History

_log = logging.getLogger("trax_torch")


@dataclass
class RunState:
    """Where a run is, in numbers.

    Attributes:
      seed: of all its random numbers.
      step: how many steps were taken.
      reported_step: the step of the last report.
      n_rngs: how many generators were handed out.
      history: what was measured.
    """

    seed: int
    step: int = 0
    reported_step: int = 0
    n_rngs: int = 0
    history: History = field(default_factory=History)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, without the history, which is saved apart."""
        return {
            "step": self.step,
            "reported_step": self.reported_step,
            "seed": self.seed,
            "n_rngs": self.n_rngs,
        }

    def fill(self, kept: dict[str, Any]) -> None:
        """Takes up what `to_dict` gave, and the history."""
        self.step, self.reported_step = kept["step"], kept["reported_step"]
        self.seed, self.n_rngs = kept["seed"], kept["n_rngs"]
        self.history = History.from_dict(kept["history"])


class Config(Protocol):
    """What a `Checkpointer` asks of a run's settings; `Loop` tells what they mean."""

    @property
    def output_dir(self) -> str | None: ...
    @property
    def keep_last(self) -> int | None: ...
    @property
    def resume_data(self) -> str: ...
    @property
    def random_seed(self) -> int | None: ...

    has_stand_in: ClassVar[bool]
    data_may_be_ahead: ClassVar[bool]

    def of_steps(self) -> dict[str, Any]:
        """Returns how steps are computed, by name."""
        ...


class Checkpointer:
    """Saves a run under names, and puts it where a checkpoint left it.

    All ranks call what is here.

    Args:
      state: where the run is.
      members: its parts that remember something.
      world: the ranks that train together.
      console: is told from where a run goes on.
      config: the run's settings. Those of steps are kept in checkpoints, and compared with theirs.

    Attributes:
      saved_step: the step that the checkpoint 'model' is of; None while there is none of this run.
    """

    def __init__(
        self,
        state: RunState,
        members: Members,
        world: _distributed.World,
        console: _logging.Console,
        config: Config,
    ):
        self._state = state
        self._members = members
        self._world = world
        self._console = console
        self._config = config
        self._output_dir = folder = config.output_dir
        self._settings = config.of_steps()
        self._checked: set[optimizers.Trainer | None] = set()
        self._is_new = True  # until the first checkpoint is looked for, when the run is built
        self.saved_step: int | None = None
        is_cut, how = members.is_cut, (config.keep_last, config.has_stand_in)
        self._saver = None if folder is None else Saver(folder, world, *how, is_cut)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing here while a run begins; see `Saver.locked`."""
        return contextlib.nullcontext() if self._saver is None else self._saver.locked()

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Holds the lock for a run, and ends after the save in flight; see `Saver.running`."""
        return contextlib.nullcontext() if self._saver is None else self._saver.running()

    def check_not_overtaken(self) -> None:
        """Raises CheckpointError if another process has trained here since."""
        if self._saver is not None:
            self._saver.check_not_overtaken()

    def check_can_save(self, trainer: optimizers.Trainer | None = None) -> None:
        """Raises CheckpointError, by name, if a part of the run cannot be saved.

        Args:
          trainer: has just taken a step; only its first makes an optimizer's slots, and is looked
            at. None looks at everything.
        """
        if self._saver is None or trainer in self._checked:
            return
        self._checked.add(trainer)
        with self._world.together(CheckpointError):
            self._members.check()

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that a crash kept from being saved beside 'model', gone on from now."""
        if self._saver is None or self.saved_step != self._state.step:
            return []
        return [name for name in names if not self._saver.has(name)]

    def history_beside(self, name: str) -> History | None:
        """Returns the history that a checkpoint of the run's step holds; None if there is none."""
        if self._saver is None or self.saved_step != self._state.step:
            return None
        return self._saver.history_of(name, self._state.step)

    def save(self, names: Sequence[str], blocking: bool) -> None:
        """Saves the run as it is now under names; see `Saver.save`."""
        if not names or self._saver is None:
            return
        self.check_whole()
        with self._world.call(f"save_checkpoint({', '.join(map(repr, names))})"):
            self._save(self._saver, names, blocking)

    def _save(self, saver: Saver, names: Sequence[str], blocking: bool) -> None:
        with self._world.together():
            ranks = [self._members.take_own(self._world.rank)]
        if self._world.size > 1:
            gathered = self._world.gather(tensor_files.to_bytes(*ranks[0]))
            ranks = [tensor_files.from_bytes(data) for data in gathered]
        parts, members = self._members.take()
        for tensors, _ in ranks:
            parts["state"] |= tensors
        info = {
            **self._state.to_dict(),
            "world_size": self._world.size,
            "settings": self._settings,
            "members": members,
            "ranks": [info for _, info in ranks],
        }
        history, frozen = self._state.history, self._members.frozen()
        saver.save(names, parts, info, history, blocking, frozen)
        if "model" in names:
            self.saved_step = self._state.step
        _log.info("Saved checkpoint %s of step %d", ", ".join(names), self._state.step)

    def wait(self) -> None:
        """Waits for the save in flight, if there is one, and raises what it raised."""
        if self._saver is not None:
            self._saver.wait()

    def load(self, directory: str | None, filename: str | None) -> bool:
        """Puts the run where a checkpoint left it; `Loop.load_checkpoint` tells of it.

        Returns:
          Whether there was one.
        """
        is_named = bool(directory or filename)
        if directory and filename is None:
            directory, filename = places.split(directory)
        name = storage.check_basename(str(filename or "model").removesuffix(".pkl.gz"))
        directory = directory or self._output_dir
        if directory is None:
            if is_named:
                raise ValueError(
                    f"A checkpoint {name!r} lies in a folder, and the Loop has no output_dir. Give "
                    f"load_checkpoint the directory, too."
                )
            return False
        directory = os.path.expanduser(directory)
        self.wait()
        if self._config.has_stand_in and not is_named and self._state.step == 0:
            self._put_aside_if_removed()
        with contextlib.ExitStack() as stack:  # whose files are open until weights are read
            how = self._members.like(), stack, self._make_room
            parts, info, manifest = read(directory, name, self._world, *how)
            if info is not None:
                self._go_on_from(parts, info, directory, name)
        self._is_new = False
        is_there = True
        with self._world.together(CheckpointError):
            if info is not None:  # all ranks have gone on together
                self._remember(directory, name, manifest)
            elif (trax_file := places.trax_file(directory, name)) is not None:
                self._go_on_from_trax(trax_file)
                self._remember(directory, name, None)
            elif is_named:
                raise places.missing(directory, name)
            else:
                self._say_what_is_not_resumed(directory, name)
                is_there = False
        self._world.compare({"the step": self._state.step, "the seed": self._state.seed})
        return is_there

    def _make_room(self) -> None:
        """Frees slots of a run that is being built: those that are read come in their place."""
        if self._is_new:
            for trainer in self._members.trainers:
                optimizer_state.free_parts(trainer)
            _heap.give_back()

    def _go_on_from(
        self, parts: storage.Parts, info: dict[str, Any], directory: str, name: str
    ) -> None:
        exact, step = self._config.resume_data == "exact", info["step"]
        members, ranks = info["members"], info["ranks"]
        may_be_ahead = self._config.data_may_be_ahead
        lines = self._members.put(parts, members, ranks, step, self._world, exact, may_be_ahead)
        asked = self._config.random_seed
        if asked not in (None, info["seed"]):
            self._console.say(f"The run's seed is {info['seed']}, as saved; not {asked}.")
        self._state.fill(info)
        self._console.say(f"Resumed from {directory} at step {self._state.step}.")
        saved = info.get("settings", self._settings)  # earlier versions kept none
        changed = [n for n, x in self._settings.items() if n in saved and saved[n] != x]
        if changed:
            was = ", ".join(f"{n}={saved[n]!r}" for n in changed)
            now = ", ".join(f"{n}={self._settings[n]!r}" for n in changed)
            self._console.say(f"It was saved with {was}, and goes on with {now}.")
        for line in lines:
            self._console.say(line)

    def _put_aside_if_removed(self) -> None:
        """Has a run begin afresh where a program for Trax has removed Trax's file."""
        aside = None if self._saver is None else self._saver.put_aside_if_removed()
        if aside is not None:
            self._console.say(
                f"model.pkl.gz was removed from {self._output_dir}, so the run begins afresh. What "
                f"was saved there is kept in {aside}; to go on from it: Loop(..., resume_from="
                f"{aside!r}), and if it is not needed, remove that folder, too."
            )

    def _go_on_from_trax(self, file: str) -> None:
        self._state.step, history = from_trax.load_from_trax(self._members, file)
        self._state.reported_step = self._state.step
        self._state.history = History.from_dict(history)
        self._console.say(f"Resumed from Trax's {file} at step {self._state.step}.")

    def _remember(self, directory: str, name: str, manifest: dict[str, Any] | None) -> None:
        """Remembers which checkpoint the run was put to, on all ranks alike.

        Args:
          directory: its folder, and name: its name there.
          manifest: what was read of it here; None for one of Trax's own.
        """
        self.saved_step = None
        if self._saver is None or self._output_dir is None:
            return
        is_own = os.path.realpath(directory) == os.path.realpath(self._output_dir)
        if is_own and name == "model" and manifest is not None:
            self.saved_step = self._state.step
        self._saver.goes_on_from(name, (is_own and manifest) or {}, self._state.history)

    def _say_what_is_not_resumed(self, directory: str, name: str) -> None:
        """Says loudly that a run begins beside checkpoints that it does not go on from."""
        there = retention.others(directory, name) if self._world.is_chief else []
        if there:
            self._console.warn(
                f"WARNING: there is no checkpoint {name!r} in {directory}, so nothing is resumed, "
                f"and step is {self._state.step}. There are, the newest first: {', '.join(there)}. "
                f"They stay until this run saves under the same names. To go on from one: "
                f"Loop(..., resume_from={there[0]!r})."
            )

    def check_whole(self) -> None:
        """Raises CheckpointError if an update was broken off, or weights have no numbers yet."""
        unfilled.check(self._members.unfilled, self._world)
        if not all(trainer.is_whole for trainer in self._members.trainers):
            raise CheckpointError(
                f"The update of step {self._state.step + 1} was broken off, so the weights in "
                f"memory belong to no step: they are not saved, nor measured, nor trained on. "
                f"{self.way_back()}"
            )

    def way_back(self) -> str:
        """Says where the run can go on from."""
        if self.saved_step is None:
            return "Nothing was saved to go back to: build Loop again."
        return f"Go back to step {self.saved_step}, saved in {self._output_dir}: load_checkpoint()."
