"""A pass through a DataLoader begins a pipeline, and goes on by its indices."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from trax_torch import _generators
from trax_torch._digest import digest
from trax_torch.data._pipeline.stream import State, Stream, count_in
from trax_torch.data._streams import OtherExamplesError, Skipping, generators_of, source_of

_log = logging.getLogger("trax_torch")

_END = object()
_WHERE = {"epoch": 0}  # workers that persist are renewed, so each pass is the first one of its own


class Loaded(Stream):
    """What a DataLoader without a state of its own gives, once.

    The place is how many examples it gave, a digest of the last one, and where the generators were
    that the pass was begun with. Indices that went by are drawn again; what they stand for is not,
    but for one example of each worker. Where that brings back another example, all are drawn again.

    Args:
      name: see `Stream`.
      loader: whose pass it is. Its own generators go on, so that the next pass is another one.
    """

    def __init__(self, name: str, loader: DataLoader[Any]):
        self._source = source_of(loader)
        self._generators = generators_of(self._source.data)
        self._begin_anew()
        super().__init__(name)

    def _begin_anew(self) -> None:
        self._iterator: Iterator[Any] | None = None
        self._n_drawn = 0
        self._last: Any = None
        self._began: State = {}
        self._draws = False  # whether examples were seen to move a process-wide generator
        self._before: _generators.Snapshot | None = None  # where these were before the last one

    def _run(self) -> Iterator[Any]:
        if self._iterator is None:
            self._began = {"ambient": _generators.take().pack(), "own": self._own_generators()}
            self._iterator = self._begun()
        while (example := self._draw()) is not _END:
            yield example

    def _begun(self) -> Iterator[Any]:
        self._source.renew()
        return self._source.begin(_WHERE)

    def _draw(self) -> Any:
        assert self._iterator is not None
        n = self._n_drawn
        # A look takes some 50 us; a generator that is moved seldom is found out by the digest.
        looks = self._draws or (n > 0 and n & (n - 1) == 0)
        before = _generators.take() if looks else None
        example = next(self._iterator, _END)
        if before is not None and not self._draws:
            self._draws = bool(before.moved(_generators.take(before)))
        if example is not _END:
            self._n_drawn, self._last = n + 1, example
            self._before = before if self._draws else None
        return example

    def _own_state(self) -> State:
        if not self._n_drawn:
            return {"n_drawn": 0, "own": self._own_generators()}
        return {
            "n_drawn": self._n_drawn,
            "own": self._own_generators(),
            "last": digest(self._last),
            "began": self._began,
            "before": None if self._before is None else self._before.pack(),
            "pass": self._skipping and self._skipping.tell(self._n_drawn),
        }

    def _go_to(self, state: State) -> None:
        n = count_in(state, "n_drawn")
        self._begin_anew()
        if n:
            ambient = _generators.take()
            try:
                if not self._skips_to(n, state):
                    self._draw_again_up_to(n, state)
            finally:
                ambient.put()
        self._put(state["own"])

    def _skips_to(self, n: int, state: State) -> bool:
        """Goes on in the pass, of which no more is drawn than tells that it is the same."""
        skipping, told = self._skipping, state["pass"]
        if skipping is None or told is None or not skipping.is_as_told(told):
            return False
        self._begin_as(state["began"])
        iterator = skipping.begin_at(n, told, _WHERE)
        example: Any = _END
        for k in range(skipping.first_of(n), n):
            if k == n - 1 and state["before"] is not None:
                self._before = _generators.unpack(state["before"])
                self._before.put()
            example = next(iterator, _END)
        if digest(example) != state["last"]:
            self._begin_anew()
            return False
        self._iterator, self._n_drawn, self._last = iterator, n, example
        self._draws = self._before is not None
        return True

    def _draw_again_up_to(self, n: int, state: State) -> None:
        _log.info("%s keeps no state: drawing %d examples again", self.name, n)
        self._begin_as(state["began"])
        self._iterator = self._begun()
        while self._n_drawn < n:
            if self._draw() is _END:
                raise ValueError(
                    f"{self.name} gave {n} examples before the checkpoint, and only "
                    f"{self._n_drawn} now. Give it the data that the run had, or begin the data "
                    f"anew: Loop(resume_data='restart')."
                )
        if digest(self._last) != state["last"]:
            raise OtherExamplesError(
                f"{self.name} keeps no state, and its examples up to the place, drawn again, are "
                f"others than they were. Seed what it draws from."
            )

    def _begin_as(self, began: State) -> None:
        self._began = began
        _generators.unpack(began["ambient"]).put()
        self._put(began["own"])

    @property
    def _skipping(self) -> Skipping | None:
        return self._source.skipping

    def _own_generators(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _put(self, states: list[torch.Tensor]) -> None:
        if len(states) == len(self._generators):
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)
