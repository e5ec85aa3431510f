"""Examples as Trax gives them: numpy, with texts as bytes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Examples = Any  # with __len__ and __getitem__: a Dataset of Hugging Face, a source of tfds


class Rows(Sequence[Any]):
    """Some examples of many, in their order.

    Args:
      examples: a sequence.
      start, stop: which.
      change: what is made of each; None for itself.
    """

    def __init__(
        self, examples: Examples, start: int, stop: int, change: Callable[[Any], Any] | None = None
    ):
        self._examples, self._range, self._change = examples, range(start, stop), change

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> Any:
        example = self._examples[self._range[index]]
        return example if self._change is None else self._change(example)


def part(examples: Examples, start: int, stop: int) -> Examples:
    """Returns the examples from `start` to `stop`, as Hugging Face's own kind where they are."""
    if hasattr(examples, "select"):
        return examples.select(range(start, stop))
    return Rows(examples, start, stop)


def fields(example: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    """Returns what an example has at some keys, also within a feature that is a dict.

    Raises:
      ValueError: if it has nothing there.
    """
    return tuple(as_numpy(_field(example, key)) for key in keys)


def as_numpy(x: Any) -> Any:
    """Returns texts as bytes, numbers, lists and images as numpy, images with an axis of colors."""
    if isinstance(x, str):
        return x.encode("utf-8")
    if isinstance(x, (bool, int, float)):
        return np.asarray(x)[()]
    if isinstance(x, Mapping):
        return {key: as_numpy(value) for key, value in x.items()}
    if isinstance(x, list):
        return _array([as_numpy(item) for item in x])
    if hasattr(x, "__array_interface__") and hasattr(x, "getbands"):  # Pillow's images
        return np.atleast_3d(np.asarray(x))
    return x


def _array(items: list[Any]) -> np.ndarray[Any, Any]:
    is_regular = len({np.shape(item) for item in items}) <= 1
    if is_regular and not any(isinstance(item, (bytes, Mapping)) for item in items):
        return np.array(items)
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _field(example: Mapping[str, Any], key: str) -> Any:
    if key in example:
        return example[key]
    for value in example.values():
        if isinstance(value, Mapping) and key in value:
            return value[key]
    raise ValueError(
        f"The keys need to be features of the data set; got {key!r}, and it has {list(example)}. "
        f"Name those that you want, in their order: keys=({', '.join(map(repr, example))})."
    )
