"""Where several ranks measure, each row of their data counts once."""

import functools

import pytest
import ranks
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from toys import line_loop

from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, TrainTask, share_of

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

X = torch.arange(9.0)[:, None]
W = torch.tensor([1.0, 0, 0, 2, 0, 1, 0, 0, 5])[:, None]
ROWS = TensorDataset(X, X * 0, W)


class Mean(nn.Module):
    """The mean of what comes in, which is of all rows alike."""

    def forward(self, output, target):
        return output.mean()


class Through(nn.Module):
    """A model that gives what it takes; it has a weight, so that there is one to train."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def forward(self, x):
        return self.scale(x)


def padded(rank, size):
    """As PyTorch shares data out: all ranks have equally many rows, so some are there twice."""
    return DataLoader(ROWS, 2, sampler=DistributedSampler(ROWS, size, rank, shuffle=False))


def shared(rank, size):
    return share_of(DataLoader(ROWS, 4), rank, size)


def lists(rank, size):
    """Each rank its own list of batches: more rows on rank 0, and none on the last one."""
    cuts = [0, 5, 9] if size == 2 else [0, 6, 9, 9]
    x, y, w = (t[cuts[rank] : cuts[rank + 1]] for t in ROWS.tensors)
    return list(zip(x.split(2), y.split(2), w.split(2), strict=True))


def measure(rank, size, data_of, n_eval_batches=None, **kwargs):
    model = Through()
    task = TrainTask([(X, X * 0)], nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.0))
    evals = EvalTask(
        data_of(rank, size),
        [Mean(), tl.L2Loss()],
        metric_names=["mean", "square"],
        n_eval_batches=n_eval_batches,
        sample_batch=ROWS[:4],
    )
    loop = line_loop(model=model, task=task, evals=evals, device="cpu", timeout=120, **kwargs)
    return [loop.run_evals() for _ in range(2)]


@pytest.mark.parametrize("data_of", [padded, shared, lists])
@pytest.mark.parametrize(("size", "kwargs"), [(2, {}), (3, {}), (2, {"strategy": "fsdp"})])
def test_each_row_counts_once_on_any_number_of_ranks(data_of, size, kwargs, tmp_path):
    """0 to 8 have the mean 4; where rows are repeated, or shards weighed alike, it is another."""
    work = functools.partial(measure, size=size, data_of=data_of, **kwargs)
    square = float((X**2 * W).sum() / W.sum())
    wanted = {
        "metrics/mean": pytest.approx(4.0, rel=1e-6),
        "metrics/square": pytest.approx(square, rel=1e-6),
    }
    for first, second in ranks.values(tmp_path, size, work):
        assert first == second == wanted


@pytest.mark.parametrize(("size", "kwargs"), [(2, {}), (3, {"strategy": "fsdp"})])
def test_rows_that_a_sampler_repeats_are_left_out_of_several_passes(size, kwargs, tmp_path):
    kwargs = {**kwargs, "data_of": padded, "n_eval_batches": 2 * len(padded(0, size))}
    work = functools.partial(measure, size=size, **kwargs)
    for first, second in ranks.values(tmp_path, size, work):
        assert first["metrics/mean"] == pytest.approx(4.0, rel=1e-6)
        assert second == first


@pytest.mark.parametrize("size", [2, 4, 5])
def test_rows_that_a_sampler_repeats_are_left_out_of_parts_of_a_pass(size):
    """Where an eval measures a batch, and the next one the next."""
    seen = []
    for rank in range(size):
        task = EvalTask(padded(rank, size), [Mean()], n_eval_batches=1, sample_batch=ROWS[:4])
        for _ in range(2 * len(padded(rank, size))):
            seen += [x for batch in task.batches() for x in batch[0].flatten().tolist()]

    assert sorted(seen) == sorted(2 * X.flatten().tolist())
