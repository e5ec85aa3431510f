"""An eval goes through data that has an end from its start, each row once, and leaves no trace."""

import logging
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from toys import batches, line_loop, train_task

from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, share_of

LOSS = torch.nn.MSELoss()


def numbered(n):
    """Rows (i, i), each its own number."""
    return [(torch.tensor([float(i)]), torch.tensor([float(i)])) for i in range(n)]


def rows_of(task):
    """The numbers of the rows of one eval, batch by batch."""
    return [x.flatten().int().tolist() for x, _ in task.batches()]


def test_what_has_a_length_is_measured_whole_each_time():
    loader = DataLoader(numbered(10), 4)
    for data in (loader, list(loader), tuple(loader), share_of(loader, 0, 1)):
        task = EvalTask(data, LOSS)
        assert task.n_eval_batches == 3 or data is not loader
        for _ in range(2):
            assert rows_of(task) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert rows_of(EvalTask(loader, LOSS, n_eval_batches=3))[0] == [0, 1, 2, 3]
    assert rows_of(EvalTask(DataLoader(numbered(10), 4, drop_last=True), LOSS)) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


class Endless(IterableDataset):
    """Rows without a length, which a DataLoader then has not either."""

    def __iter__(self):
        yield from numbered(10)


class Unsaid(list):
    """A list that will not say how long it is."""

    def __len__(self):
        raise NotImplementedError


def test_what_has_no_length_or_cannot_begin_anew_gives_the_next_batch():
    """As in Trax; the first one is the sample."""
    loader = DataLoader(numbered(10), 4)
    for data in (DataLoader(Endless(), 4), iter(loader), Unsaid(loader), iter(list(loader))):
        task = EvalTask(data, LOSS)
        assert task.n_eval_batches == 1
        assert [rows_of(task), rows_of(task)] == [[[4, 5, 6, 7]], [[8, 9]]]
    task = EvalTask(loader, LOSS, n_eval_batches=2)
    assert rows_of(task) == [[4, 5, 6, 7], [8, 9]]
    assert rows_of(task) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_workers_give_the_same_rows():
    task = EvalTask(DataLoader(numbered(7), 3, num_workers=2), LOSS)

    assert rows_of(task) == rows_of(task) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_pass_that_is_given_up_is_closed_at_once():
    """An error in an eval leaves no iterator, and so no workers, behind."""
    ended = []

    class Data(list):
        def __iter__(self):
            try:
                yield from super().__iter__()
            finally:
                ended.append(1)

    task = EvalTask(Data("no batch" for _ in range(3)), LOSS, sample_batch=(torch.ones(1, 3),) * 2)
    with pytest.raises(ValueError, match="needs batches that are tuples"):
        line_loop(evals=task).run_evals()

    assert ended == [1]


def test_evals_draw_nothing_from_a_generator_of_the_data():
    """So each eval has the same order, and training the one that it has without evals."""

    def orders(n_evals):
        g = torch.Generator().manual_seed(3)
        sampler = torch.utils.data.RandomSampler(range(10), generator=g)
        loaders = [
            DataLoader(numbered(10), 4, shuffle=True, generator=g),
            DataLoader(numbered(10), 4, sampler=sampler),
            DataLoader(
                numbered(10), batch_sampler=torch.utils.data.BatchSampler(sampler, 4, False)
            ),
        ]
        tasks = [EvalTask(loader, LOSS) for loader in loaders] if n_evals else []
        seen = [[rows_of(task) for _ in range(n_evals)] for task in tasks]
        return seen, torch.randperm(10, generator=g).tolist()

    seen, after = orders(n_evals=2)

    assert after == orders(n_evals=0)[1]
    for first, second in seen:
        assert first == second
        assert sorted(chain(*first)) == list(range(10))


def test_the_data_of_whole_evals_has_no_place_to_keep():
    """Data with a state of its own is not asked for it, nor sent to a place an earlier run kept."""

    class Stateful(list):
        def state_dict(self):
            raise AssertionError("nobody needs it")

        def load_state_dict(self, state):
            raise AssertionError("nobody needs it")

    task = EvalTask(Stateful(DataLoader(numbered(4), 2)), LOSS)
    rows_of(task)
    assert task.stream.position() == {"n_taken": 0}
    task.stream.seek({"n_taken": 100, "state": {}})

    assert rows_of(task) == [[0, 1], [2, 3]]
    assert task.stream.fits_any_size


