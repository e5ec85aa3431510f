"""Models on the meta device: each rank fills its part, with the numbers of a whole model."""

import functools
import gc
import os

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F
from live_bytes import Peak
from torch import nn

from trax_torch import _distributed, models, optimizers
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._loop import counting

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

META = torch.device("meta")
VOCAB = 11


class Scaled(nn.Module):
    """A weight without axes, one without numbers, and a buffer, with torch's protocol."""

    def __init__(self, n):
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(0, n))
        self.register_buffer("shift", torch.empty(n), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.uniform_(self.scale, 0.5, 1.0)
        self.shift.copy_(torch.arange(len(self.shift)) / 8)

    def forward(self, x):
        return x * self.scale + self.shift + self.none.sum()


class Torchs(nn.Module):
    """Modules of torch's, weights that two modules have, statistics, a list of blocks."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8)) for _ in range(3)
        )
        self.scaled, self.norm, self.statistics = Scaled(8), nn.LayerNorm(8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, VOCAB, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        h = self.embedding(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.lstm(h)[0]
        for block in self.blocks:
            h = h + block(h)
        h = self.statistics(self.norm(self.scaled(h)).transpose(1, 2)).transpose(1, 2)
        return F.log_softmax(self.head(h), -1)


class AroundOurs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tl.Serial(tl.Embedding(VOCAB, 8), tl.LayerNorm(), tl.Dense(6))
        self.outer = nn.Linear(6, VOCAB)

    def forward(self, x):
        return self.outer(self.inner(x)).log_softmax(-1)


class Choosing(tl.Layer):
    """A layer that looks at numbers, so that shapes alone do not do."""

    def init_weights_and_state(self, input_signature):
        n = input_signature.shape[-1]
        self.weights = torch.randn(n, n) + torch.rand(n, generator=self.rng)  # of both generators
        self.state = torch.full((n,), 2.0)

    def forward(self, x):
        return x @ self.weights / self.state if float(x.detach().abs().max()) < 1e9 else x


def transformer():
    return models.TransformerLM(VOCAB, 8, 16, n_layers=2, n_heads=2, max_len=16, dropout=0.1)


def ours():
    layer = tl.Dense(8)
    return tl.Serial(
        *(tl.Embedding(VOCAB, 8), layer, tl.Relu(), layer, Choosing(), tl.BatchNorm(axis=(0, 1))),
        *(tl.GRU(8), tl.as_layer(nn.Linear(8, 8)), tl.Dense(VOCAB), tl.LogSoftmax()),
    )


def made_on_meta():
    """One that knew its weights before the Loop."""
    model = ours()
    model.init(torch.ones(4, 6, dtype=torch.int64), rng=5)
    return model


MODELS = {"torch's": Torchs, "around ours": AroundOurs, "ours": ours, "TransformerLM": transformer}
ON_META = {**MODELS, "ours, made there": made_on_meta}


def batches(rank=0, size=1):
    for i in range(100):
        rng = torch.Generator().manual_seed(i)
        x = torch.randint(1, VOCAB, (12, 6), generator=rng).chunk(size)[rank]
        yield x, x, torch.ones(x.shape)


def make_loop(model, rank=0, size=1, strategy="fsdp", loss=None, **kwargs):
    loss = loss or tl.WeightedCategoryCrossEntropy()
    task = TrainTask(batches(rank, size), loss, optimizers.Adam(0.01))
    settings = {"progress": False, "random_seed": 0, "device": "cpu", "verbose": False}
    return Loop(model, task, strategy=strategy, save_at_end=False, **settings, **kwargs)


def numbers(module):
    """All weights and buffers, those too that no state_dict has."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {k: _distributed.whole(t).detach().numpy().copy() for k, t in tensors.items()}


def whole(name):
    """The first numbers of a model that was built with memory, in one process."""
    torch.manual_seed(0)
    return numbers(make_loop(MODELS[name](), strategy="ddp").model)


@pytest.fixture(scope="module")
def wholes():
    found = {name: whole(name) for name in MODELS}
    return found | {"ours, made there": found["ours"]}


def of_a_rank(rank, size, strategy, env=None):
    """First numbers by model, what ranks hold of them, and whether a step is one of numbers."""
    os.environ.update(env or {})
    found = {}
    for name, make in ON_META.items():
        for device in (META, torch.device("cpu")):
            if device != META and name != "ours":
                continue
            torch.manual_seed(rank)  # what the chief drew counts
            with device:
                model = make()
            torch.manual_seed(0)
            loop = make_loop(model, rank, size, strategy)
            first = numbers(loop.model)
            params = list(loop.model.parameters())
            share = sum(_distributed.local(p).numel() for p in params)
            is_tied = name != "torch's" or model.head.weight is model.embedding.weight
            loop.run(1)
            last = numbers(loop.model)
            is_good = all(np.isfinite(x).all() for x in last.values())
            found[name, device.type] = first, share, is_tied, is_good, loop.loss
    return found


@pytest.mark.parametrize(
    ("strategy", "size"),
    [
        *[("fsdp", 1), ("ddp", 2), ("fsdp", 2)],
        pytest.param("fsdp", 3, marks=pytest.mark.slow),
        pytest.param("hsdp", 4, marks=pytest.mark.slow),
    ],
)
def test_each_rank_fills_its_part_with_the_numbers_of_a_whole_model(
    strategy, size, wholes, tmp_path
):
    """Of torch's modules those after `torch.manual_seed(random_seed)`; to the last bit."""
    env, n_parts = ({"LOCAL_WORLD_SIZE": "2"}, 2) if strategy == "hsdp" else ({}, size)
    work = functools.partial(of_a_rank, size=size, strategy=strategy, env=env)

    for found in ranks.values(tmp_path, size, work):
        for (name, _), (first, share, is_tied, is_good, loss) in found.items():
            assert first.keys() == wholes[name].keys()
            assert [k for k in first if not np.array_equal(first[k], wholes[name][k])] == []
            assert is_tied
            assert is_good
            assert np.isfinite(loss)
            n_all = sum(x.size for x in wholes[name].values())
            assert strategy == "ddp" or share < 1.3 * n_all / n_parts + 40


def wide():
    return nn.Sequential(*[nn.Linear(64, 64) for _ in range(24)], nn.Linear(64, VOCAB))


def wide_of_ours():
    return tl.Serial(*[tl.Dense(64) for _ in range(24)], tl.Dense(VOCAB))


def rows(rank, size):
    for i in range(100):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(i))
        yield x[rank::size], torch.zeros(len(x[rank::size]), dtype=torch.int64)


