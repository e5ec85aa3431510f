"""Streams of examples that can say where they are, and what makes one from another.

A stream runs as a generator that keeps all it knows in attributes, and changes them before it
yields. So the attributes are its place, and a new generator goes on from them.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from trax_torch import _generators, _seeds
from trax_torch._digest import digest
from trax_torch.data._pipeline.items import UnpackableError, pack_items, unpack_items
from trax_torch.data._streams import OtherExamplesError

_log = logging.getLogger("trax_torch")

State = dict[str, Any]


class Stream(Iterator[Any]):
    """Examples, one after another, that say where they are and go there.

    Args:
      name: of the stage that gives them, with its settings, as `Batch(batch_size=32)`.
      upstream: the stream that they are made from, if any.
    """

    def __init__(self, name: str, upstream: "Stream | None" = None):
        self.name = name
        self._upstream = upstream
        self._running = self._run()

    def _run(self) -> Iterator[Any]:
        """Yields examples from the place on that the attributes tell."""
        raise NotImplementedError

    def _own_state(self) -> State:
        """Returns what tells the place, besides upstream's."""
        return {}

    def _go_to(self, state: State) -> None:
        """Takes up what `_own_state` gave."""

    def __next__(self) -> Any:
        return next(self._running)

    @property
    def _examples(self) -> Iterator[Any]:
        """Upstream's examples as of now: to be asked for when `_run` begins, not before."""
        assert self._upstream is not None  # of a stage that is no source
        return self._upstream._running

    def state_dict(self) -> State:
        """Returns the place, all buffers included, as plain data and arrays."""
        state = {"stage": self.name, **self._own_state()}
        if self._upstream is not None:
            state["upstream"] = self._upstream.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        """Goes to a place that `state_dict` told, in this process or an earlier one.

        Settings may have changed since: they hold from that place on, with a word in the log.

        Raises:
          ValueError: if it is the place of a pipeline of other stages.
        """
        self._check_stage(state)
        if self._upstream is not None:
            self._upstream.load_state_dict(state["upstream"])
        self._go_to(state)
        self._running = self._run()

    def skip(self, n: int) -> None:
        """Passes over `n` examples; by default they are drawn."""
        deque(itertools.islice(self, n), maxlen=0)

    def _draw_again(self, n: int) -> None:
        """Draws `n` examples that were drawn before, which nobody else is to notice."""
        ambient = _generators.take()
        deque(itertools.islice(self, n), maxlen=0)
        ambient.put()

    @property
    def drawn_from(self) -> Sequence["Stream"]:
        """What it draws from."""
        return () if self._upstream is None else (self._upstream,)

    def _check_stage(self, state: State) -> None:
        was = state.get("stage")
        if was == self.name:
            return
        if not isinstance(was, str) or was.partition("(")[0] != self.name.partition("(")[0]:
            raise ValueError(
                f"The place of a pipeline is that of the same stages in the same order; it has "
                f"{was!r} where {self.name} is now. Build the pipeline that the run had, or begin "
                f"the data anew: Loop(resume_data='restart')."
            )
        _log.info("The data goes on with %s; the checkpoint's run had %s", self.name, was)


def count_in(state: State, name: str) -> int:
    """Returns a number of examples in a state, which no run is past that is more than 2**40.

    Raises:
      ValueError: if it is none.
    """
    n = state[name]
    if not isinstance(n, int) or not 0 <= n <= 2**40:
        raise ValueError(
            f"The place of {state['stage']} has {name} {n!r}, and a number from 0 to 2**40 was "
            f"needed. Load another checkpoint, or begin the data anew: "
            f"Loop(resume_data='restart')."
        )
    return n


def above(stream: Stream, upstream: Stream | None) -> Iterator[Stream]:
    """Yields a stream and those that it draws from, down to `upstream`, which is left out."""
    if stream is not upstream:
        yield stream
        for inner in stream.drawn_from:
            yield from above(inner, upstream)


