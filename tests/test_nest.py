"""Nests of tensors."""

import collections
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trax_torch import _nest, shapes

NESTS = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTS)
def test_rebuilding_from_the_leaves_gives_the_nest_back(nest):
    """rebuild(nest, leaves(nest)) == nest, for any nest."""
    assert _nest.rebuild(nest, list(_nest.leaves(nest))) == nest
    assert _nest.map_leaves(lambda x: x, nest) == nest


def test_rebuilding_from_too_few_leaves_is_refused():
    with pytest.raises(ValueError, match="has 2 leaves, but 1 items"):
        _nest.rebuild((1, 2), [1])


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(2), torch.float32),
        (np.zeros(2, np.float16), torch.float16),
        (np.zeros(2, np.int32), torch.int32),
        (np.zeros(2, np.uint16), torch.int64),
        (np.float64(1.5), torch.float32),
        (np.int64(3), torch.int64),
        (2, torch.int64),
        (2.5, torch.float32),
        (np.zeros((2, 3)).T, torch.float32),
    ],
)
def test_arrays_and_numbers_become_tensors(array, dtype):
    """float64 becomes the default float type; other types stay."""
    tensor = _nest.to_tensor(array)

    assert tensor.dtype == dtype
    assert tensor.shape == np.shape(array)


def test_a_read_only_array_is_copied():
    array = np.arange(3)
    array.setflags(write=False)

    _nest.to_tensor(array)[0] = 9

    assert array[0] == 0


def test_bfloat16_reaches_numpy_as_float32():
    assert _nest.to_arrays(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: Any


class Kept(collections.UserDict):
    """A mapping that knows something besides."""

    def __init__(self, data, note=None):
        super().__init__(data)
        self.note = note


def test_mappings_and_dataclasses_are_nests_of_their_items():
    """They keep their kind, and what they know besides; the given one stays as it is."""
    nest = Kept({"a": 1, "b": Point(2, (3, 4))}, note="kept")

    doubled = _nest.map_leaves(lambda x: 2 * x, nest)

    assert list(_nest.leaves(nest)) == [1, 2, 3, 4]
    assert (type(doubled), doubled.note) == (Kept, "kept")
    assert dict(doubled) == {"a": 2, "b": Point(4, (6, 8))}
    assert dict(nest) == {"a": 1, "b": Point(2, (3, 4))}
    assert dict(_nest.rebuild(nest, [5, 6, 7, 8])) == {"a": 5, "b": Point(6, (7, 8))}


def test_a_mapping_that_cannot_be_written_to_becomes_a_dict():
    nest = types.MappingProxyType({"a": 1})

    assert _nest.map_leaves(lambda x: x + 1, nest) == {"a": 2}


def test_what_has_a_shape_is_a_leaf():
    """A signature is data about one tensor, though it is a dataclass."""
    signature = shapes.ShapeDtype((2, 3))

    assert list(_nest.leaves((signature,))) == [signature]
