"""A DataLoader that begins a pipeline: what went by is not made again, what comes is the same."""

import itertools
import logging
import random

import numpy as np
import pipelines
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from trax_torch import data, optimizers
from trax_torch import layers as tl
from trax_torch.data._streams import BatchStream
from trax_torch.supervised import Loop, TrainTask, training


class Rows(Dataset):
    """Rows with what `draw` gives, which notes the ones that this process was asked for."""

    def __init__(self, draw=lambda: 0.0):
        self.draw, self.asked = draw, []

    def __len__(self):
        return 50

    def __getitem__(self, i):
        self.asked.append(i)
        return torch.tensor([float(i), self.draw()])


def noise():
    return torch.rand(()).item() + np.random.randn() + random.random()


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def another_process(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


LOADERS = {
    "in order": lambda rows: DataLoader(rows, 3),
    "shuffled": lambda rows: DataLoader(rows, 3, shuffle=True),
    "generator": lambda rows: DataLoader(rows, 3, shuffle=True, generator=seeded()),
    "row by row": lambda rows: DataLoader(rows, None, shuffle=True),
}
WITH_WORKERS = {
    "workers": lambda rows: DataLoader(rows, 3, shuffle=True, num_workers=2),
    "workers that persist": lambda rows: DataLoader(
        rows, 3, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


def drawn(make, cut):
    """A pipeline's place after some examples, and those that come then."""
    another_process(1)
    pipeline = make()
    list(itertools.islice(pipeline, cut))
    state = pipelines.through_a_file(pipeline.state_dict())
    return state, list(pipeline)


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_it_goes_on_at_each_cut_and_makes_one_example_again(loader):
    n = len(list(loader(Rows())))
    for cut in range(1, n + 1):
        state, rest = drawn(lambda: data.Serial(loader(Rows()))(), cut)
        rows = Rows()
        another_process(2)
        resumed = data.Serial(loader(rows))()
        resumed.load_state_dict(state)

        assert len(rows.asked) <= 3
        pipelines.assert_same(list(resumed), rest)


@pytest.mark.parametrize("loader", WITH_WORKERS.values(), ids=WITH_WORKERS)
def test_workers_go_on_with_their_random_numbers(loader):
    for cut in (1, 6):
        state, rest = drawn(lambda: data.Serial(loader(Rows(noise)))(), cut)
        another_process(2)
        resumed = data.Serial(loader(Rows(noise)))()
        resumed.load_state_dict(state)

        pipelines.assert_same(list(resumed), rest)


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_rows_that_draw_here_are_not_made_again(loader):
    """Though nobody has the generators as they were when the last one was made."""
    state, rest = drawn(lambda: data.Serial(loader(Rows(noise)), data.Shuffle(2, seed=0))(), 9)
    rows = Rows(noise)
    another_process(2)
    resumed = data.Serial(loader(rows), data.Shuffle(2, seed=0))()
    before = torch.get_rng_state(), random.getstate()
    resumed.load_state_dict(state)

    assert len(rows.asked) <= 3
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    pipelines.assert_same([x[..., 0] for x in resumed][1:], [x[..., 0] for x in rest][1:])


def test_going_on_tells_a_place_as_not_having_stopped_does():
    """Cut twice, it is where it would be."""
    make = lambda: data.Serial(LOADERS["shuffled"](Rows()))()  # noqa: E731
    state, rest = drawn(make, 4)
    second = make()
    second.load_state_dict(state)
    pipelines.assert_same(list(itertools.islice(second, 5)), rest[:5])
    third = make()
    third.load_state_dict(pipelines.through_a_file(second.state_dict()))

    pipelines.assert_same(list(third), rest[5:])


def test_it_goes_back_in_its_own_process():
    for loader in (LOADERS["generator"], WITH_WORKERS["workers that persist"]):
        pipeline = data.Serial(loader(Rows()))()
        start = pipeline.state_dict()
        first = list(itertools.islice(pipeline, 4))
        state = pipeline.state_dict()
        rest = list(pipeline)

        pipeline.load_state_dict(state)
        pipelines.assert_same(list(pipeline), rest)
        if loader is LOADERS["generator"]:
            pipeline.load_state_dict(start)
            pipelines.assert_same(list(pipeline), first + rest)


@pytest.mark.parametrize("loader", [LOADERS["shuffled"], LOADERS["generator"]])
def test_each_pass_has_an_order_of_its_own(loader):
    """As it has without the pipeline, with the same numbers."""
    another_process(0)
    plain, want = loader(Rows()), []
    for _ in range(2):
        want += list(plain)
    another_process(0)
    stage = data.Serial(loader(Rows()))

    pipelines.assert_same(list(stage()) + list(stage()), want)


class Remembering(Rows):
    """Draws from a generator of its own."""

    def __init__(self):
        self.rng = np.random.default_rng(3)
        super().__init__(lambda: self.rng.random())


class Seldom(Rows):
    """Draws late, where nobody looks whether it does."""

    def __getitem__(self, i):
        self.draw = torch.rand(()).item if i >= 36 else float
        return super().__getitem__(i)


@pytest.mark.parametrize("rows", [Remembering, Seldom])
def test_what_the_indices_do_not_bring_back_is_drawn_again(rows, caplog):
    """It is found out, and said."""
    make = lambda: data.Serial(DataLoader(rows(), 3))()  # noqa: E731
    state, rest = drawn(make, 14)
    resumed = make()
    with caplog.at_level(logging.INFO, logger="trax_torch"):
        resumed.load_state_dict(state)

    assert "keeps no state: drawing 14 examples again" in caplog.text
    if rows is Remembering:
        pipelines.assert_same(list(resumed), rest)


def test_rows_that_are_others_when_they_are_drawn_again_are_refused():
    counter = itertools.count()
    make = lambda: data.Serial(DataLoader(Rows(lambda: next(counter)), 3))()  # noqa: E731
    state, _ = drawn(make, 4)

    with pytest.raises(ValueError, match="drawn again, are others than .*Seed what it draws from"):
        make().load_state_dict(state)


def test_fewer_rows_than_there_were_are_refused():
    make = lambda n: data.Serial(DataLoader(torch.arange(float(n)), 3))()  # noqa: E731
    state, _ = drawn(lambda: make(30), 8)

    with pytest.raises(ValueError, match="gave 8 examples .*and only 4 now. Give it the data"):
        make(12).load_state_dict(state)


def batches(rows):
    loader = DataLoader(rows, None, shuffle=True)
    shuffled = data.Serial(loader, data.Shuffle(4, seed=1))
    return data.Serial(
        data.Parallel([shuffled, shuffled]),
        data.Map(lambda x: (x, x[:1])),
        data.Batch(2),
        data.AddLossWeights(),
    )()


def test_a_loop_goes_on_bit_for_bit(tmp_path):
    """With rows that draw from the process-wide generators, of which Loop's streams have theirs."""

    def run(folder, n_steps, seed):
        another_process(seed)
        rows = Rows(noise)
        task = TrainTask(batches(rows), tl.L2Loss(), optimizers.SGD(1e-3), n_steps_per_checkpoint=3)
        loop = Loop(tl.Dense(1), task, output_dir=tmp_path / folder, random_seed=0)
        loop.run(until=n_steps)
        return rows

    run("whole", 20, seed=1)
    run("cut", 16, seed=1)
    rows = run("cut", 20, seed=1)

    assert training.differences(str(tmp_path / "whole"), str(tmp_path / "cut")) == []
    assert len(rows.asked) < 30  # of 48, and a sample


@pytest.mark.parametrize(
    "around", [lambda x: x, lambda x: data.Parallel([x])], ids=["loader", "mixed"]
)
def test_a_sampler_in_a_pipeline_that_begins_anew_is_told_the_epoch(around):
    """As where a task has the loader itself."""
    rows = Rows()
    sampler = DistributedSampler(rows, 2, 0, shuffle=True, seed=3)
    loader, want = DataLoader(rows, 5, sampler=sampler), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        want += [batch[:, 0].tolist() for batch in loader]
    sampler.set_epoch(0)
    stream = BatchStream(data.Serial(around(loader), data.Map(lambda x: (x, x))), "data")

    assert [stream.next()[0][:, 0].tolist() for _ in want] == want
    assert want[:5] != want[5:10]