class Indexed(Stream):
    """A dataset's examples by their indices, in order or shuffled, once or again and again.

    Args:
      name: see `Stream`.
      dataset: with `__len__` and `__getitem__`.
      n_epochs: how many passes; None for no end.
      seed: that each pass is shuffled by, with its number; None for the order as it is.
    """

    def __init__(self, name: str, dataset: Sequence[Any], n_epochs: int | None, seed: int | None):
        self._dataset, self._n_epochs, self._seed = dataset, n_epochs, seed
        self._n_drawn = 0
        super().__init__(name)

    def _run(self) -> Iterator[Any]:
        n, dataset = len(self._dataset), self._dataset
        first = self._n_drawn // max(n, 1)
        for epoch in itertools.count(first):
            if n == 0 or epoch == self._n_epochs:
                return
            for index in self._order(epoch, n)[self._n_drawn - epoch * n :]:
                self._n_drawn += 1
                yield dataset[index]

    def _order(self, epoch: int, n: int) -> Sequence[int]:
        if self._seed is None:
            return range(n)
        order: list[int] = (
            _seeds.random_state(_seeds.derive(self._seed, epoch)).permutation(n).tolist()
        )
        return order

    def skip(self, n: int) -> None:
        """Passes over `n` examples, without a look at them."""
        self._n_drawn += n
        if self._n_epochs is not None:
            self._n_drawn = min(self._n_drawn, self._n_epochs * len(self._dataset))
        self._running = self._run()

    def _own_state(self) -> State:
        return {"n_drawn": self._n_drawn, "seed": self._seed, "n_examples": len(self._dataset)}

    def _go_to(self, state: State) -> None:
        n_now, n_then = len(self._dataset), count_in(state, "n_examples")
        n_drawn, seed = count_in(state, "n_drawn"), state["seed"]
        is_in_first_pass = n_drawn <= min(n_then, n_now) and seed is None
        is_same_way = (self._seed is None) == (seed is None)
        if n_drawn and not is_same_way:
            raise ValueError(
                f"The place in {self.name} is one in another order: the run had "
                f"shuffle={seed is not None}. Shuffle as it did, or begin the data anew: "
                f"Loop(resume_data='restart')."
            )
        if n_now != n_then and not is_in_first_pass:
            raise ValueError(
                f"The place in {self.name} is one of {n_then} examples, and now there are {n_now}. "
                f"Give the dataset that the run had, or begin the data anew: "
                f"Loop(resume_data='restart')."
            )
        self._n_drawn = n_drawn
        if is_same_way:  # a seed that was drawn for the run, say
            self._seed = seed


class DrawnAgain(Stream):
    """What keeps no state, such as a user's generator: its place is how many examples it gave.

    To go there, it and all that it draws from begin anew, and as many examples are drawn again.

    Args:
      name: see `Stream`.
      made: what gives the examples.
      make: makes it anew from upstream; None for an iterator, which cannot go back.
      upstream: what it draws from, if that is known.
      start: upstream's state before the first draw.
    """

    def __init__(
        self,
        name: str,
        made: Iterable[Any],
        make: Callable[[Stream | None], Iterable[Any]] | None = None,
        upstream: Stream | None = None,
        start: State | None = None,
    ):
        self._made, self._make, self._n_drawn = iter(made), make, 0
        self._last: Any = None
        # Seeds that were drawn for stages within a user's function are in the latter.
        self._start: State = {"upstream": start, "made": _state_of(made)}
        super().__init__(name, upstream)

    @property
    def is_opaque(self) -> bool:
        """Whether it cannot begin anew."""
        return self._make is None

    def _run(self) -> Iterator[Any]:
        for example in self._made:
            self._n_drawn += 1
            self._last = example
            yield example

    def state_dict(self) -> State:
        """Returns how many examples were drawn, and where what they are drawn from began."""
        last = digest(self._last) if self._n_drawn else None
        return {"stage": self.name, "n_drawn": self._n_drawn, "start": self._start, "last": last}

    def load_state_dict(self, state: State) -> None:
        """Draws as many examples again."""
        self._check_stage(state)
        n = count_in(state, "n_drawn")
        if self._make is not None:
            self._start = state["start"]
            if self._upstream is not None:
                self._upstream.load_state_dict(self._start["upstream"])
            self._made, self._n_drawn = iter(self._make(self._upstream)), 0
            if isinstance(self._made, Stream):
                self._made.load_state_dict(self._start["made"])
        elif n < self._n_drawn:
            raise ValueError(
                f"{self.name} is to go on after example {n}, but {self._n_drawn} were drawn "
                f"already, and an iterator cannot go back. Give the pipeline a function that makes "
                f"the iterator: Serial(lambda _: ..., ...)."
            )
        self._running = self._run()
        if n > self._n_drawn:
            _log.info("%s keeps no state: drawing %d examples again", self.name, n - self._n_drawn)
            self._draw_again(n - self._n_drawn)
        if self._n_drawn < n:
            raise ValueError(
                f"{self.name} gave {n} examples before the checkpoint, and only {self._n_drawn} "
                f"now. Give it the data that the run had, or begin the data anew: "
                f"Loop(resume_data='restart')."
            )
        if n and digest(self._last) != state["last"]:
            raise OtherExamplesError(
                f"{self.name} keeps no state, and its examples up to the place, drawn again, are "
                f"others than they were. Seed what it draws from, or give it state_dict and "
                f"load_state_dict."
            )


