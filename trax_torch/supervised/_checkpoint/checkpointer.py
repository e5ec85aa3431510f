"""The checkpoints of one run: what goes into them, and the way back to where one was saved.

When something is saved, and under which names, `Loop` decides; how it gets to the disk, `saver`.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised import _logging
from trax_torch.supervised._checkpoint import from_trax, storage
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
        """Returns plain data."""
        return {
            "step": self.step,
            "reported_step": self.reported_step,
            "history": self.history.to_dict(),
            "seed": self.seed,
            "n_rngs": self.n_rngs,
        }

    def fill(self, kept: dict[str, Any]) -> None:
        """Takes up what `to_dict` gave."""
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
    def of_steps(self) -> dict[str, Any]:
        """Returns how steps are computed, by name."""


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
        self.saved_step: int | None = None
        self._saver = None if folder is None else Saver(folder, world, config.keep_last)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing here for a while; see `Saver.locked`."""
        return contextlib.nullcontext() if self._saver is None else self._saver.locked()

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Holds the lock for a run, and ends after the save in flight; see `Saver.running`."""
        return contextlib.nullcontext() if self._saver is None else self._saver.running()

    def check_not_overtaken(self) -> None:
        """Raises CheckpointError if another process has trained here since."""
        if self._saver is not None:
            self._saver.check_not_overtaken()

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that a crash kept from being saved beside 'model', gone on from now."""
        if self._saver is None or self.saved_step != self._state.step:
            return []
        return [name for name in names if not self._saver.has(name)]

    def save(self, names: Sequence[str], blocking: bool) -> None:
        """Saves the run as it is now under names; see `Saver.save`."""
        if not names or self._saver is None:
            return
        self.check_whole()
        with self._world.together():
            ranks = [self._members.take_own(self._world.rank)]
        if self._world.size > 1:
            gathered = self._world.gather(storage.to_bytes(*ranks[0]))
            ranks = [storage.from_bytes(data) for data in gathered]
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
        self._saver.save(names, parts, info, blocking, self._members.frozen())
        if "model" in names:
            self.saved_step = self._state.step
        _log.info("Saved checkpoint %s of step %d", ", ".join(names), self._state.step)

    def wait(self) -> None:
        """Waits for the save in flight, if there is one, and raises what it raised."""
        if self._saver is not None:
            self._saver.wait()

    def load(self, directory: str | None, filename: str | None) -> None:
        """Puts the run where a checkpoint left it; `Loop.load_checkpoint` tells of it."""
        directory = directory or self._output_dir
        name = storage.check_basename(str(filename or "model").removesuffix(".pkl.gz"))
        if directory is None:
            return
        directory = os.path.expanduser(directory)
        self.wait()
        parts, info = read(directory, name, self._world)
        with self._world.together(CheckpointError):
            if info is not None:
                self._go_on_from(parts, info, directory, name)
            elif os.path.lexists(trax_file := os.path.join(directory, f"{name}.pkl.gz")):
                self._go_on_from_trax(trax_file)
        self._world.compare({"the step": self._state.step, "the seed": self._state.seed})

    def _go_on_from(
        self, parts: storage.Parts, info: dict[str, Any], directory: str, name: str
    ) -> None:
        rank, size = self._world.rank, self._world.size
        exact = self._config.resume_data == "exact"
        self._members.put(parts, info["members"], info["ranks"], rank, size, exact)
        asked = self._config.random_seed
        if asked not in (None, info["seed"]):
            self._console.say(f"The run's seed is {info['seed']}, as saved; not {asked}.")
        self._state.fill(info)
        is_own = directory == self._output_dir and name == "model"
        if self._saver is not None and is_own:
            self._saver.goes_on_from(name)
        self.saved_step = self._state.step if is_own else None
        self._console.say(f"Resumed from {directory} at step {self._state.step}.")
        saved = info.get("settings", self._settings)  # earlier versions kept none
        changed = [n for n, x in self._settings.items() if n in saved and saved[n] != x]
        if changed:
            was = ", ".join(f"{n}={saved[n]!r}" for n in changed)
            now = ", ".join(f"{n}={self._settings[n]!r}" for n in changed)
            self._console.say(f"It was saved with {was}, and goes on with {now}.")

    def _go_on_from_trax(self, file: str) -> None:
        self._state.step, history = from_trax.load_from_trax(self._members, file)
        self._state.reported_step = self._state.step
        self._state.history = History.from_dict(history)
        self._console.say(f"Resumed from Trax's {file} at step {self._state.step}.")

    def check_whole(self) -> None:
        """Raises CheckpointError if an update was broken off."""
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
