"""Batches of a TensorDataset taken at once are those that a DataLoader stacks row by row."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data._utils import collate

from trax_torch.data._streams import BatchStream

N = 10


def tensors():
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(N, 2, 3, generator=g),
        torch.arange(N),
        torch.randn(N, generator=g).to(torch.bfloat16),
        torch.arange(N) % 2 == 0,
        torch.zeros(N, 0),
    )


class Doubled(TensorDataset):
    """Has rows of its own."""

    def __getitem__(self, i):
        return tuple(2 * t for t in super().__getitem__(i))


class Given(Sampler):
    """Gives indices as they are."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


def subset_of_a_subset():
    return Subset(Subset(TensorDataset(*tensors()), [9, 1, 1, 4, 7]), [4, 0, 2])


LOADERS = {
    "in order, the last one smaller": lambda: DataLoader(TensorDataset(*tensors()), 4),
    "dropped": lambda: DataLoader(TensorDataset(*tensors()), 4, drop_last=True),
    "shuffled": lambda: DataLoader(TensorDataset(*tensors()), 3, shuffle=True),
    "one tensor": lambda: DataLoader(TensorDataset(tensors()[0]), 3),
    "a subset": lambda: DataLoader(subset_of_a_subset(), 2),
    "from the end": lambda: DataLoader(TensorDataset(*tensors()), 2, sampler=Given([-1, 3, -10])),
    "numpy's numbers": lambda: DataLoader(
        TensorDataset(*tensors()), 2, sampler=Given(list(np.array([3, 1, 2])))
    ),
    "tensors": lambda: DataLoader(
        TensorDataset(*tensors()), 2, sampler=Given(list(torch.tensor([3, 1, 2])))
    ),
    "batches of indices": lambda: DataLoader(
        TensorDataset(*tensors()), batch_sampler=Given([[1, 2], [3], [0, 0, 5]])
    ),
    "batches of indices as tensors": lambda: DataLoader(
        TensorDataset(*tensors()), batch_sampler=Given([torch.tensor([1, 2]), torch.tensor([3])])
    ),
    "rows of its own": lambda: DataLoader(Doubled(*tensors()), 4),
    "its own collate_fn": lambda: DataLoader(
        TensorDataset(*tensors()), 4, collate_fn=lambda rows: default_collate(rows)[::-1]
    ),
    "not contiguous": lambda: DataLoader(TensorDataset(torch.arange(3.0 * N).view(3, N).t()), 4),
    "with gradients": lambda: DataLoader(TensorDataset(torch.ones(N, 2, requires_grad=True)), 4),
    "no number": lambda: DataLoader(TensorDataset(torch.full((N, 2), torch.nan)), 4),
    "row by row": lambda: DataLoader(TensorDataset(*tensors()), batch_size=None),
}


def form(batch):
    return [(t.dtype, t.shape, t.stride(), t.requires_grad) for t in batch]


def assert_same(found, wanted):
    assert form(found) == form(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("keeps_position", [True, False])
def test_a_stream_gives_what_the_loader_gives(make, keeps_position):
    """Through two passes, to the last bit; also where nothing can be taken at once."""
    torch.manual_seed(3)
    wanted = [batch for _ in range(2) for batch in make()]
    torch.manual_seed(3)
    stream = BatchStream(make(), "data")
    stream.keeps_position = keeps_position

    found = [stream.next() for _ in wanted]

    if not isinstance(make().sampler, RandomSampler):
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b)
    else:  # its own random numbers: each pass has each row once
        for these in (found[: len(found) // 2], found[len(found) // 2 :]):
            rows = torch.cat([batch[1] for batch in these])
            assert sorted(rows.tolist()) == list(range(N))
            for batch in these:
                assert_same(batch, default_collate([make().dataset[i] for i in batch[1]]))


def test_rows_are_not_asked_for_one_by_one(monkeypatch):
    """But those of a pass's first batch, with which the others are compared."""
    asked = []
    own = TensorDataset.__getitem__
    monkeypatch.setattr(
        TensorDataset, "__getitem__", lambda self, i: asked.append(i) or own(self, i)
    )
    stream = BatchStream(DataLoader(TensorDataset(*tensors()), 2), "data")

    for _ in range(10):  # two passes
        stream.next()

    assert asked == [0, 1, 0, 1]


def test_a_batch_is_a_copy():
    """What is written into it is not written into the data."""
    data = tensors()
    stream = BatchStream(DataLoader(TensorDataset(*data), 5), "data")

    for _ in range(4):
        for tensor in stream.next():
            tensor.zero_()

    for tensor, before in zip(data, tensors(), strict=True):
        assert torch.equal(tensor, before)


def test_another_way_to_put_tensors_together_is_noted(monkeypatch):
    """torch lets programs register one, for `default_collate` of the whole process."""

    def doubled(batch, *, collate_fn_map=None):
        return 2 * torch.stack(batch)

    monkeypatch.setitem(collate.default_collate_fn_map, torch.Tensor, doubled)
    stream = BatchStream(DataLoader(TensorDataset(torch.ones(6, 1)), 2), "data")

    assert [stream.next()[0].tolist() for _ in range(3)] == [[[2.0], [2.0]]] * 3


def test_a_number_beyond_the_rows_is_an_error():
    stream = BatchStream(DataLoader(TensorDataset(*tensors()), 1, sampler=Given([0, 1, N])), "data")
    stream.next(), stream.next()

    with pytest.raises(IndexError, match="out of"):
        stream.next()


@pytest.mark.parametrize("n_before", [3, 8])
def test_a_pass_goes_on_where_it_was(n_before):
    """With other rows each pass."""

    def stream():
        torch.manual_seed(0)
        stream = BatchStream(DataLoader(TensorDataset(*tensors()), 2, shuffle=True), "data")
        stream.sample(None)
        stream.key(7, "data")
        return stream

    whole = stream()
    for _ in range(n_before):
        whole.next()
    position = whole.position()
    other = stream()
    other.seek(position)

    for _ in range(9):
        assert_same(other.next(), whole.next())
