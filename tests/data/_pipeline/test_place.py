"""A pipeline that is cut anywhere goes on as the one that was not."""

import itertools
import logging

import numpy as np
import pipelines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import BATCHES, DATASET, SOURCES, STAGES, Counting, assert_same, build, example

from trax_torch import data


def drawn(pipeline, n=60):
    return list(itertools.islice(pipeline, n))


def assert_goes_on_at_every_cut(make, every=1, n=60):
    """What a new pipeline gives from each place on is what the first one gave."""
    np.random.seed(0)
    pipeline, states, given_ = make(), [], []
    for _ in range(n):
        states.append(pipeline.state_dict())
        try:
            given_.append(next(pipeline))
        except StopIteration:
            break
    assert given_
    for cut in range(0, len(states), every):
        again = make()
        again.load_state_dict(pipelines.through_a_file(states[cut]))

        assert_same(drawn(again, n - cut), given_[cut:])


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_goes_on(source):
    assert_goes_on_at_every_cut(lambda: build(source, []))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", ["shuffled, no seed", "generator"])
def test_each_stage_goes_on(source, stage):
    assert_goes_on_at_every_cut(lambda: build(source, [stage]))


@given(
    st.sampled_from(sorted(SOURCES)),
    st.lists(st.sampled_from(sorted(STAGES)), max_size=5),
    st.sampled_from(sorted(BATCHES)),
)
@settings(max_examples=40, deadline=None)
def test_any_stack_of_stages_goes_on(source, stages, batches):
    """In any order, from any source, in a new process by a file; ended or not."""
    np.random.seed(0)
    if drawn(build(source, stages, batches), 1):
        assert_goes_on_at_every_cut(lambda: build(source, stages, batches), every=7, n=30)


@given(st.lists(st.sampled_from(sorted(STAGES)), max_size=4), st.lists(st.integers(0, 9)))
@settings(max_examples=25, deadline=None)
def test_one_that_goes_on_can_be_cut_again(stages, cuts):
    """As often as one likes; the states of a resumed run are those of the run."""
    pipeline = build("shuffled", stages)
    resumed = build("shuffled", stages)
    resumed.load_state_dict(pipelines.through_a_file(pipeline.state_dict()))
    for cut in cuts:
        assert_same(drawn(resumed, cut), drawn(pipeline, cut))
        state = pipelines.through_a_file(resumed.state_dict())
        resumed = build("shuffled", stages)
        resumed.load_state_dict(state)


@pytest.mark.parametrize("stage", STAGES)
def test_a_pipeline_goes_back_in_its_own_process(stage):
    """As Loop.load_checkpoint asks for: the object stays, its place is an earlier one."""
    pipeline = build("generator", [stage])
    drawn(pipeline, 2)
    state = pipeline.state_dict()
    expected = drawn(pipeline)

    pipeline.load_state_dict(state)

    assert_same(drawn(pipeline), expected)


def test_a_state_is_not_changed_by_what_comes_after():
    pipeline = build("list", ["Shuffle, seed", "UnBatch"])
    drawn(pipeline, 5)
    state = pipeline.state_dict()
    before = repr(state)
    drawn(pipeline, 5)

    assert repr(state) == before


class Watched:
    """A dataset that counts which of its examples were asked for."""

    def __init__(self, n):
        self.n, self.asked = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked.append(i)
        return example(i % 100)


@pytest.mark.parametrize(
    "source", [lambda d: d, lambda d: lambda _: d, lambda d: data.Examples(d, shuffle=True, seed=1)]
)
def test_what_went_by_in_a_dataset_is_not_asked_for(source):
    """Nor by stages whose buffers the state holds, nor by map and filter."""

    def make(dataset):
        return data.Serial(
            source(dataset),
            lambda g: map(pipelines.longer, g),
            data.Shuffle(10, seed=0),
            data.BucketByLength([3], [4, 4], length_keys=[0]),
        )()

    pipeline = make(Watched(10**6))
    drawn(pipeline, 200)
    dataset = Watched(10**6)
    resumed = make(dataset)
    resumed.load_state_dict(pipeline.state_dict())
    assert dataset.asked == []

    assert_same(next(resumed), next(pipeline))
    assert len(dataset.asked) <= 8


def test_what_keeps_its_state_is_not_drawn_again():
    pipeline = data.Serial(lambda _: Counting(), data.Batch(2))()
    drawn(pipeline, 4)
    source = Counting()
    resumed = data.Serial(lambda _: source, data.Batch(2))()
    resumed.load_state_dict(pipeline.state_dict())

    assert_same(next(resumed), next(pipeline))
    assert source.n_made == 2


def test_what_is_drawn_again_is_said(caplog):
    """By the name of the function, and how many examples; once."""
    pipeline = build("list", ["generator", "Map"])
    drawn(pipeline, 6)
    resumed = build("list", ["generator", "Map"])
    with caplog.at_level(logging.INFO, logger="trax_torch"):
        resumed.load_state_dict(pipeline.state_dict())

    assert [r.getMessage() for r in caplog.records] == [
        "generator(of=swapped) keeps no state: drawing 6 examples again"
    ]