def _state_of(made: Any) -> State | None:
    return made.state_dict() if isinstance(made, Stream) else None


class Each(Stream):
    """A function of each example, by itself."""

    def __init__(self, name: str, upstream: Stream, fn: Callable[[Any], Any]):
        self._fn = fn
        super().__init__(name, upstream)

    def _run(self) -> Iterator[Any]:
        yield from map(self._fn, self._examples)

    def skip(self, n: int) -> None:
        """Passes over `n` examples, of which nothing is made."""
        assert self._upstream is not None
        self._upstream.skip(n)
        self._running = self._run()


class Kept(Stream):
    """The examples for which a function says yes."""

    def __init__(self, name: str, upstream: Stream, fn: Callable[[Any], bool]):
        self._fn = fn
        super().__init__(name, upstream)

    def _run(self) -> Iterator[Any]:
        yield from filter(self._fn, self._examples)


class Buffered(Stream):
    """A stream that holds examples back, and has them in its state.

    Where a checkpoint cannot hold them, pictures that are no arrays yet, say, its state is how many
    examples it gave since its start, as that of `DrawnAgain`.
    """

    def __init__(self, name: str, upstream: Stream):
        super().__init__(name, upstream)
        self._n_given = 0
        self._start: State | None = None

    def _give(self) -> Iterator[Any]:
        """Yields examples from the place on that the attributes tell."""
        raise NotImplementedError

    def _run(self) -> Iterator[Any]:
        if self._start is None and not self._n_given:
            self._start = super().state_dict()
        for example in self._give():
            self._n_given += 1
            yield example

    def state_dict(self) -> State:
        """Returns the place, with the examples that are held back."""
        try:
            return super().state_dict()
        except UnpackableError as error:
            if self._start is None:
                raise
            _log.warning("%s is drawn again when the run is resumed: %s", self.name, error)
            return {"stage": self.name, "n_given": self._n_given, "start": self._start}

    def load_state_dict(self, state: State) -> None:
        """Goes to a place that `state_dict` told."""
        start = state.get("start")
        self._check_stage(state)
        super().load_state_dict(state if start is None else start)
        self._start, self._n_given = start, 0
        if start is None:
            self._n_given = 1  # its start is not known
        else:
            self._draw_again(count_in(state, "n_given"))


class Parts(Buffered):
    """The parts that a function makes of each example, one after another."""

    def __init__(self, name: str, upstream: Stream, fn: Callable[[Any], Iterable[Any]]):
        self._fn = fn
        self._left: list[Any] = []  # of the last example, the next one last
        super().__init__(name, upstream)

    def _give(self) -> Iterator[Any]:
        examples = self._examples
        while True:
            while self._left:
                yield self._left.pop()
            try:
                example = next(examples)
            except StopIteration:
                return
            self._left = list(self._fn(example))[::-1]

    def _own_state(self) -> State:
        return {"left": pack_items(self._left)}

    def _go_to(self, state: State) -> None:
        self._left = unpack_items(state["left"])
