"""The random numbers that a stream draws with: its own, whoever else draws in between.

Numbers are keyed, not remembered: what data draws from the process-wide generators (torch's,
numpy's and Python's) at batch k of a pass owes nothing to the batches before, nor to other streams.
Generators that belong to the data, as a loader's, go on as this stream left them.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import torch

from trax_torch import _generators, _seeds

States = list[torch.Tensor]


class Numbers:
    """Has a stream draw with its own random numbers, as a context around each draw.

    Until it has keys, as when a task takes its sample, a stream draws from the process-wide
    generators as they are. After that they are seeded anew for each draw, and put back, which takes
    some 25 us: a draw that moves them may come late and seldom. Whether one does is looked at, for
    `draws_from`, at batches 1, 2, 4, 8 and so on of a pass, since that takes some 150 us.

    Args:
      generators: those that belong to the data; they are put back after each draw.

    Attributes:
      at_pass: where these were when the pass under way began.
      draws_from: the process-wide generators that batches were seen to move.
    """

    def __init__(self, generators: list[torch.Generator]):
        self._generators = generators
        self._own = self.at_pass = self._start = self._states()
        self._keys: list[int] | None = None
        self._n_unkeyed = 0  # batches that were drawn before there were keys
        self.draws_from: list[str] = []  # the process-wide generators that batches moved
        self._is_new = True
        self._before: _generators.Snapshot | None = None
        self._ambient_start: torch.Tensor | None = None  # where they were at first, if they moved
        self._ambient = _seeds.Ambient()
        self._epoch, self._k, self._begins = 0, 0, True

    def key(self, keys: list[int], n_taken: int) -> None:
        """Has all draws after the first n_taken keyed; a stream that has keys keeps them."""
        if self._keys is None:
            self._keys, self._n_unkeyed = keys, n_taken

    def drawing(self, epoch: int, k: int, begins: bool = False) -> "Numbers":
        """Returns the context to draw batch k of a pass in; `begins` if going through it begins."""
        self._epoch, self._k, self._begins = epoch, k, begins
        return self

    def __enter__(self) -> None:
        if self._k == 0:
            self.at_pass = self._own
        if self._generators:
            self._outside = self._states()
            self._put(self._own)
        k, is_new, self._is_new = self._k, self._is_new, False
        self._is_keyed = self._keys is not None
        if self._is_keyed:
            step = (self._epoch + 1 << 32) + k
            self._ambient.enter([_seeds.at_step(key, step) for key in self._keys or ()])
            looks = not self._begins and not self.draws_from and k & (k - 1) == 0
        else:
            looks = is_new
        self._before = _generators.take() if looks else None

    def __exit__(self, *_: object) -> None:
        if self._generators:
            self._own = self._states()
            self._put(self._outside)
        if self._before is not None:
            moved = self._before.moved(_generators.take(self._before))
            if self._is_keyed:
                self.draws_from = moved
            elif moved:
                self._ambient_start = self._before.pack()
            self._before = None
        if self._is_keyed:
            self._ambient.exit()

    def position(self) -> dict[str, Any]:
        """Returns how a new stream draws what this one drew, from the first batch on."""
        return {
            "keys": self._keys,
            "n_unkeyed": self._n_unkeyed,
            "draws_from": self.draws_from,
            "start": self._start,
            "ambient": self._ambient_start,
        }

    def begins_like(self, position: dict[str, Any]) -> bool:
        """Tells whether a stream that drew as `position` says began as this one did."""
        mine, its = self._ambient_start, position["ambient"]
        same = (mine is None) == (its is None) and (mine is None or torch.equal(mine, its))
        if self._keys is not None and self._keys != position["keys"]:
            return False
        return same and self.starts_like(position)

    def starts_like(self, position: dict[str, Any]) -> bool:
        """Tells whether the data's own generators began as those of a `position`."""
        return _are_equal(self._start, position["start"])

    def go_to(self, position: dict[str, Any]) -> None:
        """Draws from now on as a stream did that told its `position`, from its first batch on."""
        self.follow(position)
        self._ambient_start = position["ambient"]
        self._own = self.at_pass = self._start = position["start"]
        self._is_new = False

    def follow(self, position: dict[str, Any]) -> None:
        """Goes on from here by the keys of a `position`."""
        self._keys, self._n_unkeyed = position["keys"], position["n_unkeyed"]
        self.draws_from = position["draws_from"]

    @contextlib.contextmanager
    def as_at_first(self, is_first: bool) -> Generator[int]:
        """Gives how many batches were drawn before there were keys, to draw them again inside.

        Args:
          is_first: whether none is drawn yet.
        """
        keys, self._keys = self._keys, None
        before = _generators.take()
        if is_first and self._ambient_start is not None:
            _generators.unpack(self._ambient_start).put()
        try:
            yield self._n_unkeyed
        finally:
            before.put()
            self._keys = keys

    @contextlib.contextmanager
    def beginning(self, epoch: int, generators: States) -> Generator[None]:
        """Has a pass begin inside as it began, with the data's generators at their states then."""
        with contextlib.ExitStack() as stack:
            if epoch == 0 and self._n_unkeyed:
                stack.enter_context(self.as_at_first(True))
            self.goes_on_at(generators)
            stack.enter_context(self.drawing(epoch, 0, begins=True))
            yield

    def goes_on_at(self, states: States) -> None:
        """Has the data's generators go on from states that `now` gave."""
        if len(states) == len(self._generators):
            self._own = states

    @property
    def now(self) -> States:
        """Where the data's generators are."""
        return self._own

    def of_whole_passes(self) -> "Numbers":
        """Returns numbers for passes that are all alike, and leave these where they are."""
        twin = Numbers(self._generators)
        twin._own, twin._keys, twin._is_new = self._start, self._keys, False
        return twin

    def _states(self) -> States:
        return [generator.get_state() for generator in self._generators]

    def _put(self, states: States) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _are_equal(one: States, other: States) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
