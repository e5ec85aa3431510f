"""Data of many kinds, and the laws that a stream of each obeys."""

import json
import random

import numpy as np
import torch

from trax_torch.data._streams import BatchStream
from trax_torch.supervised._checkpoint.packing import pack, unpack

N_ROWS = 12
N_BATCHES = 10  # two and a half epochs of 4 batches of 3 rows


class Rows(torch.utils.data.Dataset):
    """Rows i from 0, each with what `draw` gives when it is fetched."""

    def __init__(self, draw=lambda: 0.0):
        self.draw = draw

    def __len__(self):
        return N_ROWS

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.tensor([float(self.draw())])


class Epochs(Rows):
    """Rows i + 100 e in epoch e."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        return torch.tensor([float(i + 100 * self.epoch)]), torch.zeros(1)


class Unordered(torch.utils.data.IterableDataset):
    """Rows in an order that is drawn as they come."""

    def __iter__(self):
        yield from ((torch.tensor([float(i)]), torch.zeros(1)) for i in torch.randperm(N_ROWS))


class Stateful:
    """A loader with a place and an epoch of its own: a pass that is gone on with gives its rest."""

    def __init__(self):
        self.epoch = self.n = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for i in range(self.n, 4):
            self.n = i + 1
            yield torch.full((1, 1), 10.0 * self.epoch + i), torch.zeros(1, 1)
        self.n = 0

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def another_process(seed):
    """What a new process has in its generators is anybody's guess."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def begun(make, seed=0, keys=("task", 0)):
    """A stream as a task of a run has it: its first batch is the sample, then it is keyed."""
    another_process(seed)
    stream = BatchStream(make(), "data")
    stream.sample(None)
    another_process(5)  # as a Loop with this random_seed does
    stream.key(5, *keys)
    return stream


def drawn(stream, n=1):
    """The next batches, as lists of numbers."""
    found = []
    for _ in range(n):
        leaves = stream.next()
        leaves = leaves.values() if isinstance(leaves, dict) else leaves
        found.append([torch.as_tensor(x).double().flatten().tolist() for x in leaves])
    return found


def saved(stream):
    """A stream's position as a checkpoint brings it back."""
    tensors = {}
    packed = json.loads(json.dumps(pack(stream.position(), "data", tensors)))
    return unpack(packed, {name: tensor.clone() for name, tensor in tensors.items()})


def check_each_cut(make, seeds=lambda i: i, cuts=range(N_BATCHES)):
    """Uninterrupted is resumed, at each cut, and at another one after it."""
    whole = drawn(begun(make, seeds(1)), N_BATCHES)
    for cut in cuts:
        first = begun(make, seeds(1))
        assert drawn(first, cut) == whole[:cut]
        place = saved(first)
        assert drawn(first, 1) == whole[cut : cut + 1] or cut == N_BATCHES
        second = begun(make, seeds(2))
        second.seek(place)
        n = min(2, N_BATCHES - cut)
        assert drawn(second, n) == whole[cut : cut + n], cut
        third = begun(make, seeds(3))
        third.seek(saved(second))
        assert drawn(third, N_BATCHES - cut - n) == whole[cut + n :], cut


def check_others_between(make, seeds=lambda i: i):
    """Evals, a callback and saves that draw in between change nothing."""
    whole = drawn(begun(make, seeds(1)), N_BATCHES)
    stream = begun(make, seeds(1))
    evals = BatchStream(torch.utils.data.DataLoader(Rows(), 3, shuffle=True), "evals")
    evals.key(5, "eval", 0)
    for want in whole:
        list(evals.epoch())
        torch.rand(3), np.random.rand(3), random.random()
        stream.position()
        assert drawn(stream) == [want]


def check_two_tasks(make, seeds=lambda i: i):
    """Two tasks on one object have each what it would have alone, also when they are resumed."""
    alone = [drawn(begun(make, seeds(1), keys), N_BATCHES) for keys in (("a",), ("b",))]
    for cut in (2, 3, 4, 7):
        another_process(seeds(1))
        one = make()
        pair = [begun(lambda one=one: one, seeds(1), keys) for keys in (("a",), ("b",))]
        for i in range(cut):
            assert [drawn(each) for each in pair] == [[whole[i]] for whole in alone]
        places = [saved(each) for each in pair]
        another_process(seeds(2))
        again = make()
        pair = [begun(lambda again=again: again, seeds(2), keys) for keys in (("a",), ("b",))]
        for each, place in zip(pair, places, strict=True):
            each.seek(place)
        for i in range(cut, N_BATCHES):
            assert [drawn(each) for each in pair] == [[whole[i]] for whole in alone], (cut, i)


def check_going_back(make, seeds=lambda i: i):
    """In one process, as `load_checkpoint` does."""
    stream = begun(make, seeds(1))
    drawn(stream, 3)
    place = saved(stream)
    want = drawn(stream, 6)
    for _ in range(2):
        stream.seek(place)
        place = saved(stream)
        assert drawn(stream, 6) == want


def check_epochs_differ(make, seeds=lambda i: i):
    """Two passes in a row are the same rows in another order, or other rows."""
    stream = begun(make, seeds(1))
    drawn(stream, 3)
    one, other = drawn(stream, 4), drawn(stream, 4)
    assert one != other
