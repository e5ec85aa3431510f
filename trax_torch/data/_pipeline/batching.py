"""Examples put together in batches, by number or by length, and padded to one shape."""

import bisect
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from trax_torch.data._pipeline.examples import length_of
from trax_torch.data._pipeline.items import pack_items, unpack_items
from trax_torch.data._pipeline.stages import Stage, as_stream, named, parts
from trax_torch.data._pipeline.stream import Buffered, State, Stream


def Batch(batch_size: int) -> Stage:
    """Puts examples together in batches; see `batch`."""
    if batch_size <= 0:
        raise ValueError(
            f"Batch needs a batch_size of at least 1 example; got {batch_size}. Write Batch(32), "
            f"say."
        )
    return Stage(
        named("Batch", batch_size=batch_size), functools.partial(Batched, batch_size=batch_size)
    )


def batch(generator: Any, batch_size: int) -> Stream:
    """Returns batches of so many examples each, padded with zeros to one shape.

    A batch has the form of an example: a tuple, a dict, or one array. What is left at the end and
    fills no batch is left out.

    Args:
      generator: an iterator, a dataset, or a stream of examples.
      batch_size: how many examples.

    Raises:
      ValueError: if `batch_size` is less than 1; at a batch whose examples differ in what they hold
        or in their number of axes.

    Example:
      >>> next(batch([([1, 2, 3], 7), ([4], 8)], batch_size=2))
      (array([[1, 2, 3],
             [4, 0, 0]]), array([7, 8]))

    Source: Trax `data/inputs.py::batch`.
    """
    return Batch(batch_size)(as_stream(generator))


def BucketByLength(
    boundaries: Sequence[int],
    batch_sizes: Sequence[int],
    length_keys: Sequence[Any] | None = None,
    length_axis: int = 0,
    strict_pad_on_len: bool = False,
) -> Stage:
    """Puts examples of like lengths together in batches; see `bucket_by_length`.

    Args:
      boundaries: the most that an example of each bucket may be long, ascending.
      batch_sizes: how many examples a batch of each bucket has; one more for those that are longer.
      length_keys: the items of an example whose longest counts; None for 0 and 1.
      length_axis: of the items' shapes.
      strict_pad_on_len: see `pad_to_max_dims`.

    Raises:
      ValueError: see `bucket_by_length`.

    Source: Trax `data/inputs.py::BucketByLength`.
    """
    length_fn = length_of("BucketByLength", length_keys, length_axis)
    return _bucketing(length_fn, boundaries, batch_sizes, strict_pad_on_len)


def bucket_by_length(
    generator: Any,
    length_fn: Callable[[Any], int],
    boundaries: Sequence[int],
    batch_sizes: Sequence[int],
    strict_pad_on_len: bool = False,
) -> Stream:
    """Returns batches of examples that are about equally long.

    An example goes into the first bucket whose boundary it does not exceed. A bucket with as many
    examples as its batches have gives one, padded to its boundary by `pad_to_max_dims`. Buckets
    that are not full at the end are left out; the state holds what waits in them.

    Args:
      generator: an iterator, a dataset, or a stream of examples.
      length_fn: from an example to its length.
      boundaries: see `BucketByLength`.
      batch_sizes: see `BucketByLength`.
      strict_pad_on_len: see `pad_to_max_dims`.

    Raises:
      ValueError: if boundaries do not ascend or batch sizes are not one for each; at an example
        longer than all boundaries, where no batch size is given for it.

    Example:
      >>> batches = bucket_by_length([(np.ones(n),) for n in (2, 5, 3)], lambda x: len(x[0]),
      ...     boundaries=[4], batch_sizes=[2, 1])
      >>> [batch[0].shape for batch in batches]
      [(1, 5), (2, 4)]

    Source: Trax `data/inputs.py::bucket_by_length`.
    """
    stage = _bucketing(length_fn, boundaries, batch_sizes, strict_pad_on_len)
    return stage(as_stream(generator))


