"""Examples drawn ahead by a thread, while what was drawn is worked on."""

import functools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from trax_torch.data._pipeline.items import pack_items, unpack_items
from trax_torch.data._pipeline.stages import Stage, named
from trax_torch.data._pipeline.stream import Buffered, State, Stream


def Prefetch(n_prefetch: int = 2) -> Stage:
    """Draws examples ahead, in a thread of its own.

    What was drawn and not yet asked for is part of the state. An error in what comes before is
    raised when its example is asked for.

    Args:
      n_prefetch: how many examples wait at most.

    Raises:
      ValueError: if `n_prefetch` is less than 1.

    Example:
      >>> list(Prefetch()(range(3)))
      [0, 1, 2]

    Source: Trax `data/inputs.py::Prefetch`, which waits for ever where the examples end.
    """
    if n_prefetch < 1:
        raise ValueError(
            f"Prefetch needs an n_prefetch of at least 1 example; got {n_prefetch}. Leave it out "
            f"to draw when asked."
        )
    make = functools.partial(_Ahead, n_prefetch=n_prefetch)
    return Stage(named("Prefetch", n_prefetch=n_prefetch), make)


class _Ahead(Buffered):
    """Examples that a thread has drawn."""

    def __init__(self, name: str, upstream: Stream, n_prefetch: int):
        self._n_prefetch = n_prefetch
        self._box = _Box(upstream, n_prefetch, [])
        super().__init__(name, upstream)

    def _give(self) -> Iterator[Any]:
        box = self._box
        box.start()
        weakref.finalize(self, box.stop)
        while (example := box.take()) is not _END:
            yield example

    def state_dict(self) -> State:
        """Returns the place, with the examples that wait: as many as there may be."""
        self._box.fill()  # else the same place would be told in several ways
        with self._box.at_rest:
            return super().state_dict()

    def load_state_dict(self, state: State) -> None:
        """Goes to a place that `state_dict` told."""
        self._box.stop()
        with self._box.at_rest:
            super().load_state_dict(state)

    def _own_state(self) -> State:
        return {"waiting": pack_items(list(self._box.waiting))}

    def _go_to(self, state: State) -> None:
        assert self._upstream is not None
        self._box = _Box(self._upstream, self._n_prefetch, unpack_items(state["waiting"]))


_END = object()


class _Box:
    """What a thread and the stream that it draws for share; it knows nothing of the stream.

    Attributes:
      at_rest: a lock; while it is held nothing is drawn.
      waiting: examples that were drawn.
    """

    def __init__(self, upstream: Stream, n: int, waiting: list[Any]):
        self._upstream, self._n = upstream, n
        self.waiting = deque(waiting)
        self.at_rest = threading.Lock()
        self._changed = threading.Condition()
        self._is_started, self._is_stopped, self._is_at_end = False, False, False
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begins to draw."""
        self._is_started = True
        threading.Thread(target=self._draw_all, name="trax_torch prefetch", daemon=True).start()

    def stop(self) -> None:
        """Ends the drawing."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def fill(self) -> None:
        """Waits until nothing more is drawn, if it was begun at all."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_started or self._is_full_or_done)

    @property
    def _is_full_or_done(self) -> bool:
        return len(self.waiting) >= self._n or self._is_at_end or self._is_stopped

    def take(self) -> Any:
        """Returns the next example, or `_END`."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self._is_at_end)
            if self.waiting:
                self._changed.notify_all()
                return self.waiting.popleft()
            if self._error is not None:
                raise self._error
            return _END

    def _draw_all(self) -> None:
        while not self._is_at_end:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped or len(self.waiting) < self._n)
            with self.at_rest:
                if self._is_stopped:
                    return
                self._draw()

    def _draw(self) -> None:
        try:
            drawn = [next(self._upstream)]
        except StopIteration:
            drawn, self._is_at_end = [], True
        except BaseException as error:  # raised where its example is asked for
            drawn, self._is_at_end, self._error = [], True, error
        with self._changed:
            self.waiting.extend(drawn)
            self._changed.notify_all()
