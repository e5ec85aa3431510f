"""A Loop on a pipeline goes on where it was: alone, with a loader's workers, and on shares."""

import functools

import numpy as np
import pipelines
import pytest
import ranks
import torch
from torch.utils.data import DataLoader

from trax_torch import data, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask, training


class Rows(torch.utils.data.Dataset):
    """A noisy line, row by row, that counts which rows it was asked for."""

    def __init__(self, n=512):
        self.n, self.asked = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked += 1
        rng = np.random.default_rng(i)
        x = rng.normal(size=i % 4 + 1).astype(np.float32)
        return x, x.sum(keepdims=True)


def padded(example):
    x, y = example
    return np.pad(x, (0, 4 - len(x))), y


def pipeline(dataset, source=data.Examples):
    return data.Serial(
        source(dataset),
        lambda g: map(padded, g),
        data.Shuffle(20, seed=1),
        data.Batch(4),
        data.Prefetch(2),
        data.AddLossWeights(),
    )()


def run(directory, batches, n_steps):
    loop = Loop(
        tl.Dense(1),
        TrainTask(batches, tl.L2Loss(), optimizers.Adam(0.1), n_steps_per_checkpoint=5),
        output_dir=directory,
        random_seed=0,
    )
    loop.run(until=n_steps)
    return loop


def with_workers(dataset):
    return DataLoader(dataset, batch_size=None, num_workers=2)


def shuffled(dataset):
    return DataLoader(dataset, batch_size=None, shuffle=True)


@pytest.mark.parametrize("source", [data.Examples, lambda rows: rows, with_workers, shuffled])
def test_a_run_goes_on_bit_for_bit(tmp_path, source):
    """Cut after 32 of 40 steps, weights are those of the run that was not."""
    torch.manual_seed(0)
    whole = run(tmp_path / "whole", pipeline(Rows(), source), 40)
    torch.manual_seed(0)
    run(tmp_path / "cut", pipeline(Rows(), source), 32)

    dataset = Rows()
    resumed = run(tmp_path / "cut", pipeline(dataset, source), 40)

    pipelines.assert_same(
        [w.detach().clone() for w in resumed.model.parameters()],
        [w.detach().clone() for w in whole.model.parameters()],
    )
    if source is not with_workers:  # what went by is not asked for, but for a sample of batches
        sample = 20 + 4 * 4
        assert dataset.asked <= (40 - 32 + 3) * 4 + sample < 32 * 4


def test_a_buffer_adds_no_more_than_itself_to_a_checkpoint(tmp_path):
    """10,000 waiting examples; besides them, at most a byte or two of each: their lengths."""
    sizes = {}
    for queue_size in (1, 10_000):
        batches = data.Serial(
            data.Examples([(np.full(50 + i % 50, i), np.float32([i])) for i in range(20_000)]),
            data.Shuffle(queue_size, seed=0),
            data.PadToLength({0: 100}),
            data.Map(lambda x: (x[0].astype(np.float32), x[1])),
            data.Batch(4),
            data.AddLossWeights(),
        )()
        run(tmp_path / str(queue_size), batches, 1)
        files = (tmp_path / str(queue_size)).rglob("*")
        sizes[queue_size] = sum(f.stat().st_size for f in files if f.is_file())

    buffer = sum(8 * (50 + i % 50) + 4 for i in range(10_000))
    assert sizes[10_000] - sizes[1] < buffer * 1.01 + 10_000 * 2


def test_shares_of_a_pipeline_are_the_pipeline(tmp_path):
    """Each rank draws the same batches, and takes its rows; all go to one place."""
    whole = pipeline(Rows())
    shares = [data.share_of(pipeline(Rows()), rank, 2) for rank in range(2)]
    for _ in range(5):
        next(whole)
        assert {len(next(share)[0]) for share in shares} == {2}
    resumed = [data.share_of(pipeline(Rows()), rank, 2) for rank in range(2)]
    for share, was in zip(resumed, shares, strict=True):
        share.load_state_dict(pipelines.through_a_file(was.state_dict()))

    for _ in range(5):
        parts = zip(*map(next, resumed), strict=True)
        pipelines.assert_same(tuple(map(np.concatenate, parts)), next(whole))


def drawn_from_numpy(_=None):
    """A user's generator, as Trax's programs have: each pass in another order, with noise."""
    while True:
        for i in np.random.permutation(50):
            yield np.float32([i, 1, 2, 3]) + np.random.normal(size=4).astype("f"), np.float32([i])


def noisy(example):
    return padded(example)[0] + np.random.normal(size=4).astype("f"), example[1]


@pytest.mark.parametrize(
    "source",
    [
        lambda: [drawn_from_numpy],
        lambda: [drawn_from_numpy, data.Shuffle(30)],
        lambda: [data.Examples(Rows(), shuffle=True), data.Map(noisy), data.Shuffle(30)],
    ],
    ids=["generator", "generator, shuffled", "function"],
)
def test_what_users_functions_draw_from_numpy_comes_again(tmp_path, source):
    """Whatever else draws in between; a generator is drawn again with the numbers that it had."""

    def cut_at(folder, *places):
        for n_steps in places:
            np.random.seed(3)
            batches = data.Serial(*source(), data.Batch(4), data.AddLossWeights())()
            run(tmp_path / folder, batches, n_steps)
            np.random.rand(n_steps)

    cut_at("whole", 30)
    cut_at("cut", 17, 30)

    assert training.differences(str(tmp_path / "whole"), str(tmp_path / "cut")) == []


def on_a_rank(rank, size, folder, n_steps):
    dataset = Rows()
    run(folder, data.share_of(pipeline(dataset), rank, size), n_steps)
    return dataset.asked


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(tmp_path):
    """Each shares the pipeline's batches; what is saved at the end is that of the whole run."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    start = functools.partial(on_a_rank, size=2)
    ranks.values(tmp_path / "a", 2, functools.partial(start, folder=whole, n_steps=40))
    ranks.values(tmp_path / "b", 2, functools.partial(start, folder=cut, n_steps=32))
    asked = ranks.values(tmp_path / "c", 2, functools.partial(start, folder=cut, n_steps=40))

    assert training.differences(whole, cut) == []
    assert max(asked) < 32 * 4
