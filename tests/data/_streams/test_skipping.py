"""A run goes on in a DataLoader's pass where it was, bit for bit, and makes hardly a row again."""

import functools
import itertools
import logging
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
    get_worker_info,
)

from trax_torch._digest import digest
from trax_torch.data._streams import BatchStream
from trax_torch.supervised import EvalTask, Loop, TrainTask
from trax_torch.supervised.training import differences

N = 22
MADE = []  # the rows that were made in this process


class Rows(Dataset):
    """Rows (i, what some generator draws)."""

    def __init__(self, draw=lambda i: 0.0):
        self.draw = draw

    def __len__(self):
        return N

    def __getitem__(self, i):
        MADE.append(i)
        return torch.tensor([float(i), self.draw(i)])


class OwnGenerator(Rows):
    """Draws from a generator that nobody knows."""

    def __init__(self):
        self.rng = np.random.default_rng(3)
        super().__init__(lambda i: self.rng.random())


OF_THE_MODULE = np.random.default_rng(3)


class Elsewhere(Rows):
    """Draws from a generator that nobody sees."""

    def __init__(self):
        super().__init__(lambda i: OF_THE_MODULE.random())


class Moving(Rows):
    """Is told which pass begins."""

    epoch = 0

    def __init__(self):
        super().__init__(lambda i: float(self.epoch))

    def set_epoch(self, epoch):
        self.epoch = epoch


class Everything(Moving):
    """Draws from all of them, and knows its epoch and its worker's seed."""

    def __init__(self):
        super().__init__()
        self.draw = lambda i: (
            torch.rand(()).item() + np.random.randn() + random.gauss(self.epoch, 1) + worker_seed()
        )


class Counting(Sampler):
    """Shuffles by how often it was gone through."""

    n = 0

    def __iter__(self):
        self.n += 1
        return iter(torch.randperm(N, generator=seeded(self.n)).tolist())

    def __len__(self):
        return N


class ByPython(Sampler):
    """Batches of several sizes, shuffled by Python's generator."""

    def __iter__(self):
        rows = random.sample(range(N), N)
        return iter([rows[:3], rows[3:4], rows[4:11], rows[11:15], rows[15:]])

    def __len__(self):
        return 5


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def worker_seed():
    return float(getattr(get_worker_info(), "seed", 0) % 999)


DRAWS = {
    "nothing": Rows,
    "torch": lambda: Rows(lambda i: torch.rand(()).item()),
    "numpy": lambda: Rows(lambda i: np.random.randn()),
    "random": lambda: Rows(lambda i: random.gauss(0, 1)),
    "its epoch": Moving,
}
ORDERS = {
    "in order": lambda: dict(batch_size=4),
    "shuffled": lambda: dict(batch_size=4, shuffle=True, drop_last=True),
    "by a generator": lambda: dict(batch_size=3, shuffle=True, generator=seeded()),
    "weighted": lambda: dict(
        batch_size=4, sampler=WeightedRandomSampler(range(1, N + 1), 18, generator=seeded())
    ),
    "batches": lambda: dict(batch_sampler=BatchSampler(RandomSampler(range(N)), 5, False)),
    "batches of one's own": lambda: dict(batch_sampler=ByPython()),
    "a rank's": lambda: dict(batch_size=3, sampler=DistributedSampler(range(N), 2, 1)),
    "rows alone": lambda: dict(batch_size=None, sampler=RandomSampler(range(N), num_samples=7)),
}
WORKERS = {
    "one worker": dict(num_workers=1),
    "two, far ahead": dict(num_workers=2, prefetch_factor=4),
    "three that persist": dict(num_workers=3, persistent_workers=True),
}


def stream_of(make_dataset, order, is_keyed=True, **kwargs):
    """A stream as in a task of a Loop: the sample is drawn first; then there may be a seed."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    stream = BatchStream(DataLoader(make_dataset(), **order(), **kwargs), "data")
    stream.next()
    stream.key(7 if is_keyed else None, "data")
    return stream


def pieces(stream, cuts, n):
    """The digests of a stream's batches up to the n-th, and its positions at cuts."""
    found, positions = [], {}
    while stream.n_taken < n:
        if stream.n_taken in cuts:
            positions[stream.n_taken] = stream.position()
        found.append(digest(stream.next()))
    return found, positions


