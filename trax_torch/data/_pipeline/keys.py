"""Which items of an example a stage changes: all, or those at some keys."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Key = int | str


def as_keys(keys: Sequence[Key] | Key | None) -> tuple[Key, ...] | None:
    """Returns keys as a tuple, also where one stands alone; None for all."""
    if isinstance(keys, (int, str)):
        return (keys,)
    return None if keys is None else tuple(keys)


def with_items(
    stage: str, example: Any, fn: Callable[[Any], Any], keys: tuple[Key, ...] | None
) -> Any:
    """Returns an example with a function of some of its items, or of all, in their places.

    An example that is no tuple, list or dict is an item itself. A list becomes a tuple.

    Raises:
      ValueError: if it has nothing at a key.
    """
    if isinstance(example, Mapping):
        chosen = _chosen(stage, keys, example)
        return {k: fn(x) if k in chosen else x for k, x in example.items()}
    if isinstance(example, (tuple, list)):
        chosen = _chosen(stage, keys, range(len(example)))
        return tuple([fn(x) if i in chosen else x for i, x in enumerate(example)])
    return fn(example)


def _chosen(stage: str, keys: tuple[Key, ...] | None, there: Iterable[Any]) -> Iterable[Any]:
    if keys is None:
        return there
    for key in keys:
        if key not in there:
            raise ValueError(
                f"{stage} needs each of its keys in every example; the keys are {list(keys)}, and "
                f"an example has {list(there)}. Name those that it has."
            )
    return keys
