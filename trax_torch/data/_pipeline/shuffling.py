"""Examples in another order: through a buffer."""

import functools
import itertools
import logging
from collections.abc import Iterator
from typing import Any

from trax_torch import _seeds
from trax_torch.data._pipeline.items import pack_items, unpack_items
from trax_torch.data._pipeline.stages import Stage, as_stream, named
from trax_torch.data._pipeline.stream import Buffered, State, Stream

_log = logging.getLogger("trax_torch")


def Shuffle(queue_size: int = 1024, seed: int | None = None) -> Stage:
    """Shuffles examples through a buffer; see `shuffle`."""
    _check_queue_size(queue_size)
    make = functools.partial(Shuffled, queue_size=queue_size, seed=seed)
    return Stage(named("Shuffle", queue_size=queue_size), make)


def shuffle(samples: Any, queue_size: int, seed: int | None = None) -> Stream:
    """Returns examples shuffled through a buffer, which the state holds.

    One of the buffer at random comes next, and the next one of the samples takes its place. At
    their end the buffer is shuffled and emptied.

    Args:
      samples: an iterator, a dataset, or a stream of examples.
      queue_size: how many examples the buffer holds, at least 1; 1 shuffles nothing.
      seed: of the order; with None it is drawn from numpy's global generator when the pipeline is
        called, so that `np.random.seed` rules it. Ranks that share batches out need one that is
        the same on each. A run that is resumed goes on with the one that it had.

    Raises:
      ValueError: if `queue_size` is less than 1.

    Example:
      >>> list(shuffle(iter(range(6)), queue_size=3, seed=0))
      [0, 1, 3, 5, 2, 4]

    Source: Trax `data/inputs.py::shuffle`. A seed gives the order that Trax gives after
      `np.random.seed` of it, if nothing else draws from that generator.
    """
    return Shuffle(queue_size, seed)(as_stream(samples))


class Shuffled(Buffered):
    """A random one of a buffer, whose place the next one takes."""

    def __init__(self, name: str, upstream: Stream, queue_size: int, seed: int | None):
        self._size, self._random = queue_size, _seeds.random_state(seed)
        self._queue: list[Any] = []
        self._is_ending = False
        super().__init__(name, upstream)

    def _give(self) -> Iterator[Any]:
        queue, examples, randint = self._queue, self._examples, self._random.randint
        for example in itertools.islice(examples, max(0, self._size - len(queue))):
            queue.append(example)
        n = len(queue)
        for example in examples:
            i = randint(n)
            chosen, queue[i] = queue[i], example
            yield chosen
        if not self._is_ending:
            if len(queue) < self._size:
                _log.warning(
                    "%s had %d examples, fewer than its queue holds", self.name, len(queue)
                )
            self._random.shuffle(queue)
            queue.reverse()
            self._is_ending = True
        while queue:
            yield queue.pop()

    def _own_state(self) -> State:
        return {
            "queue": pack_items(self._queue),
            "random": self._random.get_state(legacy=False),
            "is_ending": self._is_ending,
        }

    def _go_to(self, state: State) -> None:
        self._queue = unpack_items(state["queue"])
        self._random.set_state(state["random"])
        self._is_ending = state["is_ending"]


def _check_queue_size(queue_size: int) -> None:
    if queue_size < 1:
        raise ValueError(
            f"Shuffle needs a queue_size of at least 1 example; got {queue_size}. Leave Shuffle "
            f"out for the order as it is."
        )