def UnBatch() -> Stage:
    """Takes batches apart: each row becomes an example.

    Raises:
      ValueError: at a batch whose items differ in their number of rows.

    Example:
      >>> next(UnBatch()([(np.eye(2), np.zeros((2, 1)))]))
      (array([1., 0.]), array([0.]))

    Source: Trax `data/inputs.py::UnBatch`.
    """
    return parts("UnBatch()", _rows)


def pad_to_max_dims(
    tensors: Sequence[Any],
    boundary: int | Sequence[int | None] | None = None,
    strict_pad_on_len: bool = False,
) -> np.ndarray[Any, Any]:
    """Returns arrays as one, with a first axis for them, each padded with zeros at its ends.

    An axis becomes as long as the longest array there; with a `boundary`, as long as it. Where
    that would be more than twice as long as needed, the next power of two is taken instead: arrays
    of shapes (2, 10) and (3, 9) with boundary 12 become (2, 4, 12).

    Args:
      tensors: arrays of equally many axes.
      boundary: a length, or one for each axis, of which multiples are taken; None for no more than
        needed.
      strict_pad_on_len: whether each axis becomes a multiple of `boundary`.

    Raises:
      ValueError: if the arrays, or the boundaries, differ in their number of axes.

    Example:
      >>> pad_to_max_dims([np.ones(3), np.ones(5)], boundary=8).shape
      (2, 8)

    Source: Trax `data/inputs.py::pad_to_max_dims`.
    """
    arrays = [np.asarray(tensor) for tensor in tensors]
    n_axes = {array.ndim for array in arrays}
    if len(n_axes) != 1:
        raise ValueError(
            f"A batch is made of arrays with equally many axes; got the shapes "
            f"{[array.shape for array in arrays][:8]}. Filter or reshape the examples before."
        )
    longest = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
    dims = _padded_dims(longest, boundary, strict_pad_on_len)
    if all(list(array.shape) == dims for array in arrays):
        return np.stack(arrays)
    padded = np.zeros((len(arrays), *dims), np.result_type(*arrays))
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return padded


class Batched(Stream):
    """So many examples at a time. None waits where a batch is given, so there is no state."""

    def __init__(self, name: str, upstream: Stream, batch_size: int):
        self._size = batch_size
        super().__init__(name, upstream)

    def _run(self) -> Iterator[Any]:
        waiting = []
        for example in self._examples:
            waiting.append(example)
            if len(waiting) == self._size:
                yield _together(waiting, pad_to_max_dims)
                waiting = []


class Bucketed(Buffered):
    """Examples that wait, each in the bucket of its length, until one is full."""

    def __init__(
        self,
        name: str,
        upstream: Stream,
        length_fn: Callable[[Any], int],
        boundaries: list[int],
        batch_sizes: list[int],
        strict_pad_on_len: bool,
    ):
        self._length_fn, self._boundaries, self._sizes = length_fn, boundaries, batch_sizes
        self._strict = strict_pad_on_len
        self._buckets: list[list[Any]] = [[] for _ in batch_sizes]
        super().__init__(name, upstream)

    def _give(self) -> Iterator[Any]:
        for i, size in enumerate(self._sizes):  # after a change of settings more may be full
            while len(self._buckets[i]) >= size:
                yield self._batch_of(i)
        for example in self._examples:
            i = self._put(example)
            if len(self._buckets[i]) == self._sizes[i]:
                yield self._batch_of(i)

    def _put(self, example: Any) -> int:
        length = self._length_fn(example)
        i = bisect.bisect_left(self._boundaries, length)
        if i == len(self._buckets):
            raise ValueError(
                f"An example of length {length} came, and the boundaries {self._boundaries} have "
                f"no bucket for it. Give one more of batch_sizes, for longer ones, or leave them "
                f"out: FilterByLength(max_length={self._boundaries[-1]})."
            )
        self._buckets[i].append(example)
        return i

    def _batch_of(self, i: int) -> Any:
        bucket, size = self._buckets[i], self._sizes[i]
        self._buckets[i] = bucket[size:]
        has_boundary = i < len(self._boundaries) and self._boundaries[i] < math.inf
        boundary = self._boundaries[i] if has_boundary else None
        pad = functools.partial(pad_to_max_dims, boundary=boundary, strict_pad_on_len=self._strict)
        return _together(bucket[:size], pad)

    def _own_state(self) -> State:
        return {"waiting": pack_items([x for bucket in self._buckets for x in bucket])}

    def _go_to(self, state: State) -> None:
        self._buckets = [[] for _ in self._sizes]
        for example in unpack_items(state["waiting"]):
            self._put(example)


