"""Stages, and what becomes a source: from what a user gives to a stream that keeps its place."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from trax_torch.data._pipeline.loaders import Loaded
from trax_torch.data._pipeline.stateful import Stateful
from trax_torch.data._pipeline.stream import (
    DrawnAgain,
    Each,
    Indexed,
    Kept,
    Parts,
    Stream,
    above,
)
from trax_torch.data._streams import keeps_a_state


class Stage:
    """A function from examples to examples whose stream keeps its place.

    Called with an iterator, a dataset or a stream of examples, it returns a `Stream`. One that
    begins a pipeline can be gone through again and again: each pass is a call.

    Args:
      name: what it is called, with its settings.
      make: from `(name, upstream)` to its stream; upstream is None where nothing came before.
      begins: whether it may begin a pipeline.
      of: what it is made of: stages, functions, datasets.

    Attributes:
      datasets: what it is made of, where epochs are told to whoever has them, a sampler, say.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str, Any], Stream],
        begins: bool = False,
        of: Sequence[Any] = (),
    ):
        self._name, self._make, self._begins = name, make, begins
        self.datasets = list(of)

    def __call__(self, generator: Any = None) -> Stream:
        if generator is None and not self._begins:
            raise ValueError(
                f"{self._name} needs examples to work on, and nothing comes before it. Begin with "
                f"a source: Serial(dataset, {self._name})()."
            )
        upstream = None if generator is None else as_stream(generator)
        return self._make(self._name, upstream)

    def __iter__(self) -> Stream:
        return self()

    def __repr__(self) -> str:
        return self._name


def named(stage: str, /, **settings: Any) -> str:
    """Returns a stage's name with its settings, on one line."""
    told = ", ".join(f"{key}={_told(value)}" for key, value in settings.items())
    return f"{stage}({told})"


def each(name: str, fn: Callable[[Any], Any]) -> Stage:
    """Returns the stage that applies a function to each example."""
    return Stage(name, functools.partial(Each, fn=fn))


def kept(name: str, fn: Callable[[Any], bool]) -> Stage:
    """Returns the stage that keeps the examples for which a function says yes."""
    return Stage(name, functools.partial(Kept, fn=fn))


def parts(name: str, fn: Callable[[Any], Iterable[Any]]) -> Stage:
    """Returns the stage that gives the parts that a function makes of each example."""
    return Stage(name, functools.partial(Parts, fn=fn))


def as_stream(examples: Any) -> Stream:
    """Returns examples as a stream that keeps its place as well as they allow.

    Raises:
      TypeError: if they cannot be gone through.
    """
    if isinstance(examples, Stream):
        return examples
    if keeps_a_state(examples):
        return Stateful(named("Stateful", of=examples), examples)
    if isinstance(examples, DataLoader):
        return Loaded(named("DataLoader", of=examples.dataset), examples)
    if is_dataset(examples):
        return Indexed(named("Examples", of=examples), examples, n_epochs=1, seed=None)
    if type(examples) in (map, filter):
        _, (fn, *iterators) = examples.__reduce__()
        if len(iterators) == 1:  # nothing waits in one of these
            upstream = as_stream(iterators[0])
            kind: Any = Each if type(examples) is map else Kept
            made: Stream = kind(named(type(examples).__name__, fn=fn), upstream, fn or bool)
            return made
    is_iterable = hasattr(examples, "__iter__")
    if isinstance(examples, Stage) or (callable(examples) and not is_iterable):
        return apply(examples, None)
    if not is_iterable:
        raise TypeError(
            f"A pipeline begins with a dataset, an iterable, or a function that returns one; got "
            f"{type(examples).__name__}. Write Serial(lambda _: generator(), ...), say."
        )
    iterable: Any = examples
    make = None if hasattr(iterable, "__next__") else lambda _: iterable
    return DrawnAgain(named("generator", of=iterable), iterable, make)


def apply(stage: Any, upstream: Stream | None) -> Stream:
    """Returns the stream of a stage on what comes before it.

    Args:
      stage: a `Stage`; a function of generators; or, first in a pipeline, a dataset.
      upstream: what comes before it; None for a source.

    Raises:
      TypeError: if it is none of that.
    """
    if isinstance(stage, Stage):
        return stage(upstream)
    if not callable(stage):
        if upstream is not None:
            raise TypeError(
                f"A stage is a function from a generator of examples to another; got "
                f"{type(stage).__name__}. A dataset, a list, say, comes first in a pipeline."
            )
        return as_stream(stage)
    start = None if upstream is None else upstream.state_dict()
    made = _called(stage, upstream)
    make = functools.partial(_called, stage)
    if upstream is None and not isinstance(made, Stream) and keeps_a_state(made):
        return Stateful(named("Stateful", of=made), made, functools.partial(make, None))
    stream = as_stream(made)
    if not any(isinstance(s, DrawnAgain) and s.is_opaque for s in above(stream, upstream)):
        return stream
    return DrawnAgain(named("generator", of=stage), made, make, upstream, start)


def _called(fn: Callable[..., Any], upstream: Stream | None) -> Any:
    """Returns what a user's function makes of upstream; a source may take no argument."""
    if upstream is not None:
        return fn(upstream)
    try:
        inspect.signature(fn).bind()
    except (TypeError, ValueError):  # it needs one, or does not say
        return fn(None)
    return fn()


def is_dataset(x: Any) -> bool:
    """Tells whether examples may be asked for by their indices."""
    has_both = hasattr(x, "__getitem__") and hasattr(x, "__len__")
    return has_both and not isinstance(x, (str, bytes, dict, IterableDataset))


def _told(value: Any) -> str:
    """Returns a setting as it is told: numbers as they are, functions and datasets by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)) and len(value) < 20:
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, dict) and len(value) < 20:
        return f"{{{', '.join(f'{key!r}: {_told(x)}' for key, x in value.items())}}}"
    name: str = getattr(value, "__name__", type(value).__name__)
    return name
