"""Examples that wait come back from a checkpoint as they were, and take no more than themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pipelines import assert_same, through_a_file

from trax_torch.data._pipeline.items import pack_items, unpack_items

DTYPES = st.one_of(
    arrays.scalar_dtypes(),
    arrays.unicode_string_dtypes(max_len=4),
    arrays.byte_string_dtypes(max_len=4),
)
NATIVE = DTYPES.map(lambda dtype: dtype.newbyteorder("=")).filter(
    lambda dtype: dtype != np.longdouble and dtype != np.clongdouble
)
ARRAYS = NATIVE.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
)
TENSORS = st.lists(st.floats(width=32)).map(torch.tensor)
LEAVES = st.one_of(
    ARRAYS,
    TENSORS,
    st.integers(),
    st.booleans(),
    st.floats(),
    st.none(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.lists(st.text(), min_size=4),
)
ITEMS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.lists(inner, max_size=5),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)


@given(st.lists(ITEMS, max_size=8))
@settings(max_examples=150, deadline=None)
def test_examples_come_back_as_they_were(items):
    """Of all kinds and forms, mixed; through a checkpoint's file."""
    assert_same(unpack_items(through_a_file(pack_items(items))), items)


def test_what_numpy_alone_has_comes_back():
    objects = np.array([None, 1, "a", [1, 2], np.arange(2)], object)
    times = np.array(["2026-01-02", "NaT"], "M8[D]")
    empty = np.zeros((0, 3), np.float32)
    items = [
        (objects, times, empty, np.bytes_(b"ab"), np.str_("é"), np.float16(1.5), np.bool_(True))
    ]

    assert_same(unpack_items(through_a_file(pack_items(items))), items)


def test_examples_that_come_back_are_their_own():
    """Each can be written to, and holds no other's memory."""
    first, second = unpack_items(pack_items([np.arange(3), np.arange(3)]))
    first[:] = 7

    assert second.tolist() == [0, 1, 2]
    assert first.base is None or first.base.size == 3


def test_what_waits_does_not_change_with_what_was_packed():
    item = np.arange(3)
    packed = pack_items([item])
    item[:] = 7

    assert unpack_items(packed)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [10, 10_000])
def test_thousands_of_examples_are_a_few_arrays(n):
    """As many entries as ten have, and a few bytes an example besides their own."""
    items = [(np.arange(i % 50), f"row {i}", i) for i in range(n)]
    packed = pack_items(items)
    held = [x for column in packed["columns"] for x in column.values() if hasattr(x, "nbytes")]

    assert len(packed["columns"]) == 3
    own = sum(a.nbytes + len(b) + 8 for a, b, _ in items)
    assert sum(x.nbytes for x in held) <= own + 2 * n


@pytest.mark.parametrize("held", [object(), {1, 2}, np.zeros(2, [("a", "i4")])])
def test_what_is_no_plain_data_is_refused(held):
    with pytest.raises(TypeError, match="which must be made of arrays, tensors, numbers, strings"):
        pack_items([(np.zeros(2), held)])
