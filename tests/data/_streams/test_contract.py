"""Each kind of data runs each law: a stream that is resumed is the one that was not stopped.

A new kind adds a row to `KINDS`; the laws are in `tests/support/streams.py`. Kinds of other
packages are in `test_contract_foreign.py`.
"""

import logging
import random

import numpy as np
import pytest
import streams
import torch
from streams import Epochs, Rows, Stateful, Unordered, seeded
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
)

from trax_torch.data import share_of

ROWS = torch.arange(12.0)[:, None]
BATCHES = [(ROWS[i : i + 3], ROWS[i : i + 3]) for i in (0, 3, 6, 9)]


class Shuffled:
    """An iterable that shuffles by Python's generator."""

    def __iter__(self):
        return iter(random.sample(BATCHES, 4))


class Seldom(Rows):
    """Draws a random number for its last row alone, by whichever generator."""

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.tensor([float(self.draw()) if i == 11 else 0.0])


class OfItsOwn(Sampler):
    """A sampler with a generator under a name of its own."""

    def __init__(self):
        self.numbers = seeded()

    def __len__(self):
        return 12

    def __iter__(self):
        return iter(torch.randperm(12, generator=self.numbers).tolist())


class StaysThere(Stateful):
    """A state that was loaded stays, so that all passes begin there."""

    start = 0

    def __iter__(self):
        for i in range(self.start, 4):
            self.n = i + 1
            yield torch.full((1, 1), 1.0 * i), torch.zeros(1, 1)

    def load_state_dict(self, state):
        self.start = state["n"] % 4


class Forgets(Stateful):
    """A state that does not bring back the next batch."""

    def load_state_dict(self, state):
        self.n = max(0, state["n"] - 1)


def numbers(draw):
    while True:
        yield torch.as_tensor([[float(draw())]]), torch.zeros(1, 1)


def distributed(dataset=None):
    return DistributedSampler(dataset or Rows(), num_replicas=1, rank=0, shuffle=True, seed=3)


def sampled(sampler, dataset=None):
    return DataLoader(dataset or Rows(), 3, sampler=sampler)


