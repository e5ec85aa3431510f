"""Weights come to ranks that have parts of them a tensor at a time, each rank reading its own."""

import ctypes
import functools
import gc
import os

import numpy as np
import pytest
import ranks
import safetensors.torch
import torch
from live_bytes import Peak
from torch import nn
from trax_checkpoints import ADAM

import trax_torch
from trax_torch import _distributed, models, optimizers
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._checkpoint import Checkpointer, tensor_files
from trax_torch.supervised._loop import counting

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

WIDTH = 65  # which ranks divide unevenly


def net():
    """Weights of rows, of one row, a tied one, and statistics."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(12)]
    layers[3].weight = layers[2].weight
    return nn.Sequential(*layers, nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1))


def rows(rank, size):
    while True:
        x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0)).chunk(size)[rank]
        yield x, x[:, :1], torch.ones(len(x), 1)


def make_loop(rank, size, folder=None, optimizer=None, **kwargs):
    with torch.device("meta"):
        model = net()
    task = TrainTask(rows(rank, size), tl.L2Loss(), optimizer or optimizers.Adam(0.01))
    settings = {"progress": False, "verbose": False, "random_seed": 0, "device": "cpu"}
    return Loop(
        model,
        task,
        output_dir=None if folder is None else str(folder),
        checkpoint_at=lambda step: False,
        strategy="fsdp",
        resume_data="restart",
        **settings,
        **kwargs,
    )


def numbers(module):
    tensors = module.state_dict().items()
    return {name: _distributed.whole(tensor).numpy().copy() for name, tensor in tensors}


def save(rank, size, folder):
    loop = make_loop(rank, size, folder)
    loop.run(2)
    return numbers(loop.model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two ranks, its weights as files of others, and as numbers."""
    folder = tmp_path_factory.mktemp("saved")
    weights = ranks.values(
        folder / "ranks", 2, functools.partial(save, size=2, folder=folder / "run")
    )[0]
    trax_torch.export(folder / "run", folder / "whole.safetensors")
    trax_torch.export(folder / "run", folder / "several", max_shard_size=60_000)
    return folder, weights


def gone_on(rank, size, folder):
    """Bytes in tensors at most while a run was built and gone on with, and left; its weights."""
    counting._N_NUMBERS = 1000  # of a gradient, looked at together; the weights here are small
    gc.collect()
    with Peak() as peak:
        loop = make_loop(rank, size, folder, save_at_end=False)
    slots = [x for slots in loop.optimizers[0].state.values() for x in slots.values()]
    kept = [*loop.model.parameters(), *(x for x in slots if isinstance(x, torch.Tensor))]
    share = sum(_distributed.local(x).nbytes for x in kept)
    step, weights = loop.step, numbers(loop.model)
    loop.run(1)
    return peak.most, share, step, weights, numbers(loop.model)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_on_the_meta_device_goes_on_with_no_more_memory_than_its_part(saved, size, tmp_path):
    """What is read comes in the place of what was made, bit for bit."""
    folder, weights = saved
    run = functools.partial(gone_on, size=size, folder=folder / "run")
    largest = 4 * WIDTH * WIDTH

    for peak, share, step, found, later in ranks.values(tmp_path, size, run):
        assert step == 2
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
        assert all(np.isfinite(x).all() for x in later.values())
        assert any(not np.array_equal(found[name], later[name]) for name in weights)
        assert peak < share + 6 * largest < 1.6 * share


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def freed(rank, folder):
    """By how many bytes a process shrank when slots made room, and how many they had."""
    found, make_room = [], Checkpointer._make_room

    def watched(self):
        slots = [
            x for each in self._members.trainers[0].optimizer.state.values() for x in each.values()
        ]
        n_bytes = sum(_distributed.local(x).nbytes for x in slots if isinstance(x, torch.Tensor))
        before = resident()
        make_room(self)
        found.append((before - resident(), n_bytes))

    Checkpointer._make_room = watched  # in a process of its own
    make_loop(rank, 3, folder, save_at_end=False)
    return found


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps what is freed"
)
def test_memory_of_slots_that_make_room_goes_back_to_the_system(saved, tmp_path):
    """So no rank keeps holes into which what is read does not fit."""
    work = functools.partial(freed, folder=saved[0] / "run")

    for found in ranks.values(tmp_path, 3, work):
        ((n_bytes, n_slots),) = found
        assert n_bytes > 0.5 * n_slots > 0


def steps_of_momentum(rank, size, folder, n_before):
    for n in (n_before, 4):
        loop = make_loop(rank, size, folder, optimizers.Momentum(0.01))
        loop.run(until=n)
    return numbers(loop.model)


