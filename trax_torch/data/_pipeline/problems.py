"""Batches made of random numbers, to try models out: copies, sums and sines."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trax_torch import _seeds
from trax_torch.data._pipeline.batching import pad_to_max_dims
from trax_torch.data._pipeline.bundles import Inputs
from trax_torch.data._pipeline.sources import AtRandom


def random_inputs(
    input_shape: Sequence[int],
    input_dtype: Any = np.int32,
    input_range: tuple[float, float] = (0, 255),
    output_shape: Sequence[int] = (),
    output_dtype: Any = np.int32,
    output_range: tuple[float, float] = (0, 9),
    seed: int | None = None,
) -> Inputs:
    """Returns `Inputs` of random numbers, to try a model out.

    Args:
      input_shape: with the axis of a batch.
      input_dtype: numpy's.
      input_range: the least and the greatest number; the latter is not reached by floats.
      output_shape: with the axis of a batch.
      output_dtype: numpy's.
      output_range: as `input_range`.
      seed: see `shuffle`.

    Example:
      >>> x, y = next(random_inputs((4, 8), output_shape=(4,)).train_stream(1))
      >>> x.shape, y.dtype
      ((4, 8), dtype('int32'))

    Source: Trax `data/inputs.py::random_inputs`.
    """

    def drawn(random: np.random.RandomState, shape: Any, dtype: Any, span: Any) -> Any:
        if np.dtype(dtype).kind == "f":
            return random.uniform(span[0], span[1], shape).astype(dtype)
        return random.randint(span[0], span[1] + 1, shape).astype(dtype)

    def make(random: np.random.RandomState) -> tuple[Any, ...]:
        inputs = drawn(random, input_shape, input_dtype, input_range)
        return inputs, drawn(random, output_shape, output_dtype, output_range)

    return Inputs(lambda n_devices: AtRandom("random_inputs()", make, seed))


def sequence_copy_inputs(
    vocab_size: int,
    batch_size: int,
    train_length: int,
    eval_min_length: int,
    eval_max_length: int,
    reverse: bool = False,
    pad_to_multiple: int = 32,
    seed: int | None = None,
) -> Inputs:
    """Returns `Inputs` of sequences to copy: 0 w 0 w, with w of random numbers from 1 on.

    A batch is (x, x, weights), of shape (batch_size, length); weights are 1 on the second w alone.

    Args:
      vocab_size: numbers are less than it minus 1.
      batch_size: how many sequences.
      train_length: the most that w is long in training.
      eval_min_length: the least that it is long in evaluation.
      eval_max_length: and the most; this length itself is not reached.
      reverse: whether the second w is the first one backwards.
      pad_to_multiple: of which length is made a multiple, by zeros.
      seed: see `shuffle`.

    Example:
      >>> x, _, weights = next(sequence_copy_inputs(10, 1, 3, 2, 4, pad_to_multiple=1,
      ...     seed=2).eval_stream(1))
      >>> x.tolist(), weights.tolist()
      ([[0, 3, 5, 6, 0, 3, 5, 6]], [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])

    Source: Trax `data/inputs.py::sequence_copy_inputs`.
    """

    def make(lengths: range, random: np.random.RandomState) -> tuple[Any, ...]:
        n = int(random.choice(lengths))
        w = random.randint(1, vocab_size - 1, (batch_size, n))
        zero = np.zeros((batch_size, 1), w.dtype)
        x = np.concatenate([zero, w, zero, w[:, ::-1] if reverse else w], axis=1)
        weights = np.concatenate([np.zeros((batch_size, n + 2)), np.ones((batch_size, n))], axis=1)
        return _copies(x, weights, pad_to_multiple)

    return _of_lengths(
        "sequence_copy_inputs()",
        make,
        range(1, train_length),
        range(eval_min_length, eval_max_length),
        seed,
    )


def simple_sequence_copy_inputs(
    vocab_size: int,
    batch_size: int,
    train_length: int,
    eval_min_length: int,
    eval_max_length: int,
    pad_to_multiple: int = 32,
    seed: int | None = None,
) -> Inputs:
    """Returns `Inputs` of sequences w of random numbers from 1 on, as inputs and as targets.

    A batch is (w, w, weights), of shape (batch_size, length); weights are 1 on w, 0 where padded.

    Args:
      vocab_size: numbers are less than it minus 1.
      batch_size: how many sequences.
      train_length: the most that w is long in training; the least is 1.
      eval_min_length: the least that it is long in evaluation.
      eval_max_length: and the most.
      pad_to_multiple: of which length is made a multiple, by zeros.
      seed: see `shuffle`.

    Example:
      >>> x, _, weights = next(simple_sequence_copy_inputs(10, 2, 3, 5, 5).eval_stream(1))
      >>> x.shape, float(weights.sum())
      ((2, 32), 10.0)

    Source: Trax `data/inputs.py::simple_sequence_copy_inputs`.
    """

    def make(lengths: range, random: np.random.RandomState) -> tuple[Any, ...]:
        w = random.randint(1, vocab_size - 1, (batch_size, int(random.choice(lengths))))
        return _copies(w, np.ones(w.shape), pad_to_multiple)

    return _of_lengths(
        "simple_sequence_copy_inputs()",
        make,
        range(1, train_length + 1),
        range(eval_min_length, eval_max_length + 1),
        seed,
    )


def addition_inputs(
    vocab_size: int,
    batch_size: int,
    train_length: int,
    eval_min_length: int,
    eval_max_length: int,
    pad_to_multiple: int = 32,
    encdec: bool = False,
    seed: int | None = None,
) -> Inputs:
    """Returns `Inputs` of sums to learn: x + y, and what it comes to, digit by digit.

    Numbers have base `vocab_size` - 3, and their last digit first; a digit d is the symbol d + 1,
    the plus sign is base + 1, the sign before each half is base + 2, and 0 pads.

    Args:
      vocab_size: how many symbols there are.
      batch_size: how many sums.
      train_length: the most that x + y is long in training, in symbols; the least is 3.
      eval_min_length: the least that it is long in evaluation.
      eval_max_length: and the most.
      pad_to_multiple: of which lengths are made multiples, by zeros.
      encdec: whether a batch is (x + y, sum, weights); else it is (both, both, weights), the
        weights 1 on the sum alone.
      seed: see `shuffle`.

    Raises:
      ValueError: if a length is less than 3.

    Example:
      >>> x, y, weights = next(addition_inputs(13, 1, 3, 3, 3, pad_to_multiple=1, encdec=True,
      ...     seed=4).train_stream(1))
      >>> x.tolist(), y.tolist()
      ([[8, 11, 6]], [[3, 2]])

    Source: Trax `data/inputs.py::addition_inputs`.
    """
    if min(train_length, eval_min_length, eval_max_length) < 3:
        raise ValueError(
            f"addition_inputs needs lengths of at least 3 symbols, as 1+1 has; got train_length "
            f"{train_length}, eval_min_length {eval_min_length} and eval_max_length "
            f"{eval_max_length}."
        )

    def make(least: int, most: int, random: np.random.RandomState) -> tuple[Any, ...]:
        sums = [_sum(random, vocab_size - 3, least, most, encdec) for _ in range(batch_size)]
        return tuple(
            pad_to_max_dims(items, pad_to_multiple, strict_pad_on_len=True)
            for items in zip(*sums, strict=True)
        )

    return _two_kinds(
        "addition_inputs()",
        functools.partial(make, 3, train_length),
        functools.partial(make, eval_min_length, eval_max_length),
        seed,
    )


def sine_inputs(
    batch_size: int,
    length: int,
    max_phase: float = 2 * math.pi,
    min_period: float = 0.1,
    max_period: float = 10.0,
    seed: int | None = None,
) -> Inputs:
    """Returns `Inputs` of sines with random phases and periods.

    A batch is (sines, zeros, sines, ones), each of shape (batch_size, length): observations,
    actions, observations and a mask.

    Args:
      batch_size: how many sines.
      length: how many steps of time.
      max_phase: phases are uniform from 0 to it.
      min_period: the logarithms of periods, divided by 2 pi, are uniform from that of it
      max_period: to that of this.
      seed: see `shuffle`.

    Example:
      >>> x, actions, _, mask = next(sine_inputs(3, 5).train_stream(1))
      >>> x.shape, actions.dtype, float(mask.min())
      ((3, 5), dtype('int32'), 1.0)

    Source: Trax `data/inputs.py::sine_inputs`.
    """

    def make(random: np.random.RandomState) -> tuple[Any, ...]:
        phases = random.uniform(0, max_phase, (batch_size, 1))
        periods = np.exp(random.uniform(np.log(min_period), np.log(max_period), (batch_size, 1)))
        sines = np.sin((np.arange(length) - phases) / periods)
        return sines, np.zeros(sines.shape, np.int32), sines, np.ones(sines.shape)

    return _two_kinds("sine_inputs()", make, make, seed)


Make = Callable[[np.random.RandomState], tuple[Any, ...]]


def _two_kinds(name: str, train: Make, evaluate: Make, seed: int | None) -> Inputs:
    """Returns `Inputs` of batches made of random numbers; those of evaluation are others."""
    eval_seed = None if seed is None else _seeds.derive(seed, "eval")
    return Inputs(
        lambda n_devices: AtRandom(name, train, seed),
        lambda n_devices: AtRandom(name, evaluate, eval_seed),
    )


def _of_lengths(
    name: str,
    make: Callable[[range, np.random.RandomState], tuple[Any, ...]],
    train: range,
    evaluate: range,
    seed: int | None,
) -> Inputs:
    if not train or not evaluate:
        raise ValueError(
            f"{name} needs lengths to choose from; train_length leaves {train} and the lengths of "
            f"evaluation leave {evaluate}. Make train_length larger, or eval_max_length."
        )
    return _two_kinds(name, functools.partial(make, train), functools.partial(make, evaluate), seed)


def _copies(x: Any, weights: Any, multiple: int) -> tuple[Any, ...]:
    pads = ((0, 0), (0, -x.shape[1] % multiple))
    padded = np.pad(x, pads)
    return padded, padded, np.pad(weights, pads)


def _sum(
    random: np.random.RandomState, base: int, least: int, most: int, encdec: bool
) -> tuple[Any, ...]:
    """Returns one sum, as `addition_inputs` describes it, in up to `most` symbols a half."""
    short = (least - 1) // 2
    while True:
        n = random.randint((most - short + 1) // 2) + short
        x, y = (_number(random, n, base), _number(random, random.randint(most - n - 1) + 1, base))
        both = [*x, base, *y]
        total = _digits(sum(d * base**i for number in (x, y) for i, d in enumerate(number)), base)
        if not encdec:
            symbols = np.array([base + 1, *both, base + 1, *total]) + 1
            weights = np.array([0] * (len(both) + 2) + [1] * len(total))
            return symbols, symbols, weights
        if max(len(both), len(total)) <= most:
            return np.array(both) + 1, np.array(total) + 1, np.ones(len(total), np.int64)


def _number(random: np.random.RandomState, n_digits: int, base: int) -> list[int]:
    """Returns random digits, the last of which is 0 for the number 0 alone."""
    least = 0 if n_digits == 1 else 1
    return [*random.randint(0, base, n_digits - 1).tolist(), random.randint(least, base)]


def _digits(number: int, base: int) -> list[int]:
    digits = [number % base]
    while number := number // base:
        digits.append(number % base)
    return digits