def test_an_iterator_that_has_gone_on_cannot_go_back():
    pipeline = data.Batch(2)(iter(DATASET))
    state = pipeline.state_dict()
    next(pipeline)

    with pytest.raises(ValueError, match="an iterator cannot go back. Give the pipeline"):
        pipeline.load_state_dict(state)


def test_a_place_is_one_of_the_same_stages():
    state = build("list", ["Shuffle", "Map"]).state_dict()

    with pytest.raises(ValueError, match="has 'Map.fn=longer.' where Shuffle.queue_size=4. is now"):
        build("list", ["Map", "Shuffle"]).load_state_dict(state)


def test_data_that_has_become_shorter_is_refused():
    """Drawn again it gives fewer than it gave; by index, it has another length."""
    for make in (lambda n: lambda _: iter(DATASET[:n]), lambda n: data.Examples(DATASET[:n])):
        pipeline = data.Serial(make(20))()
        drawn(pipeline, 15)
        with pytest.raises(ValueError, match="begin the data anew: Loop.resume_data='restart'."):
            data.Serial(make(10))().load_state_dict(pipeline.state_dict())


@pytest.mark.parametrize("n", [-1, 2**62, "3", None])
@pytest.mark.parametrize("source", ["list", "generator", "mixed"])
def test_a_place_that_no_run_comes_to_is_refused(source, n):
    """At once, where drawing as many examples would not end."""
    pipeline = build(source, [])
    next(pipeline)
    state = pipeline.state_dict() | {"n_drawn": n}

    with pytest.raises(ValueError, match="and a number from 0 to 2..40 was needed. Load another"):
        build(source, []).load_state_dict(state)


def test_another_order_of_a_dataset_is_refused():
    pipeline = data.Examples(DATASET, shuffle=True)()
    next(pipeline)

    with pytest.raises(ValueError, match="one in another order: the run had shuffle=True. Shuffle"):
        data.Examples(DATASET)().load_state_dict(pipeline.state_dict())


def test_data_may_grow_behind_its_place():
    """A dataset that is gone through once, in order, goes on where it was."""
    pipeline = data.Serial(DATASET[:10])()
    drawn(pipeline, 5)
    longer = data.Serial(DATASET)()
    longer.load_state_dict(pipeline.state_dict())

    assert_same(drawn(longer), DATASET[5:])


def test_other_settings_hold_from_the_place_on(caplog):
    """Another batch size goes on with the next example, and is told; so do other buckets."""
    pipeline = data.Serial(DATASET, data.Batch(3))()
    drawn(pipeline, 2)
    other = data.Serial(DATASET, data.Batch(2))()
    with caplog.at_level(logging.INFO, logger="trax_torch"):
        other.load_state_dict(pipeline.state_dict())

    assert next(other)[1].tolist() == [6, 7]
    assert "goes on with Batch(batch_size=2); the checkpoint's run had Batch(batch_size=3)" in (
        caplog.text
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_no_example_is_lost_or_doubled_by_other_sizes_of_buffers(one, other, cut):
    pipeline = data.Serial(range(40), data.Shuffle(one, seed=0))()
    before = drawn(pipeline, cut)
    resumed = data.Serial(range(40), data.Shuffle(other, seed=0))()
    resumed.load_state_dict(pipeline.state_dict())

    assert sorted(before + list(resumed)) == list(range(40))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_no_example_is_lost_or_doubled_by_other_buckets(one, other, cut):
    def make(size):
        return data.Serial(
            range(1, 61),
            lambda g: map(lambda i: (np.full(i % 7 + 1, i),), g),
            data.BucketByLength([size + 1], [size, 1], length_keys=[0]),
        )()

    pipeline = make(one)
    batches = drawn(pipeline, cut)
    resumed = make(other)
    resumed.load_state_dict(pipeline.state_dict())
    batches += list(resumed)
    left = resumed.state_dict()["waiting"]["n"]
    numbers = sorted(int(row.max()) for (batch,) in batches for row in batch)

    assert len(set(numbers)) == len(numbers)
    assert len(numbers) + left == 60


class Picture:
    """What a checkpoint cannot hold."""

    def __init__(self, i):
        self.i = i

    def __array__(self, dtype=None, copy=None):
        return np.array([self.i], dtype)


@pytest.mark.parametrize("stage", [data.Shuffle(4, seed=2), data.Prefetch(3)])
def test_examples_that_cannot_be_saved_are_drawn_again(stage, caplog):
    """What waits is no plain data: the stage goes back to its start, with a word."""

    def make():
        return data.Serial(
            range(30), data.Map(Picture), stage, data.Map(np.asarray), data.Shuffle(3, seed=1)
        )()

    pipeline = make()
    drawn(pipeline, 9)
    state = pipelines.through_a_file(pipeline.state_dict())
    resumed = make()
    resumed.load_state_dict(state)

    assert_same(drawn(resumed), drawn(pipeline))
    if "Shuffle" in repr(stage):  # in the other one nothing may wait just then
        assert "is drawn again when the run is resumed" in caplog.text
        assert "one holds a Picture. Make it an array before" in caplog.text
