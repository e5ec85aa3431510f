"""What stages do to examples, what begins a pipeline, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from pipelines import assert_same

from trax_torch import data


def test_whatever_can_be_gone_through_begins_a_pipeline():
    """A dataset, an iterable, an iterator, a function with or without an argument, a pipeline."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return [5, 6, 7][i]

    class Going(torch.utils.data.IterableDataset):
        def __len__(self):
            return 3

        def __iter__(self):
            return rows()

    def rows():
        yield from (5, 6, 7)

    for source in [
        Going(),
        torch.utils.data.DataLoader(Rows(), batch_size=None),
        [5, 6, 7],
        (5, 6, 7),
        Rows(),
        range(5, 8),
        np.array([5, 6, 7]),
        {5: 0, 6: 0, 7: 0}.keys(),
        rows,
        lambda _: rows(),
        lambda _=None: [5, 6, 7],
        rows(),
        data.Serial(rows),
        data.Serial([5, 6, 7])(),
        data.Examples([5, 6, 7], n_epochs=1),
        [lambda _: rows(), [lambda g: map(int, g)]],
    ]:
        assert list(data.Serial(source, lambda g: map(lambda x: x + 1, g))()) == [6, 7, 8]


def test_stages_work_on_iterators_by_themselves():
    """As in Trax, where they are functions of generators."""
    assert list(data.Shuffle(1)(iter([1, 2]))) == [1, 2]
    assert list(data.Serial(data.Batch(2), data.UnBatch())(iter([(1,), (2,)]))) == [(1,), (2,)]


def test_a_pipeline_that_is_not_called_can_be_gone_through_again():
    """Each pass is a call; what is called is one pass."""
    pipeline = data.Serial([1, 2, 3], data.Map(lambda x: -x))
    called = pipeline()

    assert list(pipeline) == list(pipeline) == list(called) == [-1, -2, -3]
    assert list(called) == []


def test_what_begins_no_pipeline_is_refused():
    for make, kind, text in [
        (lambda: data.Batch(2)(), ValueError, "Batch.batch_size=2. needs examples to work on"),
        (lambda: data.Serial(data.Batch(2))(), ValueError, "Serial.dataset, Batch"),
        (lambda: data.Serial(3)(), TypeError, "begins with a dataset, an iterable, or a function"),
        (lambda: data.Serial([1], 3)(), TypeError, "from a generator of examples to another; got"),
        (lambda: data.Serial(lambda: 3)(), TypeError, "or a function that returns one; got int"),
        (
            lambda: data.Examples(iter([1])),
            TypeError,
            "a dataset with __len__ and __getitem__",
        ),
    ]:
        with pytest.raises(kind, match=text):
            make()