def _bucketing(
    length_fn: Callable[[Any], int],
    boundaries: Sequence[int],
    batch_sizes: Sequence[int],
    strict_pad_on_len: bool,
) -> Stage:
    boundaries, sizes = list(boundaries), list(batch_sizes)
    if len(sizes) - len(boundaries) not in (0, 1) or min(sizes, default=0) < 1:
        raise ValueError(
            f"BucketByLength needs a batch size of at least 1 for each of {len(boundaries)} "
            f"boundaries, and one more for longer examples; got batch_sizes {sizes}. Write "
            f"boundaries=[32, 128], batch_sizes=[64, 16, 4], say."
        )
    if sorted(boundaries) != boundaries:
        raise ValueError(
            f"BucketByLength needs boundaries that ascend; got {boundaries}. Sort them, and "
            f"batch_sizes with them."
        )
    name = named("BucketByLength", boundaries=boundaries, batch_sizes=sizes)
    make = functools.partial(
        Bucketed,
        length_fn=length_fn,
        boundaries=boundaries,
        batch_sizes=sizes,
        strict_pad_on_len=strict_pad_on_len,
    )
    return Stage(name, make)


def _together(examples: list[Any], pad: Callable[[list[Any]], Any]) -> Any:
    """Returns the batch of examples: in their form, its items padded to one shape."""
    first = examples[0]
    if isinstance(first, dict):
        keys = list(first)
        if any(example.keys() != first.keys() for example in examples):
            raise ValueError(
                f"The examples of a batch have equal keys; the first has {keys}, another one has "
                f"not. Map them to one form before."
            )
        return {key: pad([example[key] for example in examples]) for key in keys}
    if not isinstance(first, (tuple, list)):
        return pad(examples)
    n_items = {len(example) for example in examples}
    if len(n_items) != 1:
        raise ValueError(
            f"The examples of a batch hold equally many items; got {sorted(n_items)}. Map them to "
            f"one form before."
        )
    return tuple(pad(list(items)) for items in zip(*examples, strict=True))


def _padded_dims(
    longest: list[int], boundary: int | Sequence[int | None] | None, strict: bool
) -> list[int]:
    """Returns how long each axis is made."""
    if boundary is None:
        return longest
    if not isinstance(boundary, Sequence):
        if not strict:
            return [_towards(n, int(boundary)) for n in longest]
        boundary = [boundary] * len(longest)
    if len(boundary) != len(longest):
        raise ValueError(
            f"boundary needs one length for each of {len(longest)} axes; got {boundary}. Give None "
            f"for an axis that stays as it is."
        )
    return [m * math.ceil(n / m) if m else n for n, m in zip(longest, boundary, strict=True)]


def _towards(n: int, boundary: int) -> int:
    """Returns the boundary, or the next power of two where that is less than half of it."""
    return max(n, boundary) if 2 * n >= boundary else 1 << max(n - 1, 0).bit_length()


def _rows(batch: Any) -> Iterator[Any]:
    n_rows = {len(item) for item in batch} if isinstance(batch, (tuple, list)) else set()
    if len(n_rows) != 1:
        raise ValueError(
            f"UnBatch takes tuples of arrays with equally many rows; got "
            f"{type(batch).__name__} with {sorted(n_rows)} rows. Put it after Batch."
        )
    return (tuple(item[i] for item in batch) for i in range(n_rows.pop()))
