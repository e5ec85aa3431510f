"""Pipelines of every stage, and ways to cut them and go on."""

import json

import numpy as np
import torch

from trax_torch import data
from trax_torch.supervised._checkpoint.packing import pack, unpack

N = 23


def example(i):
    """A sentence of 1 to 6 numbers, and a label."""
    return np.arange(i, i + 1 + (i * 5) % 6), i


DATASET = [example(i) for i in range(N)]


class Counting:
    """An iterator that keeps its place, and says how many examples it made."""

    def __init__(self):
        self.n = self.n_made = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.n == N:
            raise StopIteration
        self.n, self.n_made = self.n + 1, self.n_made + 1
        return example(self.n - 1)

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def generated(_=None):
    yield from DATASET


def loader():
    """One of torch's, that shuffles by a generator of its own."""
    order = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(
        DATASET, None, shuffle=True, generator=order, collate_fn=lambda x: x
    )


def swapped(examples):
    """A user's generator with examples in its hands when it yields."""
    held = None
    for x in examples:
        if held is not None:
            yield x
            yield held
        held = x if held is None else None


def longer(x):
    return np.append(x[0], 7), x[1]


SOURCES = {
    "list": lambda: DATASET,
    "examples": lambda: data.Examples(DATASET, n_epochs=2),
    "shuffled": lambda: data.Examples(DATASET, n_epochs=2, shuffle=True, seed=3),
    "shuffled, no seed": lambda: data.Examples(DATASET, n_epochs=2, shuffle=True),
    "stateful": lambda: lambda _: Counting(),
    "generator": lambda: generated,
    "iterable": lambda: dict(enumerate(DATASET)).values(),
    "loader": loader,
    "mapped": lambda: lambda: map(longer, DATASET),
    "mixed": lambda: data.Parallel([DATASET, generated, lambda _: Counting()], counters=(2, 1, 3)),
}
STAGES = {
    "Map": lambda: data.Map(longer),
    "Map, keys": lambda: data.Map(np.negative, keys=[0]),
    "map": lambda: lambda g: map(longer, g),
    "filter": lambda: lambda g: filter(lambda x: x[1] % 4, g),
    "map of a stage": lambda: lambda g: map(longer, data.shuffle(g, 3, seed=5)),
    "generator": lambda: swapped,
    "stage of a generator": lambda: lambda g: data.shuffle(swapped(g), 3, seed=4),
    "Shuffle": lambda: data.Shuffle(4),
    "Shuffle, seed": lambda: data.Shuffle(3, seed=1),
    "Shuffle 1": lambda: data.Shuffle(1),
    "FilterByLength": lambda: data.FilterByLength(5, 2, length_keys=[0]),
    "FilterEmptyExamples": lambda: data.FilterEmptyExamples(),
    "TruncateToLength": lambda: data.TruncateToLength({0: (3,)}),
    "PadToLength": lambda: data.PadToLength({0: 4}, multiple=True),
    "CastTo": lambda: data.CastTo(np.float32, [0]),
    "AppendValue": lambda: data.AppendValue({0: [1]}),
    "AddLossWeights": lambda: lambda g: map(lambda x: x[:2], data.add_loss_weights(g)),
    "UniformlySeek": lambda: data.UniformlySeek("rows", 1, 5, 10),
    "UnBatch": lambda: data.Serial(data.Batch(2), data.UnBatch()),
    "Prefetch": lambda: data.Prefetch(2),
    "Parallel": lambda: data.Parallel([data.Shuffle(2), data.Map(longer)], counters=(1, 2)),
    "Parallel, generator": lambda: data.Parallel([swapped, data.Shuffle(2)]),
    "noise": lambda: data.Serial(
        data.Map(lambda x: x[0]),
        data.generate_sequential_chunks(4),
        data.generate_random_noise_mask(),
        data.Map(lambda x: (x[0] * x[1], 0)),
    ),
}
BATCHES = {
    "none": lambda: [],
    "Batch": lambda: data.Batch(3),
    "BucketByLength": lambda: data.BucketByLength([2, 4], [2, 1, 3], length_keys=[0]),
}


def build(source, stages, batches="none"):
    """A new pipeline of named parts."""
    return data.Serial(SOURCES[source](), *(STAGES[s]() for s in stages), BATCHES[batches]())()


def through_a_file(state):
    """A state as a checkpoint gives it back."""
    tensors = {}
    written = json.dumps(pack(state, "data", tensors))
    return unpack(json.loads(written), tensors)


def assert_same(one, other):
    """Equal to the last bit, in type and form."""
    assert type(one) is type(other)
    if isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert one.shape == other.shape
        assert_same(one.tolist(), other.tolist())
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert repr(one) == repr(other)
