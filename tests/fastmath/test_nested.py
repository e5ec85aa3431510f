"""Trax's words for nests."""

import collections

import numpy as np
import pytest
import torch

from trax_torch import fastmath
from trax_torch.fastmath import numpy as jnp

Pair = collections.namedtuple("Pair", "a b")


def test_a_map_keeps_the_form_and_leaves_none_alone():
    nest = {"a": (1, [2, None]), "b": (), "c": Pair(3, [4])}

    mapped = fastmath.nested_map(lambda x: 10 * x, nest)

    assert mapped == {"a": (10, [20, None]), "b": (), "c": Pair(30, [40])}
    assert type(mapped["c"]) is Pair
    assert fastmath.nested_map(str, (1, None), ignore_nones=False) == ("1", "None")


def test_a_map_may_stop_above_the_leaves():
    assert fastmath.nested_map(sum, ((1, 2), (3, 4)), level=1) == (3, 7)
    assert fastmath.nested_map(len, ([1], [2, 3]), level=1) == (1, 2)


def test_a_map_takes_several_nests():
    assert fastmath.nested_map_multiarg(max, (1, {"a": 5}), (2, {"a": 4})) == (2, {"a": 5})
    assert fastmath.nested_map_multiarg(max, (1, None), (2, None)) == (2, None)


@pytest.mark.parametrize("of", [np.array, torch.tensor])
def test_nests_are_zipped_and_stacked(of):
    nests = [(of([1, 2]), {"a": of(3)}), (of([4, 5]), {"a": of(6)})]

    stacked = fastmath.nested_stack(nests, np_module=jnp)

    assert stacked[0].tolist() == [[1, 2], [4, 5]]
    assert stacked[1]["a"].tolist() == [3, 6]
    assert fastmath.nested_zip([(1, [2]), (3, [4])]) == ((1, 3), [(2, 4)])


def test_a_flat_tree_is_put_together_again():
    tree = (1, [None, {"a": 2}], (), Pair(3, 4))

    flat = fastmath.tree_flatten(tree)

    assert flat == [1, None, 2, 3, 4]
    assert fastmath.tree_leaves(tree) == [1, 2, 3, 4]
    assert fastmath.tree_unflatten(flat, tree) == (tree, [])
    assert fastmath.tree_unflatten([5, 6, 7], (0, (), [0]), copy_from_tree=[()]) == (
        (5, (), [6]),
        [7],
    )
    with pytest.raises(ValueError, match="an item for each of its 3 leaves; only 1 came"):
        fastmath.tree_unflatten([1], (0, 0, 0))
