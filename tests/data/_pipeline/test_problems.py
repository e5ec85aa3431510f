"""Batches made of random numbers pose the problems that they are named for."""

import itertools

import numpy as np
import pytest
from pipelines import assert_same, through_a_file

from trax_torch.data import inputs

BUNDLES = {
    "sequence_copy": lambda **kw: inputs.sequence_copy_inputs(9, 3, 5, 2, 6, **kw),
    "simple_sequence_copy": lambda **kw: inputs.simple_sequence_copy_inputs(9, 3, 5, 2, 6, **kw),
    "addition": lambda **kw: inputs.addition_inputs(13, 3, 9, 3, 12, **kw),
    "sine": lambda **kw: inputs.sine_inputs(3, 5, **kw),
    "random": lambda **kw: inputs.random_inputs((4, 2), np.float32, output_shape=(4,), **kw),
}


def drawn(stream, n):
    return list(itertools.islice(stream, n))


@pytest.mark.parametrize("make", BUNDLES.values(), ids=BUNDLES)
def test_each_keeps_its_place(make):
    """Of training and of evaluation; a seed tells all, and the two are not the same."""
    for which in ("train_stream", "eval_stream"):
        stream = getattr(make(seed=4), which)(1)
        drawn(stream, 3)
        again = getattr(make(), which)(1)
        again.load_state_dict(through_a_file(stream.state_dict()))

        assert_same(drawn(again, 3), drawn(stream, 3))
    assert_same(drawn(make(seed=5).train_stream(1), 2), drawn(make(seed=5).train_stream(1), 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_are_copied(reverse):
    """0 w 0 w, padded; weights are on the second w, and lengths within what was asked for."""
    bundle = inputs.sequence_copy_inputs(9, 4, 5, 2, 6, reverse, pad_to_multiple=8, seed=0)
    for stream, lengths in [
        (bundle.train_stream(1), range(1, 5)),
        (bundle.eval_stream(1), range(2, 6)),
    ]:
        seen = set()
        for x, y, weights in drawn(stream, 60):
            assert x is y
            for row, weight in zip(x, weights, strict=True):
                n = int(weight.sum())
                w = row[1 : n + 1]
                copy = w[::-1] if reverse else w
                assert row.tolist() == [0, *w, 0, *copy] + [0] * (len(row) - 2 * n - 2)
                assert weight.tolist() == [0] * (n + 2) + [1] * n + [0] * (len(row) - 2 * n - 2)
                assert 1 <= w.min() <= w.max() < 8
            assert len(row) == -(-(2 * n + 2) // 8) * 8
            seen.add(n)
        assert seen == set(lengths)


def value(digits, base=10):
    return sum((int(d) - 1) * base**i for i, d in enumerate(digits))


@pytest.mark.parametrize("encdec", [False, True])
def test_sums_are_right(encdec):
    """Digit by digit, the last one first."""
    bundle = inputs.addition_inputs(13, 4, 9, 5, 12, encdec=encdec, seed=0)
    for stream, most in [(bundle.train_stream(1), 9), (bundle.eval_stream(1), 12)]:
        for batch in drawn(stream, 40):
            for x, y, weights in zip(*batch, strict=True):
                x, y = x[x > 0], y[y > 0]
                n = int(weights.sum())
                if not encdec:
                    assert (x == y).all()
                    assert [i for i, d in enumerate(x) if d == 12] == [0, len(x) - n - 1]
                    x, y = x[1 : -n - 1], x[-n:]
                (plus,) = np.flatnonzero(x == 11)
                assert value(x[:plus]) + value(x[plus + 1 :]) == value(y)
                assert len(x) <= most
                assert len(y) == n


def test_sines_have_the_periods_that_were_asked_for():
    x, actions, again, mask = next(
        inputs.sine_inputs(50, 2000, 0, 3.0, 3.0, seed=0).train_stream(1)
    )
    np.testing.assert_allclose(x, np.sin(np.arange(2000) / 3.0)[None].repeat(50, 0), atol=1e-9)

    assert x is again
    assert (actions.any(), mask.all()) == (False, True)


def test_random_numbers_are_within_their_ranges():
    bundle = inputs.random_inputs((500, 2), input_range=(3, 5), output_shape=(500,), seed=0)
    x, y = next(bundle.train_stream(1))

    assert set(x.reshape(-1)) == {3, 4, 5}
    assert set(y) == set(range(10))


def test_a_bundle_draws_nothing_before_it_is_asked():
    """Its shapes are those of a first batch, without the axis of batches."""
    n_drawn = 0

    def stream(n_devices):
        nonlocal n_drawn
        n_drawn += 1
        yield np.zeros((4, 3), np.float32), np.zeros((4,), np.int32)

    bundle = inputs.Inputs(stream)
    assert n_drawn == 0
    assert (bundle.input_shape, bundle.target_shape) == ((3,), ())
    assert (bundle.input_dtype, bundle.target_dtype) == (np.float32, np.int32)
    assert bundle.example_shape_dtype == ([(4, 3), (4,)], [np.float32, np.int32])
    assert n_drawn == 1


def test_each_stream_of_a_bundle_is_its_own():
    """What is not given is that of training."""
    streams = [lambda n, i=i: iter([i * n]) for i in range(3)]
    bundle = inputs.Inputs(streams[0], streams[1], streams[2])
    alone = inputs.Inputs(streams[1])

    assert [next(s(5)) for s in (bundle.train_stream, bundle.eval_stream)] == [0, 5]
    assert next(bundle.train_eval_stream(5)) == 10
    assert [next(s(5)) for s in (alone.eval_stream, alone.train_eval_stream)] == [5, 5]


def test_buckets_are_chosen_by_length():
    """Targets half as long come in batches twice as large; each has one shape for its bucket."""

    def examples():
        return ((np.ones(3), np.ones(n)) for n in itertools.cycle(range(1, 40)))

    bundle = inputs.batcher((examples, examples), batch_size=8, bucket_length=8, id_to_mask=0)
    shapes = {batch[1].shape for batch in drawn(bundle.train_stream(1), 300)}

    assert shapes == {(32, 2), (16, 4), (8, 8), (4, 16), (2, 32), (1, 64)}
    alike = inputs.batcher((examples, examples), variable_shapes=False, batch_size_per_device=5)
    assert next(alike.train_stream(2))[1].shape == (10, 10)
    assert next(alike.eval_stream(2))[1].shape == (32, 32)


def test_what_is_no_problem_is_refused():
    for make, text in [
        (lambda: inputs.Inputs(iter([])), "functions of a number of devices that return iterators"),
        (lambda: inputs.addition_inputs(13, 1, 2, 3, 3), "lengths of at least 3 symbols, as 1.1"),
        (
            lambda: inputs.sequence_copy_inputs(9, 1, 1, 2, 3),
            "needs lengths to choose from; train_",
        ),
    ]:
        with pytest.raises(ValueError, match=text):
            make()
