"""Stages that make a language model's examples of tokens: chunks, prefixes, masked spans."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from trax_torch import _seeds
from trax_torch.data._pipeline.combining import Serial
from trax_torch.data._pipeline.examples import items_of
from trax_torch.data._pipeline.stages import Stage, each, named, parts
from trax_torch.data._pipeline.stream import Each, State, Stream

Array = np.ndarray[Any, Any]


def generate_sequential_chunks(max_length: int | None = None) -> Stage:
    """Cuts each example into chunks of at most `max_length` tokens.

    Raises:
      ValueError: if `max_length` is less than 1.

    Example:
      >>> list(generate_sequential_chunks(2)([[1, 2, 3]]))
      [[1, 2], [3]]

    Source: Trax `data/inputs.py::generate_sequential_chunks`.
    """
    n = _checked("generate_sequential_chunks", max_length=max_length)
    name = named("generate_sequential_chunks", max_length=n)
    return parts(name, lambda x: [x[i : i + n] for i in range(0, max(len(x), 1), n)])


def PrefixLM(input_length: int = 128, output_length: int = 512) -> Stage:
    """Cuts each example into pairs of inputs and the targets that follow them.

    Args:
      input_length: of inputs, in tokens.
      output_length: the most that targets have. What fills no inputs, or leaves none for targets,
        is left out.

    Raises:
      ValueError: if a length is less than 1.

    Example:
      >>> list(PrefixLM(2, 3)([[1, 2, 3, 4, 5, 6, 7, 8]]))
      [([1, 2], [3, 4, 5]), ([6, 7], [8])]

    Source: Trax `data/inputs.py::PrefixLM`.
    """
    n = _checked("PrefixLM", input_length=input_length)
    m = _checked("PrefixLM", output_length=output_length)

    def pairs(x: Any) -> Iterator[Any]:
        for i in range(0, len(x) - n, n + m):
            yield x[i : i + n], x[i + n : i + n + m]

    return parts(named("PrefixLM", input_length=n, output_length=m), pairs)


def ConcatenateToLMInput(pad_to_length: int | None = None) -> Stage:
    """Makes (inputs, targets) a language model's example: both in one, which it is to predict.

    That is, (x, x, weights) with x the two end to end, and weights 1 on the targets, 0 on the
    inputs and what is padded. An array, or a tuple of one, x, becomes (x, x).

    Args:
      pad_to_length: how long x and weights are made, by zeros; None for no padding.

    Raises:
      ValueError: at an example that is longer than that, or has more than 2 items.

    Example:
      >>> x, _, weights = next(ConcatenateToLMInput(4)([(np.array([5, 6]), np.array([7]))]))
      >>> x, weights
      (array([5, 6, 7, 0]), array([0, 0, 1, 0]))

    Source: Trax `data/inputs.py::ConcatenateToLMInput`.
    """

    def concatenated(example: Any) -> tuple[Any, ...]:
        items = items_of("ConcatenateToLMInput", example)
        if len(items) == 1:
            return items[0], items[0]
        if len(items) != 2:
            raise ValueError(
                f"ConcatenateToLMInput takes (inputs, targets); got {len(items)} items. Map them "
                f"before."
            )
        x = np.concatenate(items, axis=-1)
        weights = np.concatenate([np.zeros_like(items[0]), np.ones_like(items[1])])
        if pad_to_length is not None:
            missing = pad_to_length - len(x)
            if missing < 0:
                raise ValueError(
                    f"ConcatenateToLMInput pads to {pad_to_length} tokens; an example has "
                    f"{len(items[0])} and {len(items[1])}. Filter by length before, or pad to more."
                )
            x, weights = np.pad(x, (0, missing)), np.pad(weights, (0, missing))
        return x, x, weights

    return each(named("ConcatenateToLMInput", pad_to_length=pad_to_length), concatenated)


def MLM(
    vocab_size: int | None = None,
    max_length: int | None = None,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    seed: int | None = None,
) -> Stage:
    """Makes tokens examples of span corruption: chunks, of which random spans are to be filled in.

    Args:
      vocab_size: see `consume_noise_mask`.
      max_length: see `generate_sequential_chunks`.
      noise_density: see `random_spans_noise_mask`, as mean_noise_span_length.
      seed: of the spans; see `shuffle`.

    Source: Trax `data/inputs.py::MLM`; Raffel et al. 2020, arXiv:1910.10683.
    """
    return Serial(
        generate_sequential_chunks(max_length),
        generate_random_noise_mask(noise_density, mean_noise_span_length, seed=seed),
        consume_noise_mask(vocab_size),
    )


def generate_random_noise_mask(
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    seed1: int | None = None,
    seed2: int | None = None,
    seed: int | None = None,
) -> Stage:
    """Makes each example (example, mask), the mask by `random_spans_noise_mask`.

    Args:
      noise_density: the share of tokens that are noise.
      mean_noise_span_length: in tokens.
      seed1: see `random_spans_noise_mask`; the same for each example.
      seed2: as `seed1`.
      seed: of all examples' masks; see `shuffle`.

    Example:
      >>> tokens, mask = next(generate_random_noise_mask(seed=0)([np.arange(20)]))
      >>> int(mask.sum())
      3

    Source: Trax `data/inputs.py::generate_random_noise_mask`.
    """

    def make(name: str, upstream: Stream) -> Stream:
        random = _seeds.random_state(seed)

        def masked(example: Any) -> Any:
            mask = _noise_mask(
                len(example), noise_density, mean_noise_span_length, seed1, seed2, random
            )
            return example, mask

        return _Masked(name, upstream, masked, random)

    name = named(
        "generate_random_noise_mask",
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
    )
    return Stage(name, make)


def consume_noise_mask(vocab_size: int | None = 32100) -> Stage:
    """Makes (tokens, mask) inputs and targets.

    In inputs, each span of noise is one sentinel; in targets, each span between. Sentinels count
    down from `vocab_size` - 1.

    Raises:
      ValueError: if `vocab_size` is None.

    Example:
      >>> mask = np.array([False, True, True, False])
      >>> next(consume_noise_mask(100)([(np.array([5, 6, 7, 8]), mask)]))
      (array([ 5, 99,  8]), array([99,  6,  7, 98]))

    Source: Trax `data/inputs.py::consume_noise_mask`.
    """
    n = _checked("consume_noise_mask", vocab_size=vocab_size)

    def consumed(example: Any) -> tuple[Array, Array]:
        tokens, mask = example
        return _with_sentinels(tokens, mask, n), _with_sentinels(tokens, ~mask, n)

    return each(named("consume_noise_mask", vocab_size=n), consumed)


def random_spans_noise_mask(
    length: int,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    seed1: int | None = None,
    seed2: int | None = None,
    example: Any = None,
) -> Array:
    """Returns a mask of `length` bools: True on random spans of noise, False between.

    It begins with False. The number of tokens of noise, and that of spans, are what density and
    mean length come to, rounded; at least 1.

    Args:
      length: in tokens.
      noise_density: the share of tokens that are noise.
      mean_noise_span_length: in tokens.
      seed1: of the lengths of the spans of noise; None draws from numpy's global generator.
      seed2: of the lengths of what is between.
      example: not looked at, as in Trax.

    Example:
      >>> int(random_spans_noise_mask(100, seed1=1, seed2=2).sum())
      15

    Source: Trax `data/inputs.py::random_spans_noise_mask`; Raffel et al. 2020, arXiv:1910.10683.
    """
    return _noise_mask(
        length, noise_density, mean_noise_span_length, seed1, seed2, _seeds.random_state(None)
    )


class _Masked(Each):
    """A function of each example that draws from a generator, which is the state."""

    def __init__(self, name: str, upstream: Stream, fn: Any, random: np.random.RandomState):
        self._random = random
        super().__init__(name, upstream, fn)

    def _own_state(self) -> State:
        return {"random": self._random.get_state(legacy=False)}

    def _go_to(self, state: State) -> None:
        self._random.set_state(state["random"])


def _noise_mask(
    length: int,
    density: float,
    mean_length: float,
    seed1: int | None,
    seed2: int | None,
    random: np.random.RandomState,
) -> Array:
    n = max(length, 2)
    n_noise = min(max(round(n * density), 1), n - 1)
    n_spans = max(round(n_noise / mean_length), 1)
    noise = _span_lengths(n_noise, n_spans, seed1, random)
    between = _span_lengths(n - n_noise, n_spans, seed2, random)
    n_each = min(len(noise), len(between))  # where there are fewer tokens than spans
    lengths = np.stack([between[:n_each], noise[:n_each]], axis=1).reshape(-1)
    lengths[-1] += n - lengths.sum()
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[:length]


def _span_lengths(
    n_tokens: int, n_spans: int, seed: int | None, random: np.random.RandomState
) -> Array:
    """Returns how long each of some spans is, that are at least 1 long and cut at random."""
    cuts = np.arange(n_tokens - 1) < n_spans - 1
    (random if seed is None else _seeds.random_state(seed)).shuffle(cuts)
    bounds = np.concatenate([[0], np.flatnonzero(cuts) + 1, [n_tokens]])
    return np.diff(bounds)


def _with_sentinels(tokens: Array, is_noise: Array, vocab_size: int) -> Array:
    """Returns tokens with each span of noise as one sentinel."""
    begins = is_noise & ~np.concatenate([[False], is_noise[:-1]])
    sentinels = vocab_size - np.cumsum(begins)
    kept: Array = np.where(begins, sentinels, tokens)[begins | ~is_noise]
    return kept


def _checked(stage: str, **setting: int | None) -> int:
    """Returns a setting that is a number from 1 on."""
    ((name, value),) = setting.items()
    if value is None or value < 1:
        raise ValueError(
            f"{stage} needs a {name} of at least 1; got {value}. Write {stage}({name}=512), say."
        )
    return value
