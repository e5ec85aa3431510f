"""Stages made of stages: one after another, and mixed in turns."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trax_torch.data._pipeline.stages import Stage, apply, as_stream, named
from trax_torch.data._pipeline.stream import DrawnAgain, State, Stream, above, count_in


def Serial(*fns: Any) -> Stage:
    """Combines stages into one that runs them one after another.

    `Serial(source, stage, ...)()` is an iterator of examples, or batches, that keeps its place: its
    `state_dict()` holds the position in the source and what waits in every stage, and a new
    pipeline of the same stages goes there by `load_state_dict`. A `Loop` does both with its
    checkpoints.

    A source that is a dataset (with `__len__` and `__getitem__`) or has a `state_dict` of its own
    goes to its place at once. A user's functions of generators are stages, too: `map` and `filter`
    keep no state, so nothing is lost by them; what other functions gave is drawn again, which the
    log says.

    Args:
      *fns: stages, functions of a generator that return another, or lists of them. The first may
        be a dataset, or a function that needs no generator.

    Returns:
      A stage; call it without an argument if it begins with a source.

    Raises:
      TypeError: at the call, if one is neither a stage nor, at first, a source.

    Example:
      >>> batches = Serial([(1,), (2,), (3,), (4,)], lambda g: map(lambda x: (x[0] * 10,), g))()
      >>> next(batches), next(batches)
      ((10,), (20,))
      >>> again = Serial([(1,), (2,), (3,), (4,)], lambda g: map(lambda x: (x[0] * 10,), g))()
      >>> again.load_state_dict(batches.state_dict())
      >>> next(again)
      (30,)

    Source: Trax `data/inputs.py::Serial`, whose generators have no place but a count of draws.
    """
    stages = list(_flat(fns))
    return Stage(
        named("Serial", stages=len(stages)), functools.partial(_in_series, stages), True, stages
    )


def Parallel(
    fns: Sequence[Any],
    counters: Sequence[int] | None = None,
    reweight_by_minimum: bool = False,
    gradually_reweight: bool = False,
    use_remainders: bool = False,
) -> Stage:
    """Combines sources, or stages of the same examples, into one that takes from each in turns.

    It ends when the one whose turn it is has ended.

    Args:
      fns: sources, or stages.
      counters: how many examples to take of each in one cycle: one of each in turn, then again of
        those whose number is not reached. None for one of each; 0 leaves one out.
      reweight_by_minimum: whether counters are divided by the smallest one, and rounded down.
      gradually_reweight: whether examples are mixed evenly over the cycle: counters 1, 20, 40, in
        this order, give (a (b c c)^20)^*.
      use_remainders: whether, at the end of such a cycle, those come that the division has left.

    Raises:
      ValueError: if there is nothing to mix, or counters are not one for each.

    Example:
      >>> mixed = Parallel([lambda: iter('abcd'), lambda: iter('wxyz')], counters=(2, 1))()
      >>> ''.join(mixed)
      'awbxcdy'

    Source: Trax `data/inputs.py::Parallel`, where the end of one is a RuntimeError.
    """
    fns, weights = list(fns), [1] * len(fns) if counters is None else list(counters)
    if len(fns) != len(weights) or not any(weights) or min(weights) < 0:
        raise ValueError(
            f"Parallel needs a counter from 0 on for each of its sources, not all 0; got "
            f"{len(fns)} sources and counters {weights}. Leave counters out to mix evenly."
        )
    fns = [fn for fn, weight in zip(fns, weights, strict=True) if weight]
    weights = [weight for weight in weights if weight]
    if reweight_by_minimum:
        weights = [weight // min(weights) for weight in weights]
    if gradually_reweight:
        turns: Callable[[int], int] = _Gradually(weights, use_remainders)
    else:
        turns = _InTurns(weights)
    name = f"Parallel(counters={weights})"
    return Stage(name, functools.partial(_in_parallel, fns, turns), True, fns)


class Mixed(Stream):
    """Examples of several streams in turns.

    Args:
      name: see `Stream`.
      streams: what to take from.
      turns: from the number of an example, counted from 0, to the stream that it comes from.
    """

    def __init__(self, name: str, streams: Sequence[Stream], turns: Callable[[int], int]):
        self._streams, self._turns = streams, turns
        self._n_drawn = 0
        super().__init__(name)

    @property
    def drawn_from(self) -> Sequence[Stream]:
        """What it draws from."""
        return self._streams

    def _run(self) -> Iterator[Any]:
        while True:
            try:
                example = next(self._streams[self._turns(self._n_drawn)])
            except StopIteration:
                return
            self._n_drawn += 1
            yield example

    def _own_state(self) -> State:
        return {"n_drawn": self._n_drawn, "streams": [s.state_dict() for s in self._streams]}

    def _go_to(self, state: State) -> None:
        if len(state["streams"]) != len(self._streams):
            raise ValueError(
                f"{self.name} mixes {len(self._streams)} streams; the place is one of "
                f"{len(state['streams'])}. Build the pipeline that the run had."
            )
        for stream, inner in zip(self._streams, state["streams"], strict=True):
            stream.load_state_dict(inner)
        self._n_drawn = count_in(state, "n_drawn")


class _InTurns:
    """One of each in turn, as long as its number in this cycle is not reached."""

    def __init__(self, weights: list[int]):
        self._cycle = sum(weights)
        last = max(i for i, weight in enumerate(weights) if weight == max(weights))
        # A cycle ends with this one, and the next goes on with the one after it.
        self._first = _rounds(weights, range(len(weights)))
        self._later = _rounds(weights, [*range(last + 1, len(weights)), *range(last + 1)])

    def __call__(self, n: int) -> int:
        rounds = self._first if n < self._cycle else self._later
        n %= self._cycle
        before, indices = next(r for r in reversed(rounds) if r[0] <= n)
        return indices[(n - before) % len(indices)]


def _rounds(weights: list[int], order: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Returns the rounds of a cycle in which the same ones take part.

    Each as `(before, indices)`: how many examples of the cycle come before, and whose turns it is.
    """
    rounds = []
    before, done = 0, 0
    for weight in sorted(set(weights)):
        indices = [i for i in order if weights[i] >= weight]
        rounds.append((before, indices))
        before += (weight - done) * len(indices)
        done = weight
    return rounds


