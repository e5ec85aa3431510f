"""Bundles of streams of batches, for training and for evaluation, as Trax's older programs have."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trax_torch.data._pipeline.batching import batch, bucket_by_length
from trax_torch.data._pipeline.combining import Serial
from trax_torch.data._pipeline.examples import add_loss_weights
from trax_torch.data._pipeline.shuffling import shuffle

Streams = Callable[[int], Iterator[Any]]


class Inputs:
    """A bundle of streams of batches, for training and for evaluation.

    Args:
      train_stream: from a number of devices to an iterator of batches.
      eval_stream: likewise, of data that is not trained on; None for `train_stream`.
      train_eval_stream: likewise, of training data that is evaluated on; None for `train_stream`.

    Raises:
      ValueError: if `train_stream` is no function.

    Example:
      >>> import numpy as np
      >>> inputs = Inputs(lambda n_devices: iter([(np.zeros((2, 3)), np.zeros(2))]))
      >>> inputs.input_shape, next(inputs.eval_stream(1))[1].shape
      ((3,), (2,))

    Source: Trax `data/inputs.py::Inputs`, which draws a batch when it is made; here shapes and
      types do, when they are asked for.
    """

    def __init__(
        self,
        train_stream: Streams,
        eval_stream: Streams | None = None,
        train_eval_stream: Streams | None = None,
    ):
        if not callable(train_stream):
            raise ValueError(
                f"Inputs needs functions of a number of devices that return iterators of batches; "
                f"got {type(train_stream).__name__}. Write Inputs(lambda n_devices: batches)."
            )
        self._train_stream = train_stream
        self._eval_stream = eval_stream or train_stream
        self._train_eval_stream = train_eval_stream or train_stream

    def train_stream(self, n_devices: int) -> Iterator[Any]:
        """Returns batches to train on."""
        return self._train_stream(n_devices)

    def eval_stream(self, n_devices: int) -> Iterator[Any]:
        """Returns batches to evaluate on."""
        return self._eval_stream(n_devices)

    def train_eval_stream(self, n_devices: int) -> Iterator[Any]:
        """Returns batches of training data to evaluate on."""
        return self._train_eval_stream(n_devices)

    @functools.cached_property
    def _example(self) -> tuple[Any, ...]:
        batch: tuple[Any, ...] = next(self._train_stream(1))
        return batch

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of inputs, without the axis of a batch."""
        return tuple(self._example[0].shape)[1:]

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of a batch's last item, without the axis of a batch."""
        return tuple(self._example[-1].shape)[1:]

    @property
    def input_dtype(self) -> Any:
        """The type of inputs."""
        return self._example[0].dtype

    @property
    def target_dtype(self) -> Any:
        """The type of a batch's last item."""
        return self._example[-1].dtype

    @property
    def example_shape_dtype(self) -> tuple[list[tuple[int, ...]], list[Any]]:
        """The shapes, and the types, of all items of a batch."""
        return [tuple(x.shape) for x in self._example], [x.dtype for x in self._example]


def make_inputs(train_stream: Any, eval_stream: Any = None) -> Inputs:
    """Returns `Inputs` of iterators, or of lists of stages, which are put in series.

    Example:
      >>> next(make_inputs([[(1, 2), (3, 4)], lambda g: batch(g, 2)]).train_stream(1))
      (array([1, 3]), array([2, 4]))

    Source: Trax `data/inputs.py::make_inputs`.
    """

    def made(stream: Any) -> Streams:
        begun = Serial(*stream)() if isinstance(stream, (tuple, list)) else stream
        return lambda n_devices: begun

    return Inputs(made(train_stream), None if eval_stream is None else made(eval_stream))


def batcher(
    data_streams: Any,
    variable_shapes: bool = True,
    batch_size_per_device: int = 32,
    batch_size: int | None = None,
    eval_batch_size: int = 32,
    bucket_length: int = 32,
    buckets: tuple[Sequence[int], Sequence[int]] | None = None,
    buckets_include_inputs_in_length: bool = False,
    batch_shuffle_size: int | None = None,
    max_eval_length: int | None = None,
    id_to_mask: int | None = None,
    strict_pad_on_len: bool = False,
) -> Inputs:
    """Returns `Inputs` whose streams are batches of examples, with loss weights.

    Args:
      data_streams: functions `(train_stream, eval_stream)` that return examples, or a function
        that returns the two.
      variable_shapes: whether examples are put in buckets by the length of their targets; else in
        batches as they come.
      batch_size_per_device: of training, where `batch_size` is None.
      batch_size: of training, over all devices.
      eval_batch_size: of evaluation, over all devices.
      bucket_length: which targets come in batches of that size: those half as long come in batches
        twice as large, and so on.
      buckets: `(boundaries, batch_sizes)`, instead; see `BucketByLength`.
      buckets_include_inputs_in_length: whether the longer one of inputs and targets counts.
      batch_shuffle_size: through a buffer of how many batches training is shuffled; None for none.
      max_eval_length: the last boundary of evaluation; None for 32 times `bucket_length`.
      id_to_mask: see `add_loss_weights`.
      strict_pad_on_len: see `pad_to_max_dims`.

    Example:
      >>> import numpy as np
      >>> examples = lambda: ((np.ones(3), np.ones(n)) for n in (3, 4))
      >>> inputs = batcher((examples, examples), buckets=([4], [2, 1]))
      >>> [x.shape for x in next(inputs.train_stream(1))]
      [(2, 4), (2, 4), (2, 4)]

    Source: Trax `data/inputs.py::batcher`.
    """
    both: Any = data_streams() if callable(data_streams) else data_streams
    train, evaluate = both

    def length(example: Any) -> int:
        counted = example[:2] if buckets_include_inputs_in_length else example[1:2]
        return max(int(x.shape[0]) for x in counted)

    def batches(examples: Callable[[], Any], training: bool, n_devices: int) -> Iterator[Any]:
        size = (batch_size or batch_size_per_device * n_devices) if training else eval_batch_size
        size = _divisible(size, n_devices)
        chosen = buckets
        if chosen is None and variable_shapes:
            chosen = _buckets_about(bucket_length, size, n_devices, training, max_eval_length)
        if chosen:
            stream = bucket_by_length(examples(), length, *chosen, strict_pad_on_len)
        else:
            stream = batch(examples(), size)
        if training and batch_shuffle_size is not None:
            stream = shuffle(stream, batch_shuffle_size)
        return add_loss_weights(stream, id_to_mask)

    return Inputs(
        functools.partial(batches, train, True),
        functools.partial(batches, evaluate, False),
        functools.partial(batches, train, False),
    )


def _buckets_about(
    length: int, size: int, n_devices: int, training: bool, max_eval_length: int | None
) -> tuple[list[int], list[int]]:
    """Returns boundaries and batch sizes: twice as long, half as many."""
    boundaries = [length * 2**i // 4 for i in range(7)]
    sizes = [*(size * 4 // 2**i for i in range(7)), 1]
    if not training:
        last = max_eval_length or length * 32
        boundaries = [b for b in boundaries if b < last] + [last]
    sizes = [*sizes[: len(boundaries)], 1]
    return boundaries, [_divisible(n, n_devices) for n in sizes]


def _divisible(n: int, n_devices: int) -> int:
    return max(n // n_devices, 1) * n_devices