def assert_goes_on(make, cuts, n, made_at_most=None):
    """Asserts that a stream at a position of another goes on as that one did, twice in a row."""
    stream = make()
    before = ["the sample"] * stream.n_taken
    whole, positions = pieces(stream, cuts, n)
    whole = before + whole
    for cut in cuts:
        first, second = make(), make()
        MADE.clear()
        first.seek(positions[cut])
        assert made_at_most is None or len(MADE) <= made_at_most
        assert digest(first.next()) == whole[cut]
        second.seek(first.position())
        for resumed in (first, second):
            rest, _ = pieces(resumed, (), n)
            assert rest == whole[cut + 1 :]


def is_drawn_again(caplog):
    return "going forward" in caplog.text


@pytest.fixture(autouse=True)
def what_is_said(caplog):
    caplog.set_level(logging.INFO, "trax_torch")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("is_keyed", [True, False])
def test_a_resumed_run_sees_what_one_that_was_not_stopped_saw(draws, order, is_keyed, caplog):
    """At every cut of two and a half passes; no more than the last batch is made again."""
    n_batches = len(DataLoader(Rows(), **order()))
    n = n_batches * 5 // 2
    make = functools.partial(stream_of, draws, order, is_keyed)

    assert_goes_on(make, range(1, n - 1), n, made_at_most=7)
    assert not is_drawn_again(caplog)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize("order", ["shuffled", "by a generator", "batches of one's own"])
def test_workers_go_on_as_they_would_have(order, workers, caplog):
    """Each makes the batches that it would have made, and draws what it would have drawn."""
    n = len(DataLoader(Rows(), **ORDERS[order]()))
    make = functools.partial(stream_of, Everything, ORDERS[order], **workers)

    assert_goes_on(make, (2, n, 2 * n + 3), 3 * n)
    assert not is_drawn_again(caplog)


@pytest.mark.slow
def test_persisting_workers_keep_the_seeds_of_the_pass_they_began_in(caplog):
    """And draw on from pass to pass."""
    make = functools.partial(
        stream_of,
        lambda: Rows(lambda i: (torch.rand(()).item() if i % 7 == 0 else 0.0) + worker_seed()),
        ORDERS["shuffled"],
        num_workers=2,
        persistent_workers=True,
    )

    assert_goes_on(make, (5, 7, 13), 18)
    assert not is_drawn_again(caplog)


@pytest.mark.slow
def test_another_number_of_workers_goes_on_where_items_draw_nothing(caplog):
    order = ORDERS["by a generator"]
    one = stream_of(Rows, order, num_workers=2)
    want, positions = pieces(one, (5,), 9)
    for n_workers in (0, 1):
        resumed = stream_of(Rows, order, num_workers=n_workers)
        resumed.seek(positions[5])
        assert pieces(resumed, (), 9)[0] == want[4:]

    assert not is_drawn_again(caplog)


FALL_BACK = {
    "a generator of the dataset's": (OwnGenerator, ORDERS["shuffled"]),
    "a sampler that counts": (Rows, lambda: dict(batch_size=4, sampler=Counting())),
}


@pytest.mark.parametrize(("make_dataset", "order"), FALL_BACK.values(), ids=FALL_BACK)
def test_what_remembers_by_itself_is_drawn_again(make_dataset, order, caplog):
    """It is seen before anything is drawn, so that this is exact, too."""
    make = functools.partial(stream_of, make_dataset, order)

    assert_goes_on(make, range(2, 11), 13)
    assert is_drawn_again(caplog)