def test_slots_that_an_optimizer_copies_come_in_the_place_of_what_it_made(tmp_path):
    """Momentum loads its slots in a way of its own; a run that was cut is the run."""
    found = [
        ranks.values(
            tmp_path / f"ranks{n}",
            2,
            functools.partial(steps_of_momentum, size=2, folder=tmp_path / f"{n}", n_before=n),
        )[0]
        for n in (2, 4)
    ]

    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def filled(rank, size, place):
    """Weights from a place, how many bytes were read for them, and how many are held."""
    loop = make_loop(rank, size)
    n_read, read = [], tensor_files.TensorFile.read_into

    def counted(self, tensor, *args):
        n_read.append(tensor.nbytes)
        return read(self, tensor, *args)

    tensor_files.TensorFile.read_into = counted  # in a process of its own
    gc.collect()
    with Peak() as peak:
        trax_torch.load_weights(loop.model, place)
    share = sum(_distributed.local(p).nbytes for p in loop.model.parameters())
    return numbers(loop.model), sum(n_read), share, peak.most


@pytest.mark.parametrize("name", ["run", "whole.safetensors", "several", "the index"])
def test_a_model_in_parts_is_filled_from_files_each_rank_reading_its_own(saved, name, tmp_path):
    """Of a run's checkpoint, one file, or several as Hugging Face's libraries lay them out."""
    folder, weights = saved
    index = "several/model.safetensors.index.json"
    place = str(folder / (index if name == "the index" else name))
    work = functools.partial(filled, size=2, place=place)

    for found, n_read, share, peak in ranks.values(tmp_path, 2, work):
        assert found.keys() == weights.keys()
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
        # Twice, since a file is to be known to be whole; the tied weights are compared, too, and
        # come under both names; and there are statistics.
        n_tied, n_statistics = 4 * WIDTH * WIDTH, 4 * 5 * 4 * WIDTH
        assert n_read < 2 * share + 2 * n_tied + 2 * (n_tied / 2 + 4 * WIDTH) + n_statistics
        assert peak < share + 2 * n_tied < 0.75 * sum(x.nbytes for x in weights.values())


def test_several_files_fill_a_model_in_one_process(saved):
    folder, weights = saved
    model = net()
    trax_torch.load_weights(model, folder / "several")

    assert all(np.array_equal(x, weights[name]) for name, x in numbers(model).items())


def damaged(rank, size, place):
    loop = make_loop(rank, size)
    before = numbers(loop.model)
    try:
        trax_torch.load_weights(loop.model, place)
    except CheckpointError as error:
        said = str(error)
    after = numbers(loop.model)
    return said, all(np.array_equal(before[name], after[name]) for name in before)


def test_a_damaged_file_leaves_parts_as_they_were(saved, tmp_path):
    _, weights = saved
    tensors = {name: torch.from_numpy(x) for name, x in weights.items()}
    safetensors.torch.save_file(tensors, tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-8])
    (tmp_path / "bad.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')

    for name in ("cut.safetensors", "bad.safetensors.index.json"):
        work = functools.partial(damaged, size=2, place=str(tmp_path / name))
        for said, is_as_it_was in ranks.values(tmp_path / f"ranks {name}", 2, work):
            assert f"{name} is damaged" in said
            assert is_as_it_was


def from_trax(rank, place, strategy):
    """Weights that Trax saved, into a model and into a run, with slots; a rank's part of all."""
    x = np.ones((4, 12), np.int64)
    task = TrainTask(
        [(x, x, np.ones(x.shape, np.float32))],
        tl.WeightedCategoryCrossEntropy(),
        optimizers.Adam(0.001),
    )
    settings = {"progress": False, "verbose": False, "random_seed": 0, "device": "cpu"}
    sizes = {"d_model": 16, "d_ff": 16, "n_layers": 1, "n_heads": 2, "max_len": 32}
    filled, loop = (
        Loop(models.TransformerLM(13, **sizes), task, strategy=strategy, **settings) for _ in "ab"
    )
    trax_torch.load_weights(filled.model, place)
    loop.load_checkpoint(place)
    slots = {
        f"{name} {key}": _distributed.whole(value).numpy().copy()
        for name, weight in loop.model.named_parameters()
        for key, value in loop.optimizers[0].state[weight].items()
    }
    found = {"a model's": numbers(filled.model), "a run's": numbers(loop.model), "slots": slots}
    loop.run(1)
    weights = list(loop.model.parameters())
    part = sum(_distributed.local(w).numel() for w in weights) / sum(w.numel() for w in weights)
    return found, loop.step, part


def test_traxs_files_are_poured_into_parts(tmp_path):
    """Weights, and the slots that a run goes on with, as in one process."""
    work = functools.partial(from_trax, place=str(ADAM.parent))
    wanted, step, part = work(0, strategy="ddp")
    assert (step, part) == (3, 1.0)
    assert any(x.any() for x in wanted["slots"].values())

    for found, step, part in ranks.values(tmp_path, 2, functools.partial(work, strategy="fsdp")):
        for kind, theirs in wanted.items():
            assert found[kind].keys() == theirs.keys()
            assert all(np.array_equal(found[kind][name], theirs[name]) for name in theirs)
        assert step == 3
        assert 0.4 < part < 0.6