def test_a_resumed_run_measures_all_rows_too(tmp_path):
    """With data in an order of its own, which a generator shuffles: to the last bit."""

    def make(folder):
        x, y, w = next(batches(5, 11))
        rows = [tuple(map(torch.from_numpy, row)) for row in zip(x, y, w, strict=True)]
        loader = DataLoader(rows, 3, shuffle=True, generator=torch.Generator().manual_seed(0))
        return line_loop(folder, task=train_task(), evals=EvalTask(loader, tl.L2Loss()))

    whole, cut = make(tmp_path / "whole"), make(tmp_path / "cut")
    whole.run(15)
    cut.run(5)
    resumed = make(tmp_path / "cut")
    resumed.run(10)

    key = ("eval", "metrics/L2Loss")
    assert len(whole.history.get(*key)) == 4
    assert resumed.history.get(*key) == whole.history.get(*key)


# Rows that are repeated for other ranks' sake


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(1, 13),
    size=st.integers(1, 5),
    batch_size=st.one_of(st.none(), st.integers(1, 4)),
    shuffle=st.booleans(),
)
def test_ranks_together_have_each_row_once(n_rows, size, batch_size, shuffle):
    """Whatever a DistributedSampler repeats; batch_size=None makes each item a batch."""
    items = numbered(n_rows)
    if batch_size is None:
        items = [(x[None], y[None]) for x, y in items]
    seen = []
    for rank in range(size):
        sampler = DistributedSampler(items, size, rank, shuffle=shuffle)
        loader = DataLoader(items, batch_size, sampler=sampler)
        found = rows_of(EvalTask(loader, LOSS, sample_batch=items[0]))
        assert all(found)  # no batch is empty
        seen += chain(*found)

    assert sorted(seen) == list(range(n_rows))


def test_rows_that_are_left_out_are_logged(caplog):
    loader = DataLoader(numbered(9), 5, sampler=DistributedSampler(range(9), 2, 1, shuffle=False))
    with caplog.at_level(logging.INFO, "trax_torch"):
        assert rows_of(EvalTask(loader, LOSS)) == [[1, 3, 5, 7]]

    assert "EvalTask's labeled_data: left out 1 rows that the sampler repeats" in caplog.text


def test_a_batch_that_cannot_be_cut_stays_whole_with_a_warning(caplog):
    def pairs(items):
        return torch.stack([x for x, _ in items for _ in range(2)]), torch.ones(len(items), 1)

    sampler = DistributedSampler(range(3), 2, 1, shuffle=False)
    task = EvalTask(DataLoader(numbered(3), 2, sampler=sampler, collate_fn=pairs), LOSS)

    assert rows_of(task) == [[1, 1, 0, 0]]
    assert "1 rows that the sampler repeats count twice" in caplog.text


def test_words_and_numbers_of_rows_that_are_left_out_go_with_them():
    """As a loader puts them beside tensors: in lists, at any depth."""
    rows = [{"x": torch.ones(2) * i, "more": (f"row {i}", {"n": i})} for i in range(10)]
    sampler = DistributedSampler(rows, 4, 2, shuffle=False)
    task = EvalTask(DataLoader(rows, 3, sampler=sampler), LOSS)

    (batch,) = task.batches()

    assert batch["x"][:, 0].tolist() == [2, 6]
    names, numbers = batch["more"]
    assert list(names) == ["row 2", "row 6"]
    assert numbers["n"].tolist() == [2, 6]


class Halves(DistributedSampler):
    """Gives ranks halves of the data, which are another order than torch's."""

    def __iter__(self):
        rows = [*range(len(self.dataset)), 0]
        return iter(rows[self.rank * self.num_samples :][: self.num_samples])


def test_a_sampler_of_another_order_is_left_alone():
    """Of which nobody knows what it repeats, nor where."""
    halves = Halves(range(5), 2, 1)

    assert rows_of(EvalTask(DataLoader(numbered(5), 3, sampler=halves), LOSS)) == [[3, 4, 0]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_of_data_with_an_end_are_all_of_it(size):
    """Also of a last batch with fewer rows than there are ranks."""
    seen = []
    for rank in range(size):
        data = share_of(DataLoader(numbered(7), 3), rank, size)
        task = EvalTask(data, LOSS, sample_batch=numbered(1)[0])
        assert rows_of(task) == rows_of(task)
        seen += chain(*rows_of(task))

    assert sorted(seen) == list(range(7))


def test_a_share_of_data_without_an_end_gives_the_next_batch():
    task = EvalTask(share_of(batches(), 0, 2), LOSS)
    (first,), (second,) = task.batches(), task.batches()

    assert len(first[0]) == 2
    assert not np.array_equal(first[0], second[0])
