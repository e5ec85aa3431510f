"""Trax's words for nests of tuples, lists and dicts: `nested_map` and its kin.

A leaf that is None stands for nothing, unless one asks for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_NESTS = (tuple, list, dict)


def nested_map(f: Callable[[Any], Any], obj: Any, level: int = 0, ignore_nones: bool = True) -> Any:
    """Returns a nest of the same form with `f` of each leaf in its place.

    Args:
      f: a function of one leaf.
      obj: the nest.
      level: how many levels of nest are left to `f`: at 1, it gets tuples (lists, dicts) of leaves.
      ignore_nones: whether None, and a nest of nothing but None, stay as they are.

    Example:
      >>> nested_map(lambda x: x + 1, ((1, 2), None, {'a': 3}))
      ((2, 3), None, {'a': 4})

    Source: Trax `fastmath/numpy.py::nested_map`.
    """
    if _depth(obj) <= level:
        leaves = tree_flatten(obj)
        nothing = ignore_nones and leaves and all(leaf is None for leaf in leaves)
        return None if nothing else f(obj)
    return _rebuilt(obj, [nested_map(f, item, level, ignore_nones) for item in _items(obj)])


def nested_map_multiarg(f: Callable[..., Any], *objs: Any, ignore_nones: bool = True) -> Any:
    """Returns a nest with `f` of the leaves that stand in one place of several nests.

    Example:
      >>> nested_map_multiarg(lambda a, b: a + b, (1, [2]), (10, [20]))
      (11, [22])

    Source: Trax `fastmath/numpy.py::nested_map_multiarg`.
    """
    first = objs[0]
    if not isinstance(first, _NESTS):
        return None if ignore_nones and all(o is None for o in objs) else f(*objs)
    keys = first.keys() if isinstance(first, dict) else range(len(first))
    columns = [[o[key] for o in objs] for key in keys]
    return _rebuilt(first, [nested_map_multiarg(f, *c, ignore_nones=ignore_nones) for c in columns])


def nested_zip(objs: Sequence[Any]) -> Any:
    """Returns a sequence of nests of one form as one nest of tuples.

    Example:
      >>> nested_zip([(1, 2), (3, 4)])
      ((1, 3), (2, 4))

    Source: Trax `fastmath/numpy.py::nested_zip`.
    """
    return nested_map_multiarg(lambda *leaves: leaves, *objs, ignore_nones=False)


def nested_stack(objs: Sequence[Any], axis: int = 0, np_module: Any = np) -> Any:
    """Returns a sequence of nests of arrays as one nest, with their arrays stacked.

    Args:
      objs: nests of one form.
      axis: where the new axis is put.
      np_module: whose `stack` is used, such as `fastmath.numpy`.

    Example:
      >>> nested_stack([(1, 2), (3, 4)])
      (array([1, 3]), array([2, 4]))

    Source: Trax `fastmath/numpy.py::nested_stack`.
    """
    return nested_map_multiarg(lambda *leaves: np_module.stack(leaves, axis), *objs)


def tree_leaves(tree: Any, ignore_nones: bool = True) -> list[Any]:
    """Returns the leaves of a nest, in order, without those that are None.

    Example:
      >>> tree_leaves((1, [None, {'a': 3}]))
      [1, 3]

    Source: Trax `fastmath/numpy.py::tree_leaves`.
    """
    return [leaf for leaf in tree_flatten(tree) if leaf is not None or not ignore_nones]


def tree_flatten(tree: Any) -> list[Any]:
    """Returns the leaves of a nest, in order, None among them.

    Source: Trax `fastmath/numpy.py::tree_flatten`.
    """
    if not isinstance(tree, _NESTS):
        return [tree]
    return [leaf for item in _items(tree) for leaf in tree_flatten(item)]


def tree_unflatten(flat: Sequence[Any], tree: Any, copy_from_tree: Any = None) -> tuple[Any, Any]:
    """Returns a nest of the form of `tree` filled from a list, and what is left of the list.

    Args:
      flat: what to fill it with.
      tree: gives the form.
      copy_from_tree: what is kept from `tree` where it stands there, and takes nothing from the
        list; `[()]` for the layers that have no weights, say.

    Raises:
      ValueError: if the list is too short.

    Example:
      >>> tree_unflatten([1, 2, 3], (0, (), [0]), copy_from_tree=[()])
      ((1, (), [2]), [3])

    Source: Trax `fastmath/numpy.py::tree_unflatten`.
    """
    rest = list(flat)

    def fill(part: Any) -> Any:
        if copy_from_tree is not None and any(part is c or part == c for c in copy_from_tree):
            return part
        if isinstance(part, _NESTS):
            return _rebuilt(part, [fill(item) for item in _items(part)])
        if not rest:
            raise ValueError(
                f"A tree wants an item for each of its {len(tree_flatten(tree))} leaves; only "
                f"{len(flat)} came. Flatten a tree of the same form."
            )
        return rest.pop(0)

    return fill(tree), rest


def _items(nest: Any) -> list[Any]:
    return list(nest.values() if isinstance(nest, dict) else nest)


def _rebuilt(nest: Any, items: list[Any]) -> Any:
    """Returns a nest like another whose own items are others."""
    if isinstance(nest, dict):
        return dict(zip(nest, items, strict=True))
    return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)


def _depth(obj: Any) -> int:
    """How many levels of nest stand over the leaves; the deepest counts."""
    if not isinstance(obj, _NESTS):
        return 0
    return 1 + max(map(_depth, _items(obj)), default=0)
