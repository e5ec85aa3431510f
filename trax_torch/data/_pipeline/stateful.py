"""What has a state of its own, and is believed only as far as it brings back what comes next."""

import contextlib
import copy
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from trax_torch._digest import digest
from trax_torch.data._pipeline.stream import State, Stream, count_in
from trax_torch.data._streams import OtherExamplesError

_log = logging.getLogger("trax_torch")
_END = object()


class Stateful(Stream):
    """Examples of torchdata's loaders and nodes, Hugging Face's iterable datasets, and their like.

    The place is the source's state, and a digest of the example that comes next, which is drawn to
    know it. Where a state brings back another one, the source begins anew and is drawn again.

    Args:
      name: see `Stream`.
      source: an iterator or iterable with `state_dict` and `load_state_dict`.
      make: makes it anew; None if nobody can.
    """

    def __init__(self, name: str, source: Any, make: Callable[[], Any] | None = None):
        self._source, self._make = source, make
        self._fresh = None if make else _state_of(source)
        self._iterator: Iterator[Any] | None = None
        self._n_drawn, self._is_at_end = 0, False
        self._ahead: list[Any] = []  # the next example, if it was looked at already
        self._told: State | None = None  # the state that was told then
        super().__init__(name)

    def _run(self) -> Iterator[Any]:
        while not self._is_at_end:
            example = self._ahead.pop() if self._ahead else self._draw()
            if example is not _END:
                self._n_drawn, self._told = self._n_drawn + 1, None
                yield example

    def _draw(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._source)
        example = next(self._iterator, _END)
        self._is_at_end = example is _END
        return example

    def _look_ahead(self) -> str | None:
        """Returns a digest of the next example; None where there is none."""
        example = self._draw()
        if example is _END:
            return None
        self._ahead = [example]
        return digest(example)

    def _own_state(self) -> State:
        if self._told is None:
            state, n_drawn = None, self._n_drawn
            if n_drawn and not self._is_at_end:
                state = copy.deepcopy(self._source.state_dict())
            following = self._look_ahead() if state is not None else None
            self._told = {"state": state, "n_drawn": n_drawn, "next": following}
        return dict(self._told)

    def _go_to(self, state: State) -> None:
        if not state["n_drawn"] or state["next"] is None:
            self._begin_anew()
            self._n_drawn, self._is_at_end = state["n_drawn"], bool(state["n_drawn"])
            return
        self._source.load_state_dict(copy.deepcopy(state["state"]))
        self._iterator, self._is_at_end = None, False
        if self._look_ahead() != state["next"]:
            self._begin_and_draw_again(state)
        self._n_drawn, self._told = state["n_drawn"], dict(state)

    def _begin_and_draw_again(self, state: State) -> None:
        _log.warning(
            "%s: its state does not bring back the next example: drawing %d examples again",
            self.name,
            state["n_drawn"],
        )
        self._begin_anew()
        deque(itertools.islice(iter(self._draw, _END), count_in(state, "n_drawn")), maxlen=0)
        if self._look_ahead() != state["next"]:
            raise OtherExamplesError(
                f"{self.name} has a state that does not bring back the next example, and, drawn "
                f"again, it gives others than it did. Seed what it draws from."
            )

    def _begin_anew(self) -> None:
        if self._make is not None:
            self._source = self._make()
        elif self._fresh is not None:
            self._source.load_state_dict(copy.deepcopy(self._fresh))
        self._iterator, self._is_at_end = None, False
        self._n_drawn, self._ahead, self._told = 0, [], None


def _state_of(source: Any) -> Any:
    with contextlib.suppress(Exception):  # some have none before they began
        return copy.deepcopy(source.state_dict())
    return None