class _Gradually:
    """Evenly over the cycle: one of the rarest, then its share of the next ones, and so on."""

    def __init__(self, weights: list[int], use_remainders: bool):
        order = sorted(range(len(weights)), key=weights.__getitem__)
        ascending = [weights[i] for i in order]
        repeats = [b // a for a, b in zip(ascending[:1] + ascending, ascending, strict=False)]
        self._order, self._repeats = order, repeats
        self._lengths = [0]  # of one repeat of each level and all below, the rarest last
        for times in reversed(repeats):
            self._lengths.append(times * (1 + self._lengths[-1]))
        self._lengths.reverse()
        self._rests: list[int] = []
        if use_remainders:
            taken = 1
            for times, weight in zip(repeats, ascending, strict=True):
                taken *= times
                self._rests.append(weight - taken)

    def __call__(self, n: int) -> int:
        n %= self._lengths[0] + sum(self._rests)
        if n >= self._lengths[0]:
            n -= self._lengths[0]
            for index, rest in zip(self._order, self._rests, strict=True):
                if n < rest:
                    return index
                n -= rest
        for index, below in zip(self._order, self._lengths[1:], strict=True):
            n %= 1 + below
            if n == 0:
                return index
            n -= 1
        raise AssertionError(n)


def _in_series(stages: list[Any], name: str, upstream: Stream | None) -> Stream:
    stream = upstream
    for stage in stages:
        stream = apply(stage, stream)
    return as_stream(stream)


def _in_parallel(
    fns: list[Any], turns: Callable[[int], int], name: str, upstream: Stream | None
) -> Stream:
    start = None if upstream is None else upstream.state_dict()
    streams = [apply(fn, upstream) for fn in fns]
    mixed = Mixed(name, streams, turns)
    if upstream is None or not any(isinstance(s, DrawnAgain) for s in above(mixed, upstream)):
        return mixed
    # What begins anew draws from what others draw from, too: only together can they go there.
    return DrawnAgain(
        name,
        mixed,
        lambda again: Mixed(name, [apply(fn, again) for fn in fns], turns),
        upstream,
        start,
    )


def _flat(fns: Sequence[Any]) -> Iterator[Any]:
    """Yields functions in nests of tuples and lists; a list of anything else is a dataset."""
    for fn in fns:
        if isinstance(fn, (tuple, list)) and _is_nest_of_functions(fn):
            yield from _flat(fn)
        else:
            yield fn


def _is_nest_of_functions(fn: Any) -> bool:
    if isinstance(fn, (tuple, list)):
        return all(map(_is_nest_of_functions, fn))
    return callable(fn)