IN_ORDER = {
    "list": lambda: list(BATCHES),
    "loader": lambda: DataLoader(Rows(), 3),
    "uneven": lambda: DataLoader(Rows(), 5),
    "nested": lambda: DataLoader(ConcatDataset([Subset(Rows(), range(6)), Rows()]), 5),
    "stays there": StaysThere,
    "random seldom": lambda: DataLoader(Seldom(lambda: torch.rand(())), 3),
    "random seldom, by numpy": lambda: DataLoader(Seldom(np.random.rand), 3),
    "random seldom, by Python": lambda: DataLoader(Seldom(random.random), 3),
}
SHUFFLED = {
    "iterable": Shuffled,
    "shuffled": lambda: DataLoader(Rows(), 3, shuffle=True, generator=seeded()),
    "by torch's generator": lambda: DataLoader(Rows(), 3, shuffle=True),
    "rows drawn twice": lambda: sampled(WeightedRandomSampler([1.0] * 12, 12, generator=seeded())),
    "by torch's, with replacement": lambda: sampled(RandomSampler(Rows(), True, num_samples=12)),
    "batch sampler": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(RandomSampler(Rows(), generator=seeded()), 3, False)
    ),
    "a generator of its own": lambda: sampled(OfItsOwn()),
    "distributed": lambda: sampled(distributed()),
    "distributed batches": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(distributed(), 3, drop_last=False)
    ),
    "set_epoch": lambda: DataLoader(Epochs(), 3),
    "set_epoch, nested": lambda: DataLoader(Subset(Epochs(), range(12)), 3),
    "iterable dataset": lambda: DataLoader(Unordered(), 3),
    "torch's in items": lambda: DataLoader(Rows(lambda: torch.rand(())), 3),
    "numpy's in items": lambda: DataLoader(Rows(np.random.rand), 3),
    "Python's in items": lambda: DataLoader(Rows(random.random), 3),
    "all at once": lambda: DataLoader(
        Rows(lambda: torch.rand(()) + np.random.rand() + random.random()), 3, shuffle=True
    ),
    "state": Stateful,
    "forgets": Forgets,
}
# An iterator does not begin anew: what it drew before the run goes by who built it, seeded alike.
ITERATORS = {
    "iterator": lambda: iter(BATCHES * 4),
    "generator": lambda: numbers(lambda: 1.0),
    "torch's": lambda: numbers(lambda: torch.rand(())),
    "numpy's": lambda: numbers(np.random.rand),
    "Python's": lambda: numbers(random.random),
    "share": lambda: share_of(DataLoader(Rows(), 3, shuffle=True, generator=seeded()), 0, 2),
    "share by torch's": lambda: share_of(DataLoader(Rows(), 3, shuffle=True), 1, 2),
    "share of a state": lambda: share_of(Stateful(), 0, 1),
}
WORKERS = {
    "workers": lambda: DataLoader(Rows(random.random), 3, num_workers=2, generator=seeded()),
    "by torch's": lambda: DataLoader(Rows(lambda: torch.rand(())), 3, shuffle=True, num_workers=1),
    "persistent": lambda: DataLoader(
        Epochs(), 3, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "iterable": lambda: DataLoader(Unordered(), 3, num_workers=1),
}
AGAIN = IN_ORDER | SHUFFLED
KINDS = AGAIN | ITERATORS


def of(kinds):
    return pytest.mark.parametrize("make", kinds.values(), ids=kinds)


@of(AGAIN)
def test_resumed_at_each_cut_it_is_the_stream_that_was_not_stopped(make):
    """Twice in a row, whatever is in the new process's own generators."""
    streams.check_each_cut(make)


@of(ITERATORS)
def test_an_iterator_that_is_built_alike_is_resumed_at_each_cut(make):
    streams.check_each_cut(make, seeds=lambda i: 1)


def with_a_generator():
    """Rows, each with a number from a generator of the dataset's own."""
    return Rows(np.random.default_rng(3).random)


def with_a_function():
    own = random.Random(3)
    return Rows(lambda: own.random())


@of(
    {
        "in order": lambda: DataLoader(with_a_generator(), 3),
        "of a function": lambda: DataLoader(with_a_function(), 3),
        "shuffled": lambda: DataLoader(with_a_generator(), 3, shuffle=True),
        "by a generator": lambda: DataLoader(
            with_a_generator(), 3, shuffle=True, generator=seeded()
        ),
    }
)
def test_a_dataset_that_keeps_a_generator_is_resumed_where_it_is_built_alike(make):
    """It is drawn again, each row once; in another process, too, if its sample is the same."""
    streams.check_each_cut(make, seeds=lambda i: 1)
    if make().generator is not None or "Sequential" in type(make().sampler).__name__:
        streams.check_each_cut(make, cuts=range(1, streams.N_BATCHES))


@of(KINDS)
def test_what_others_draw_in_between_changes_nothing(make):
    streams.check_others_between(make)


@of({name: make for name, make in AGAIN.items() if not hasattr(make(), "state_dict")})
def test_two_tasks_on_one_object_have_each_what_it_would_have_alone(make):
    """Of an object with a place of its own, which has but one, nobody can say that."""
    streams.check_two_tasks(make)


@of(AGAIN)
def test_it_goes_back_in_one_process(make):
    streams.check_going_back(make)


def test_a_state_that_does_not_bring_back_the_next_batch_is_found_out(caplog):
    first = streams.begun(Forgets)
    want = streams.drawn(streams.begun(Forgets), 8)
    streams.drawn(first, 2)
    with caplog.at_level(logging.WARNING, "trax_torch"):
        second = streams.begun(Forgets)
        second.seek(streams.saved(first))

    assert "its own state_dict does not bring back the next batch" in caplog.text
    assert streams.drawn(second, 6) == want[2:]
    assert second.position()["way"].startswith("drawn again")
    assert first.position()["way"] == "by its own state_dict"


def test_what_another_process_would_draw_otherwise_is_told(caplog):
    """A word, where what is drawn again is not what was drawn."""
    batches = iter(range(100))

    def unseeded():
        while True:
            yield torch.full((1, 1), float(next(batches))), torch.zeros(1, 1)

    first, second = (streams.begun(unseeded) for _ in range(2))
    streams.drawn(first, 2)
    with caplog.at_level(logging.WARNING, "trax_torch"):
        second.seek(streams.saved(first))

    assert "the batches at the place of the save are others" in caplog.text
    assert "Seed what it draws from before the task is built" in caplog.text


@pytest.mark.parametrize(
    ("make", "kind"),
    [(with_a_generator, "numpy's Generator"), (with_a_function, "random's Random")],
    ids=["numpy", "python"],
)
def test_a_generator_of_the_datasets_own_that_has_gone_on_is_named(make, kind, caplog):
    """Where a run goes back in one process; with the way out, which is exact."""
    stream = streams.begun(lambda: DataLoader(make(), 3))
    streams.drawn(stream, 2)
    place = streams.saved(stream)
    streams.drawn(stream, 3)
    with caplog.at_level(logging.WARNING, "trax_torch"):
        stream.seek(place)

    assert f"Its dataset keeps a generator of its own, {kind}, which goes on" in caplog.text
    assert "or draw from torch, np.random or random" in caplog.text


class Once:
    """An iterable that can be gone through once, as a pipe can."""

    def __init__(self):
        self.batches = iter(BATCHES)

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize("make", [Once, lambda: iter(BATCHES)], ids=["iterable", "iterator"])
def test_what_ends_gives_each_batch_once_and_the_sample_last(make):
    stream = streams.begun(make)
    want = [[ROWS[i : i + 3].flatten().double().tolist()] * 2 for i in (3, 6, 9, 0)]

    assert streams.drawn(stream, 4) == want
    with pytest.raises(ValueError, match="ended after 4 batches"):
        stream.next()
    for cut in range(5):
        first, second = streams.begun(make), streams.begun(make)
        streams.drawn(first, cut)
        second.seek(streams.saved(first))
        assert streams.drawn(second, 4 - cut) == want[cut:]


def test_an_iterator_that_cannot_go_back_says_the_ways_on():
    stream = streams.begun(ITERATORS["iterator"])
    streams.drawn(stream, 2)
    place = streams.saved(stream)
    streams.drawn(stream, 1)

    match = "go on after batch 3, but 4 were drawn already, .* fresh data .*resume_data='restart'"
    with pytest.raises(ValueError, match=match):
        stream.seek(place)


def test_a_loader_that_an_earlier_run_has_used_is_as_new():
    """A cell that is run twice: the loader's generator is left where it was."""
    loader = DataLoader(Rows(), 3, shuffle=True, generator=seeded())
    one, other = (streams.drawn(streams.begun(lambda: loader), 10) for _ in range(2))

    assert one == other


@of(SHUFFLED)
def test_epochs_differ(make):
    streams.check_epochs_differ(make)


@of(IN_ORDER)
def test_epochs_are_alike_in_order(make):
    one, other = (streams.drawn(streams.begun(make, i), 10) for i in (1, 2))

    assert one == other


@pytest.mark.slow
@of(WORKERS)
def test_workers_change_nothing(make):
    """At some cuts alone, for the time that they take to start."""
    streams.check_each_cut(make, cuts=(2, 3, 6))
    streams.check_epochs_differ(make)
    streams.check_two_tasks(make)
