"""Stages that change, pass over or look at one example at a time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trax_torch import _nest, shapes
from trax_torch.data._pipeline.keys import Key, as_keys, with_items
from trax_torch.data._pipeline.stages import Stage, as_stream, each, kept, named
from trax_torch.data._pipeline.stream import State, Stream


def Map(fn: Callable[[Any], Any], keys: Sequence[Key] | Key | None = None) -> Stage:
    """Applies a function to each example, or to some of its items.

    The function keeps no state of its own: it should give the same for the same example.

    Args:
      fn: from an example to another; or, with `keys`, from an item to another.
      keys: which items, by their numbers, or by name; None for the example as a whole.

    Raises:
      ValueError: when an example has nothing at a key.

    Example:
      >>> list(Map(abs, keys=[1])([(-1, -2)]))
      [(-1, 2)]
    """
    if keys is None:
        return each(named("Map", fn=fn), fn)
    chosen = as_keys(keys)
    change = functools.partial(with_items, "Map", fn=fn, keys=chosen)
    return each(named("Map", fn=fn, keys=chosen), change)


def Dup() -> Stage:
    """Puts the first item of each example in front once more.

    Example:
      >>> list(Dup()([(1, 2)]))
      [(1, 1, 2)]

    Source: Trax `data/inputs.py::Dup`.
    """
    return each("Dup()", lambda x: (x[0], *x))


def FilterByLength(
    max_length: int | None,
    min_length: int | None = 0,
    length_keys: Sequence[Any] | None = None,
    length_axis: int = 0,
) -> Stage:
    """Leaves out examples that are too long or too short.

    Args:
      max_length: the most that the longest item may be long; None for any length.
      min_length: the least that it may be long; None for any length.
      length_keys: the items that count, by their numbers, or by name; None for 0 and 1.
      length_axis: of the items' shapes.

    Raises:
      ValueError: if both lengths are None; at an example without such an item, or such an axis.

    Example:
      >>> [len(x) for x, in FilterByLength(3, length_keys=[0])([(np.ones(n),) for n in (2, 5, 3)])]
      [2, 3]

    Source: Trax `data/inputs.py::FilterByLength`.
    """
    if max_length is None and min_length is None:
        raise ValueError(
            "FilterByLength needs a max_length or a min_length; got None for both. Write "
            "FilterByLength(max_length=512), say."
        )
    least = -np.inf if min_length is None else min_length
    most = np.inf if max_length is None else max_length
    length_fn = length_of("FilterByLength", length_keys, length_axis)
    name = named("FilterByLength", max_length=max_length, min_length=min_length)
    return kept(name, lambda x: bool(least <= length_fn(x) <= most))


def FilterEmptyExamples(axes: Sequence[int] | None = None, debug: bool = False) -> Stage:
    """Leaves out examples of which an item is an array of shape (0,).

    Args:
      axes: the items that count, by their numbers; None for all.
      debug: whether what is left out is printed.

    Example:
      >>> list(FilterEmptyExamples()([(np.ones(0), 1), (np.ones(1), 2)]))
      [(array([1.]), 2)]

    Source: Trax `data/inputs.py::FilterEmptyExamples`.
    """

    def is_full(example: Any) -> bool:
        counted = (x for i, x in enumerate(example) if axes is None or i in axes)
        if not any(np.shape(x) == (0,) for x in counted):
            return True
        if debug:
            print(f"Left out, since it is empty: {example!r}")
        return False

    return kept(named("FilterEmptyExamples", axes=axes), is_full)


def TruncateToLength(len_map: Mapping[Any, tuple[int, ...]] | None = None) -> Stage:
    """Cuts items to shapes.

    An item whose shape is greater than its own in `len_map`, in the order of tuples, gets that
    shape by `np.resize`; others stay as they are. An example that is one array becomes a tuple.

    Args:
      len_map: from an item's number to its shape, as in {0: (256,)}; an int stands for a vector's.

    Raises:
      ValueError: at an example that is neither a tuple nor an array.

    Example:
      >>> list(TruncateToLength({0: (2,)})([(np.arange(5), 1)]))
      [(array([0, 1]), 1)]

    Source: Trax `data/inputs.py::TruncateToLength`.
    """
    most = {k: (n,) if isinstance(n, int) else tuple(n) for k, n in (len_map or {}).items()}

    def truncated(example: Any) -> tuple[Any, ...]:
        items = items_of("TruncateToLength", example)
        for key, shape in most.items():
            if np.shape(items[key]) > shape:
                items[key] = np.resize(items[key], shape)
        return tuple(items)

    return each(named("TruncateToLength", len_map=most), truncated)


def PadToLength(
    len_map: Mapping[int, int] | None = None,
    pad_value: Mapping[int, Any] | int = 0,
    multiple: bool = False,
) -> Stage:
    """Pads items that are vectors, at their ends.

    Args:
      len_map: from an item's number to its length.
      pad_value: what with: from an item's number to a value, or one for all.
      multiple: whether items are padded to a multiple of their lengths in `len_map`.

    Raises:
      ValueError: if `len_map` is None; at an example that is neither a tuple nor an array.

    Example:
      >>> list(PadToLength({0: 4}, {0: 9})([(np.arange(3), 1)]))
      [(array([0, 1, 2, 9]), 1)]

    Source: Trax `data/inputs.py::PadToLength`, which with `multiple` pads by the remainder, to a
      length that is no multiple in general.
    """
    if len_map is None:
        raise ValueError(
            "PadToLength needs a len_map, from an item's number to its length; got None. Write "
            "PadToLength(len_map={0: 128}), say."
        )
    lengths = dict(len_map)

    def padded(example: Any) -> Any:
        items = items_of("PadToLength", example)
        for key, length in lengths.items():
            value = pad_value[key] if isinstance(pad_value, Mapping) else pad_value
            n = len(items[key])
            missing = -n % length if multiple else max(0, length - n)
            items[key] = np.pad(items[key], (0, missing), constant_values=value)
        return tuple(items) if isinstance(example, (tuple, list)) else items[0]

    return each(named("PadToLength", len_map=lengths, multiple=multiple), padded)


def CastTo(dtype: Any = np.int32, indices: Sequence[int] = (0, 1), debug: bool = False) -> Stage:
    """Casts items to a type.

    Args:
      dtype: numpy's.
      indices: the items' numbers.
      debug: whether casts are printed, but for those from int64 to int32.

    Raises:
      ValueError: at an example that is no tuple.

    Example:
      >>> list(CastTo(np.float32, [0])([(np.arange(2), 1)]))
      [(array([0., 1.], dtype=float32), 1)]

    Source: Trax `data/inputs.py::CastTo`.
    """
    into = np.dtype(dtype)

    def cast(example: Any) -> tuple[Any, ...]:
        items = items_of("CastTo", example)
        for i in set(indices) & set(range(len(items))):
            was = np.asarray(items[i]).dtype
            if debug and was != into and not (was == np.int64 and into == np.int32):
                print(f"CastTo: item {i} was {was} and is cast to {into}")
            items[i] = np.asarray(items[i]).astype(into, copy=False)
        return tuple(items)

    return each(named("CastTo", dtype=into.name, indices=list(indices)), cast)


def AppendValue(val: Mapping[int, Any] | None = None) -> Stage:
    """Appends values to items, along their last axes.

    Args:
      val: from an item's number to what is appended: an array of as many axes, or, to a vector, a
        value.

    Raises:
      ValueError: at an example that is neither a tuple nor an array, or whose item has other axes.

    Example:
      >>> list(AppendValue({0: [1]})([(np.array([5, 6]), 3)]))
      [(array([5, 6, 1]), 3)]

    Source: Trax `data/inputs.py::AppendValue`.
    """
    values = dict(val or {})

    def appended(example: Any) -> Any:
        items = items_of("AppendValue", example)
        for key, value in values.items():
            items[key] = np.append(items[key], np.atleast_1d(value), -1)
        return tuple(items) if isinstance(example, (tuple, list)) else items[0]

    return each(named("AppendValue", keys=list(values)), appended)


Append = AppendValue  # its short name


def AddLossWeights(id_to_mask: int | None = None) -> Stage:
    """Adds loss weights to examples or batches; see `add_loss_weights`."""
    name = named("AddLossWeights", id_to_mask=id_to_mask)
    return each(name, lambda example: _with_weights(example, id_to_mask))


def add_loss_weights(generator: Any, id_to_mask: int | None = None) -> Stream:
    """Returns (inputs, targets) as (inputs, targets, weights).

    Weights are float32, of the targets' shape: 1, and 0 where the target is `id_to_mask`. Where
    there are weights already, they are kept, and multiplied by 0 there. What has another number
    of items stays as it is.

    Args:
      generator: an iterator, a dataset, or a stream of examples or batches.
      id_to_mask: the target that does not count, padding, say; None where all count.

    Raises:
      ValueError: with an `id_to_mask`, at what has fewer than 2 or more than 3 items.

    Example:
      >>> list(add_loss_weights([(np.ones(3), np.array([4, 5, 0]))], id_to_mask=0))[0][2]
      array([1., 1., 0.], dtype=float32)

    Source: Trax `data/inputs.py::add_loss_weights`.
    """
    return AddLossWeights(id_to_mask)(as_stream(generator))


def ConvertToUnicode(keys: Sequence[Key] | Key | None = None) -> Stage:
    """Decodes bytes as UTF-8, without those that are none.

    Args:
      keys: the items' numbers, or names; None for all. What is a string already stays one.

    Raises:
      ValueError: when an example has nothing at a key.

    Example:
      >>> list(ConvertToUnicode(keys=[0])([(b'caf\\xc3\\xa9', b'x')]))
      [('café', b'x')]

    Source: Trax `data/tf_inputs.py::ConvertToUnicode`.
    """
    chosen = as_keys(keys)
    change = functools.partial(with_items, "ConvertToUnicode", fn=_decoded, keys=chosen)
    return each(named("ConvertToUnicode", keys=chosen), change)


def Log(n_steps_per_example: int = 1, only_shapes: bool = True) -> Stage:
    """Prints examples on their way.

    Args:
      n_steps_per_example: prints the first one, and every so manieth after it.
      only_shapes: whether arrays are told by shape and type.

    Raises:
      ValueError: if `n_steps_per_example` is less than 1.

    Example:
      >>> _ = list(Log()([(np.zeros((2, 3)), 'a')]))
      (ShapeDtype{shape:(2, 3), dtype:float32}, 'a')

    Source: Trax `data/inputs.py::Log`.
    """
    if n_steps_per_example < 1:
        raise ValueError(
            f"Log needs an n_steps_per_example of at least 1; got {n_steps_per_example}. Write "
            f"Log(n_steps_per_example=100), say."
        )

    def make(name: str, upstream: Stream) -> Stream:
        return _Logged(name, upstream, n_steps_per_example, only_shapes)

    return Stage(named("Log", n_steps_per_example=n_steps_per_example), make)


def length_of(
    stage: str, length_keys: Sequence[Any] | None, length_axis: int
) -> Callable[[Any], int]:
    """Returns the function from an example to the length of the longest of some items.

    Args:
      stage: that asks, for messages.
      length_keys: the items; None for 0 and 1.
      length_axis: of their shapes.
    """
    keys = list(length_keys or (0, 1))

    def length(example: Any) -> int:
        if not isinstance(example, (tuple, list, dict)):
            return _shape(example)[length_axis]
        try:
            return max([_shape(example[key])[length_axis] for key in keys])
        except (LookupError, TypeError):
            known = example if isinstance(example, dict) else dict(enumerate(example))
            raise ValueError(
                f"{stage} measures the items {keys} of an example along axis {length_axis}; one "
                f"came with items of the shapes { {k: np.shape(x) for k, x in known.items()} }. "
                f"Name those that have a length: {stage}(..., length_keys=[0])."
            ) from None

    return length


class _Logged(Stream):
    """Examples as they came, of which some are printed."""

    def __init__(self, name: str, upstream: Stream, every: int, only_shapes: bool):
        self._every, self._only_shapes = every, only_shapes
        self._n_seen = 0
        super().__init__(name, upstream)

    def _run(self) -> Any:
        for example in self._examples:
            if self._n_seen % self._every == 0:
                told = _nest.map_leaves(_told, example) if self._only_shapes else example
                print(told)
            self._n_seen += 1
            yield example

    def _own_state(self) -> State:
        return {"n_seen": self._n_seen}

    def _go_to(self, state: State) -> None:
        self._n_seen = state["n_seen"]


def _told(leaf: Any) -> Any:
    try:
        return shapes.signature(leaf)
    except TypeError:  # a string, say
        return leaf


def _shape(x: Any) -> tuple[int, ...]:
    """Returns a shape; of a string, or a list, its length alone, without a look at all of it."""
    shape: tuple[int, ...] | None = getattr(x, "shape", None)
    return (len(x),) if shape is None else shape


def items_of(stage: str, example: Any) -> list[Any]:
    """Returns the items of an example; an array is its only one."""
    if isinstance(example, np.ndarray):
        return [example]
    if isinstance(example, (tuple, list)):
        return list(example)
    raise ValueError(
        f"{stage} takes examples that are tuples or arrays; got {type(example).__name__}. Map them "
        f"before: Map(lambda x: (x['inputs'], x['targets'])), say."
    )


def _with_weights(example: Any, id_to_mask: int | None) -> Any:
    if not 2 <= len(example) <= 3:
        if id_to_mask is None:
            return example
        raise ValueError(
            f"add_loss_weights masks {id_to_mask} in (inputs, targets) or (inputs, targets, "
            f"weights); got {len(example)} items. Map them to one of these before, or leave "
            f"id_to_mask out."
        )
    inputs, targets, *given = example
    weights = np.asarray(given[0] if given else np.ones(np.shape(targets), np.float32), np.float32)
    if id_to_mask is not None:
        weights = weights * (np.asarray(targets) != id_to_mask).astype(np.float32)
    return inputs, targets, weights


def _decoded(x: Any) -> Any:
    if isinstance(x, str):
        return x
    return str(x.item() if isinstance(x, np.ndarray) else x, encoding="utf-8", errors="ignore")