def test_settings_that_mean_nothing_are_refused():
    for make, text in [
        (lambda: data.Shuffle(0), "a queue_size of at least 1 example; got 0"),
        (lambda: data.shuffle([], -5), "a queue_size of at least 1 example; got -5"),
        (lambda: data.Prefetch(0), "an n_prefetch of at least 1 example; got 0"),
        (lambda: data.Log(0), "an n_steps_per_example of at least 1; got 0"),
        (lambda: data.FilterByLength(None, None), "a max_length or a min_length; got None for"),
        (lambda: data.PadToLength(), "needs a len_map, from an item's number to its length; got"),
        (lambda: data.Parallel([]), "a counter from 0 on for each of its sources, not all 0"),
        (lambda: data.Parallel([[1]], [1, 2]), "got 1 sources and counters .1, 2."),
        (lambda: data.Parallel([[1]], [0]), "got 1 sources and counters .0."),
        (lambda: data.UniformlySeek("x", 2, 2), "a host_id from 0 to n_hosts - 1; got 2 of 2"),
        (lambda: data.PrefixLM(0), "PrefixLM needs a input_length of at least 1; got 0"),
        (lambda: data.generate_sequential_chunks(), "needs a max_length of at least 1; got None"),
        (lambda: data.MLM(max_length=3), "consume_noise_mask needs a vocab_size of at least 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()


def test_examples_that_a_stage_cannot_take_are_refused():
    for stage, example, text in [
        (data.TruncateToLength({0: 1}), "abc", "TruncateToLength takes examples that are tuples"),
        (data.PadToLength({0: 1}), {"x": 1}, "PadToLength takes examples that are tuples or arr"),
        (data.CastTo(), 3, "CastTo takes examples that are tuples or arrays; got int"),
        (data.AddLossWeights(0), (1, 2, 3, 4), "or .inputs, targets, weights.; got 4 items"),
        (data.ConcatenateToLMInput(), (1, 2, 3), "takes .inputs, targets.; got 3 items"),
        (
            data.ConcatenateToLMInput(3),
            (np.ones(2), np.ones(2)),
            "pads to 3 tokens; an example has 2 and 2. Filter by length",
        ),
    ]:
        with pytest.raises(ValueError, match=text):
            next(stage([example]))


def test_weights_that_were_given_are_not_changed_in_place():
    weights = np.ones(2, np.float32)
    (_, _, masked), *_ = data.add_loss_weights([(np.ones(2), np.array([0, 1]), weights)], 0)

    assert masked.tolist() == [0, 1]
    assert weights.tolist() == [1, 1]


def test_items_are_padded_to_multiples():
    """To the next one, which Trax documents; 0 more where it is one already."""
    for n, padded in [(0, 0), (1, 4), (4, 4), (5, 8), (11, 12)]:
        (x,) = next(data.PadToLength({0: 4}, multiple=True)([(np.ones(n),)]))
        assert (len(x), x.sum()) == (padded, n)


def test_dicts_are_examples_too():
    """Where keys are named; bytes become text in them."""
    example = {"text": b"ab\xff", "n": np.arange(3)}
    stages = data.Serial(
        [example],
        data.ConvertToUnicode(keys=["text"]),
        data.Map(len, keys=["n"]),
        data.FilterByLength(2, length_keys=["text"]),
    )

    assert list(stages()) == [{"text": "ab", "n": 3}]


def test_values_are_appended_by_either_name():
    """And a place is told alike."""
    long, short = (
        stage({0: [8, 9]})([(np.array([7]), 1)]) for stage in (data.AppendValue, data.Append)
    )

    assert next(short)[0].tolist() == next(long)[0].tolist() == [7, 8, 9]
    long.load_state_dict(short.state_dict())


def test_logging_prints_every_nth_example(capsys):
    list(data.Log(2, only_shapes=False)([1, 2, 3, 4, 5]))

    assert capsys.readouterr().out == "1\n3\n5\n"


def test_what_is_left_out_or_cast_is_printed_when_asked(capsys):
    list(data.FilterEmptyExamples(debug=True)([(np.ones(0),)]))
    list(data.CastTo(np.int32, [0, 1], debug=True)([(np.ones(1), np.ones(1, np.int64))]))

    assert capsys.readouterr().out == (
        "Left out, since it is empty: (array([], dtype=float64),)\n"
        "CastTo: item 0 was float64 and is cast to int32\n"
    )


@pytest.mark.parametrize("queue_size", [1, 2, 20, 200])
def test_shuffling_gives_each_example_once_and_none_too_early(queue_size):
    given = list(data.Shuffle(queue_size, seed=0)(range(100)))

    assert sorted(given) == list(range(100))
    assert all(x < i + queue_size for i, x in enumerate(given))
    assert (given == list(range(100))) == (queue_size == 1)


def test_each_pass_over_examples_is_shuffled_anew_and_whole():
    """And with the same seed in the same way."""

    def make():
        return data.Examples(range(20), shuffle=True, seed=3)()

    passes = [list(itertools.islice(stream, 20)) for stream in [make()] for _ in range(3)]

    assert all(sorted(given) == list(range(20)) for given in passes)
    assert len({tuple(given) for given in passes}) == 3
    assert list(itertools.islice(make(), 60)) == list(itertools.chain(*passes))


def test_numpys_seed_rules_what_has_none_of_its_own():
    """As in Trax's programs; another one gives another order."""

    def given(seed):
        np.random.seed(seed)
        return list(data.Serial(data.Examples(range(20), 2, shuffle=True), data.Shuffle(5))())

    assert given(1) == given(1) != given(2)


def test_streams_that_end_end_the_mix():
    """At the turn of the one that has ended, without an error."""
    assert list(data.Parallel([[1, 2, 3], [10]])()) == [1, 10, 2]


def test_branches_of_a_parallel_share_what_comes_before():
    """In turns: each takes what the others have not."""
    parallel = data.Parallel([data.Map(lambda x: x), data.Map(lambda x: -x)])

    assert list(data.Serial(range(6), parallel)()) == [0, -1, 2, -3, 4, -5]


def test_counting_passes_over_what_was_given():
    stage = data.CountAndSkip("digits")
    first = list(itertools.islice(stage(iter(range(10))), 3))

    assert first + list(stage(iter(range(10)))) == list(range(10))


def test_what_is_drawn_ahead_comes_in_order_and_errors_where_they_are():
    def failing():
        yield from (1, 2)
        raise RuntimeError("no more of this")

    ahead = data.Prefetch(4)(failing())

    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(RuntimeError, match="no more of this"):
        next(ahead)


@pytest.mark.parametrize("length", [1, 2, 7, 100, 512])
def test_a_share_of_tokens_is_noise(length):
    """Inputs and targets together hold each token once, and a sentinel for each span."""
    tokens = np.arange(length)
    example = next(data.generate_random_noise_mask(0.15, 3.0, seed=0)([tokens]))
    mask = example[1]
    inputs, targets = next(data.consume_noise_mask(1000)([example]))

    assert mask.sum() == (max(1, round(length * 0.15)) if length > 1 else 0)
    kept = np.concatenate([inputs[inputs < 900], targets[targets < 900]])
    assert sorted(kept) == tokens.tolist()
    assert_same(inputs[inputs < 900], tokens[~mask])


def test_spans_of_noise_are_drawn_anew_for_each_example():
    masks = data.generate_random_noise_mask(seed=1)([np.arange(50)] * 20)

    assert len({tuple(mask) for _, mask in masks}) > 10
