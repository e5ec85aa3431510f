"""Batches hold what came, in the order in which it came, padded and no more."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import assert_same

from trax_torch import data

LENGTHS = st.lists(st.integers(1, 30), max_size=60)


def examples_of(lengths):
    """Example i holds i as often as it is long; padding is 0."""
    return [(np.full(n, i), np.array(i)) for i, n in enumerate(lengths, start=1)]


def buckets_by_hand(lengths, boundaries, sizes):
    """Examples' numbers, batch by batch: go through all, and give a bucket when it is full."""
    waiting, batches = {}, []
    for i, n in enumerate(lengths, start=1):
        (bucket, *_) = [b for b, most in enumerate([*boundaries, math.inf]) if n <= most]
        waiting.setdefault(bucket, []).append(i)
        if len(waiting[bucket]) == sizes[bucket]:
            batches.append((bucket, waiting.pop(bucket)))
    return batches


@given(LENGTHS, st.lists(st.integers(1, 25), max_size=4, unique=True).map(sorted), st.data())
@settings(max_examples=150, deadline=None)
def test_buckets_are_those_of_brute_force(lengths, boundaries, draw):
    """Which examples, in which order, how long; and nothing but zeros besides."""
    n = len(boundaries) + 1
    sizes = draw.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    strict = draw.draw(st.booleans())
    stage = data.BucketByLength(boundaries, sizes, [0], strict_pad_on_len=strict)

    given_ = list(stage(examples_of(lengths)))

    expected = buckets_by_hand(lengths, boundaries, sizes)
    assert [labels.tolist() for _, labels in given_] == [batch for _, batch in expected]
    for (rows, labels), (bucket, _) in zip(given_, expected, strict=True):
        longest = max(lengths[i - 1] for i in labels)
        boundary = boundaries[bucket] if bucket < len(boundaries) else longest
        assert longest <= rows.shape[1]
        if strict or 2 * longest >= boundary:
            assert rows.shape[1] == boundary
        else:
            assert rows.shape[1] == 2 ** math.ceil(math.log2(longest))
        for row, i in zip(rows, labels, strict=True):
            assert row.tolist() == [i] * lengths[i - 1] + [0] * (len(row) - lengths[i - 1])


@given(LENGTHS, st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_batches_are_those_of_brute_force(lengths, size):
    """In order, as long as the longest; the rest is left out."""
    given_ = list(data.batch(iter(examples_of(lengths)), size))

    assert len(given_) == len(lengths) // size
    for k, (rows, labels) in enumerate(given_):
        own = lengths[k * size : (k + 1) * size]
        assert labels.tolist() == list(range(k * size + 1, (k + 1) * size + 1))
        assert rows.shape == (size, max(own))
        assert [int((row == i).sum()) for row, i in zip(rows, labels, strict=True)] == own


@given(LENGTHS.filter(bool), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_what_is_put_together_comes_apart(lengths, size):
    """UnBatch is the other way of Batch, up to padding."""
    batches = data.Serial(examples_of(lengths), data.Batch(size), data.UnBatch())()

    assert [int(label) for _, label in batches] == list(range(1, len(lengths) // size * size + 1))


def test_a_batch_has_the_form_of_its_examples():
    """Tuples, lists, dicts, arrays and numbers."""
    rows = np.array([[1, 2], [3, 0]])
    for examples, expected in [
        ([([1, 2], 5), ([3], 6)], (rows, np.array([5, 6]))),
        ([[[1, 2]], [[3]]], (rows,)),
        ([{"x": [1, 2], "y": 5}, {"y": 6, "x": [3]}], {"x": rows, "y": np.array([5, 6])}),
        ([np.array([1, 2]), np.array([3])], rows),
        ([5, 6], np.array([5, 6])),
    ]:
        assert_same(next(data.batch(iter(examples), 2)), expected)


def test_types_that_differ_become_one_that_holds_both():
    batch = next(data.batch([(np.ones(2, np.float32),), (np.ones(3, np.int64),)], 2))

    assert batch[0].dtype == np.float64


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ([(np.ones(2),), (np.ones((2, 2)),)], "equally many axes; got the shapes"),
        ([(1, 2), (1,)], "hold equally many items; got .1, 2.. Map them"),
        ([{"x": 1}, {"y": 1}], "have equal keys; the first has .'x'.,"),
    ],
)
def test_examples_that_make_no_batch_are_refused(examples, text):
    with pytest.raises(ValueError, match=text):
        next(data.batch(examples, 2))


def test_settings_that_make_no_batches_are_refused():
    for make, text in [
        (lambda: data.Batch(0), "Batch needs a batch_size of at least 1 example; got 0"),
        (lambda: data.BucketByLength([4, 2], [1, 1, 1]), "boundaries that ascend; got .4, 2."),
        (lambda: data.BucketByLength([4], [1, 1, 1]), "for each of 1 boundaries, and one more"),
        (lambda: data.BucketByLength([4], [1, 0]), "a batch size of at least 1 for each of 1"),
        (lambda: data.inputs.pad_to_max_dims([np.ones(3)], (1, 2)), "for each of 1 axes"),
        (lambda: next(data.UnBatch()([(np.ones(2), np.ones(3))])), "equally many rows; got tuple"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()


def test_an_example_that_fits_no_bucket_is_told_of():
    """With its length, and what to do."""
    stage = data.BucketByLength([4], [2], [0])

    with pytest.raises(ValueError, match="length 5 came, and the boundaries .4. have no bucket"):
        next(stage(examples_of([2, 5])))


def test_examples_without_the_length_that_is_asked_for_are_told_of():
    """As where the label is a number, and length_keys were left out."""
    for stage in (data.BucketByLength([4], [2, 1]), data.FilterByLength(4)):
        with pytest.raises(ValueError, match="measures the items .0, 1. of an example"):
            next(stage(examples_of([2, 2])))