def peak_of_a_rank(rank, size, make, on_meta):
    """Bytes that were in tensors at most while a Loop was built, and those left in weights."""
    with META if on_meta else torch.device("cpu"), Peak() as of_model:
        model = make()
    task = TrainTask(rows(rank, size), nn.CrossEntropyLoss(), optimizers.SGD(0.1))
    gc.collect()
    counting._N_NUMBERS = 1000  # of a gradient, looked at together; the weights here are small
    with Peak() as peak:
        loop = Loop(model, task, strategy="fsdp", device="cpu", progress=False, random_seed=0)
    share = sum(_distributed.local(p).nbytes for p in loop.model.parameters())
    return peak.most + (0 if on_meta else of_model.most), share


@pytest.mark.parametrize("make", [wide, wide_of_ours])
def test_no_rank_has_more_than_its_part_and_a_few_tensors_at_a_time(make, tmp_path):
    """Also where layers of ours are to make their weights in the Loop."""
    n_all = 4 * sum(p.numel() for p in wide().parameters())
    largest = 4 * 64 * 64
    work = functools.partial(peak_of_a_rank, size=2, make=make, on_meta=make is wide)

    for peak, share in ranks.values(tmp_path, 2, work):
        assert share < 0.55 * n_all
        assert peak < share + 8 * largest < 0.9 * n_all


class Own(nn.Module):
    """A weight that torch's protocol does not fill, beside one that it does."""

    def __init__(self, is_masked=False):
        super().__init__()
        self.linear, self.place = nn.Linear(3, 1), nn.Parameter(torch.zeros(3))
        if is_masked:
            self.register_buffer("mask", torch.zeros(3, dtype=torch.bool), persistent=False)

    def forward(self, x):
        return self.linear(x + self.place)


def of_lines(rank=0, size=1, **kwargs):
    def batches():
        for i in range(100):
            x = torch.randn(6, 3, generator=torch.Generator().manual_seed(i))
            yield tuple(t.chunk(size)[rank] for t in (x, x.sum(1, keepdim=True)))

    with META:
        model = Own(**kwargs)
    task = TrainTask(batches(), nn.MSELoss(), optimizers.SGD(0.1))
    settings = {"progress": False, "random_seed": 0, "device": "cpu", "verbose": False}
    return Loop(model, task, strategy="fsdp", **settings)


def refused(rank, size):
    """What a run says before and after the weight gets values, and the weight in the end."""
    loop = of_lines(rank, size)
    try:
        loop.run(1)
    except CheckpointError as error:
        said = str(error)
    loop.update_weights_and_state({k: np.ones(p.shape) for k, p in named(loop.model)})
    loop.run(1)
    return said, numbers(loop.model)["place"]


def named(model):
    return [*model.named_parameters()]


@pytest.mark.parametrize("size", [1, 3])
def test_a_weight_that_nobody_fills_is_refused_by_name_before_the_first_step(size, tmp_path):
    """A rank that holds nothing of it does as the others; filled since, it trains."""
    for said, place in ranks.values(tmp_path, size, functools.partial(refused, size=size)):
        assert "nothing has given values to place (1 in all)" in said
        assert np.isfinite(place).all()


def test_what_cannot_be_filled_is_refused_by_name():
    loop = of_lines(is_masked=True)
    with pytest.raises(CheckpointError, match=r"values to place, mask \(2 in all\). Load them"):
        loop.run_evals()
    with META:
        model = wide()
        model.frequencies = torch.arange(3)
    task = TrainTask(rows(0, 1), nn.CrossEntropyLoss(), optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="frequencies is on the meta device, and neither a param"):
        Loop(model, task)


def test_a_model_that_sets_weights_of_its_parts_is_not_filled_by_the_parts():
    """Its `_init_weights` would have come after them; buffers of parts without weights it fills."""

    class Frequencies(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("values", torch.zeros(3), persistent=False)

    class Setting(Own):
        def __init__(self):
            super().__init__()
            self.frequencies = Frequencies()

        def _init_weights(self, module):
            if isinstance(module, Frequencies):
                module.values.copy_(torch.arange(3) / 4)

    with META:
        model = Setting()
    batch = torch.ones(2, 3), torch.ones(2, 1)
    task = TrainTask([batch], nn.MSELoss(), optimizers.SGD(0.1))
    loop = Loop(model, task, progress=False, random_seed=0)
    with pytest.raises(CheckpointError, match=r"place, linear.weight, linear.bias \(3 in all\)"):
        loop.run(1)
    assert loop.model.frequencies.values.tolist() == [0.0, 0.25, 0.5]


def test_numbers_of_others_are_the_same_with_and_without():
    """The process's generators go on from where they were."""
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = wide()
        torch.manual_seed(3)
        task = TrainTask(rows(0, 1), nn.CrossEntropyLoss(), optimizers.SGD(0.1))
        Loop(model, task, progress=False)
        found.append(torch.rand(()))

    assert found[0] == found[1]
