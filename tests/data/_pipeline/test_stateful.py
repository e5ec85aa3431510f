"""Sources with a state of their own are believed as far as it brings back what comes next."""

import itertools
import logging

import pytest
from pipelines import assert_same, through_a_file

from trax_torch import data


class Numbers:
    """0 to 9, by a state that is right."""

    def __init__(self):
        self.n = self.n_made = 0

    def __iter__(self):
        while self.n < 10:
            self.n, self.n_made = self.n + 1, self.n_made + 1
            yield self.n - 1
        self.n = 0  # as loaders do, which begin anew after the end

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


class Forgetful(Numbers):
    """Has a buffer that its state does not hold."""

    def __iter__(self):
        for n in super().__iter__():
            held, self.held = getattr(self, "held", None), n
            if held is not None:
                yield held

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.held = None


def states_and_examples(pipeline):
    states, examples = [], []
    while True:
        states.append(through_a_file(pipeline.state_dict()))
        example = next(pipeline, None)
        if example is None:
            return states, examples
        examples.append(example)


@pytest.mark.parametrize("kind", [Numbers, Forgetful])
@pytest.mark.parametrize(
    "source", [lambda kind: kind(), lambda kind: kind], ids=["object", "function"]
)
def test_a_source_goes_on_at_every_cut(kind, source):
    """Before its first example, and behind its last; with a state that is looked at each time."""

    def make():
        return data.Serial(source(kind), data.Shuffle(3, seed=0))()

    states, examples = states_and_examples(make())

    assert len(examples) == (10 if kind is Numbers else 9)
    for cut, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(state)
        assert_same(list(resumed), examples[cut:])


def test_a_state_that_is_right_is_gone_to_without_drawing():
    """But for the example that tells."""
    pipeline = data.Serial(Numbers())()
    list(itertools.islice(pipeline, 6))
    source = Numbers()
    data.Serial(source)().load_state_dict(pipeline.state_dict())

    assert source.n_made == 1


def test_a_state_that_forgets_is_told_of(caplog):
    pipeline = data.Serial(Forgetful())()
    list(itertools.islice(pipeline, 6))
    with caplog.at_level(logging.WARNING, logger="trax_torch"):
        data.Serial(Forgetful())().load_state_dict(pipeline.state_dict())

    assert [r.getMessage() for r in caplog.records] == [
        "Stateful(of=Forgetful): its state does not bring back the next example: drawing 6 "
        "examples again"
    ]


def test_telling_the_place_changes_nothing():
    """However often; the example that was looked at is the next one."""
    pipeline = data.Serial(Numbers())()
    given = []
    for _ in range(10):
        assert pipeline.state_dict() == pipeline.state_dict()
        given.append(next(pipeline))

    assert given == list(range(10))


def test_examples_that_are_others_when_they_are_drawn_again_are_refused():
    """As of a generator that nobody seeded; a Loop draws them with the numbers that they had."""
    counter = itertools.count()

    def others(_=None):
        yield from ((next(counter),) for _ in range(5))

    class Unseeded(Forgetful):
        def __iter__(self):
            return (n + next(counter) for n in super().__iter__())

    for source in (others, Unseeded):
        pipeline = data.Serial(source)()
        list(itertools.islice(pipeline, 3))
        with pytest.raises(ValueError, match="drawn .*others than .*Seed what it draws from"):
            data.Serial(source)().load_state_dict(pipeline.state_dict())