def test_rows_that_are_others_than_they_were_are_found_out(caplog):
    """By the last batch; then all are drawn again, and it is said that they are others."""
    make = functools.partial(stream_of, Elsewhere, ORDERS["shuffled"])
    _, positions = pieces(make(), (4,), 6)
    resumed = make()
    resumed.seek(positions[4])

    assert is_drawn_again(caplog)
    assert "drawn again, the batches at the place of the save are others" in caplog.text


class Endless(IterableDataset):
    def __iter__(self):
        return (torch.tensor([float(i)]) for i in itertools.count())


class OfItsOwn(DataLoader):
    """Goes through its batches in a way of its own."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Endless(), 2),
        lambda: OfItsOwn(Rows(), 3),
        lambda: list(DataLoader(Rows(), 3)),
    ],
    ids=["an iterable dataset", "a loader of its own", "a list"],
)
def test_what_cannot_begin_at_a_later_batch_is_drawn_again(loader, caplog):
    def make():
        return BatchStream(loader(), "data")

    assert_goes_on(make, range(2, 9), 12)
    assert is_drawn_again(caplog)
    assert "pass" not in make().position()


def test_a_place_of_an_earlier_version_is_drawn_to(caplog):
    make = functools.partial(stream_of, Rows, ORDERS["by a generator"])
    want, _ = pieces(make(), (), 9)
    resumed = make()
    resumed.seek({"n_taken": 6})

    assert pieces(resumed, (), 9)[0] == want[5:]
    assert is_drawn_again(caplog)


@pytest.mark.parametrize("n", [2**40, -1, 0])
def test_a_place_in_a_pass_that_cannot_be_is_not_gone_to(n, caplog):
    make = functools.partial(stream_of, Rows, ORDERS["by a generator"])
    want, positions = pieces(make(), (6,), 9)
    resumed = make()
    resumed.seek(positions[6] | {"n_in_pass": n})

    assert pieces(resumed, (), 9)[0] == want[5:]
    assert is_drawn_again(caplog)


def test_a_place_after_the_end_of_a_pass_is_not_gone_to(caplog):
    """A dataset that has become shorter, say."""
    make = functools.partial(stream_of, Rows, ORDERS["by a generator"])
    _, positions = pieces(make(), (20,), 21)
    resumed = make()
    resumed.seek(positions[20] | {"n_in_pass": 11})

    assert is_drawn_again(caplog)
    assert resumed.n_taken == 20


def test_the_loader_is_left_as_it_was():
    loader = DataLoader(Rows(), **ORDERS["shuffled"]())
    before = dict(vars(loader))
    stream = BatchStream(loader, "data")
    stream.next()
    stream.seek(stream.position())

    assert vars(loader) == before


# Whole runs


def loop_of(folder, save_at_end=True, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 2))
    loader = DataLoader(Everything(), **ORDERS["by a generator"](), **kwargs)
    task = TrainTask(
        loader,
        lambda outputs, batch: (outputs - batch[0]).square().mean(),
        torch.optim.Adam(model.parameters()),
        n_steps_per_checkpoint=5,
    )
    evals = EvalTask(DataLoader(Rows(), 7), lambda outputs, batch: outputs.mean())
    return Loop(
        model,
        task,
        eval_tasks=evals,
        output_dir=str(folder),
        save_at_end=save_at_end,
        random_seed=1,
        progress=False,
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        pytest.param(
            dict(num_workers=2, persistent_workers=True, multiprocessing_context="fork"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["alone", "with workers"],
)
@pytest.mark.parametrize("killed_at", [7, 12])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_been(kwargs, killed_at, tmp_path, caplog):
    """From its checkpoint of step 5 or 10, in the first epoch of 8 batches, or the second."""
    loop_of(tmp_path / "whole", **kwargs).run(21)
    child = os.fork()
    if not child:
        try:
            loop_of(tmp_path / "cut", save_at_end=False, **kwargs).run(killed_at)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = loop_of(tmp_path / "cut", **kwargs)
    assert resumed.step == killed_at // 5 * 5
    MADE.clear()
    resumed.run(until=21)

    assert differences(str(tmp_path / "whole"), str(tmp_path / "cut")) == []
    assert not is_drawn_again(caplog)
