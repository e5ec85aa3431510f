"""Each rank saves its own part, and a checkpoint is whole, or the one before is."""

import collections
import functools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pieces
import pytest
import ranks
import torch

import trax_torch
from trax_torch.supervised import training
from trax_torch.supervised._checkpoint import inventory, shards, stand_in, storage

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


ALL_CALLS = [pytest.param(i, 1, marks=pytest.mark.exhaustive) for i in (0, 1)]


def bytes_of_ranks(folder):
    """How many bytes each rank wrote of pieces, by the manifest of 'model'."""
    shards = json.loads((folder / "model.json").read_text())["shards"]
    found = collections.Counter()
    for part in shards.values():
        for entry in part["files"]:
            assert (folder / entry["name"]).stat().st_size == entry["size"]
            found[entry["name"].split(".")[-2]] += entry["size"] - entry["header"]
    return found


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_four_ranks_go_on_bit_for_bit_from_what_each_has_saved(tmp_path, background):
    """Every tensor is in pieces but counts of steps; each rank writes its part of the bytes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start = functools.partial(pieces.run, size=4, background_saves=background)
    ranks.values(tmp_path / "a", 4, functools.partial(start, folder=whole, until=8))
    for i, until in enumerate((4, 8)):
        ranks.values(tmp_path / f"b{i}", 4, functools.partial(start, folder=cut, until=until))

    assert training.differences(str(whole), str(cut)) == []
    n_bytes = bytes_of_ranks(cut)
    assert sum(n_bytes.values()) == 3 * 8 * sum(p.numel() for p in pieces.model().parameters())
    assert n_bytes.keys() <= {f"rank{i}" for i in range(4)}
    assert len(n_bytes) == 4


def test_a_run_goes_on_with_four_ranks_then_two_one_and_three(tmp_path):
    """As one process does, up to rounding; then with whole weights on each rank."""
    (alone,) = ranks.values(
        tmp_path / "1", 1, functools.partial(pieces.run, size=1, folder=None, until=20)
    )
    folder = tmp_path / "run"
    for until, size in ((4, 4), (8, 2), (12, 1), (16, 3)):
        found = ranks.values(
            tmp_path / f"fsdp{size}",
            size,
            functools.partial(pieces.run, size=size, folder=folder, until=until),
        )
    found = ranks.values(
        tmp_path / "ddp",
        2,
        functools.partial(pieces.run, size=2, folder=folder, until=20, strategy="ddp"),
    )

    for weights in found:
        for name, value in alone.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of 4 ranks, and the weights that it ended with."""
    path = tmp_path_factory.mktemp("saved")
    work = functools.partial(pieces.run, size=4, folder=path / "run", until=4)
    return path / "run", ranks.values(path / "ranks", 4, work)[0]


def loaded(rank, size, folder, strategy):
    loop = pieces.make_loop(rank, size, folder, strategy=strategy)
    return loop.step, pieces.weights_of(loop.model)


@pytest.mark.parametrize(
    ("size", "strategy"), [(4, "fsdp"), (2, "fsdp"), (3, "fsdp"), (1, "fsdp"), (2, "ddp")]
)
def test_any_number_of_ranks_reads_what_four_have_saved(tmp_path, saved, size, strategy):
    folder, weights = saved
    work = functools.partial(loaded, size=size, folder=folder, strategy=strategy)

    for step, found in ranks.values(tmp_path, size, work):
        assert step == 4
        assert found.keys() == weights.keys()
        assert all(np.array_equal(found[name], weights[name]) for name in weights)


def loaded_lean(rank, folder, is_shared):
    """Loads; returns the weights, and how many numbers were read one by one and are held."""
    loop = pieces.make_loop(rank, 3, None)
    n_read, read = [], shards.Saved.read

    def counted(self, box=None):
        tensor = read(self, box)
        n_read.append(tensor.numel())
        return tensor

    shards.Saved.read = counted  # in a process of its own
    loop.load_checkpoint(str(folder) if is_shared or rank == 0 else f"{folder}_of_{rank}")
    n_held = sum(p.to_local().numel() for p in loop.model.parameters())
    return pieces.weights_of(loop.model), sum(n_read), n_held


@pytest.mark.parametrize("size", [1, 2], ids=["one process", "two ranks"])
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "the chief's"])
def test_each_rank_reads_its_part_of_what_was_saved_whole_or_in_pieces(tmp_path, size, is_shared):
    """Or the chief reads all, where others do not see the folder."""
    folder = tmp_path / "run"
    work = functools.partial(pieces.run, size=size, folder=folder, until=4)
    weights = ranks.values(tmp_path / "saved", size, work)[0]
    work = functools.partial(loaded_lean, folder=folder, is_shared=is_shared)

    for rank, (found, n_read, n_held) in enumerate(ranks.values(tmp_path / "loaded", 3, work)):
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
        if is_shared:
            n_steps = len(weights)  # Adam's counts, which the chief reads for all
            # Weights and two slots; weights once more, since all is compared before any is set.
            assert n_read == (3 + 1) * n_held + (n_steps if rank == 0 else 0)
        else:
            assert n_read == 0 or (rank == 0 and size == 2)


def test_what_four_ranks_have_saved_fills_a_model(saved):
    folder, weights = saved
    model = pieces.model()
    trax_torch.load_weights(model, str(folder))

    assert all(np.array_equal(v.numpy(), weights[k]) for k, v in model.state_dict().items())


def test_a_tensor_on_any_mesh_is_saved_and_read_on_any_other(tmp_path):
    """Rows, columns, replicas, two axes at once; types that safetensors has not, too."""
    folder = str(tmp_path / "run")
    for differences in ranks.values(
        tmp_path, 4, functools.partial(pieces.save_layouts, folder=folder)
    ):
        assert differences == []

    shards = json.loads((tmp_path / "run" / "model.json").read_text())["shards"]["weights"]
    n_pieces = {name: len(each["pieces"]) for name, each in shards["tensors"].items()}
    assert n_pieces["replicas torch.float32"] == 1
    assert n_pieces["replicas of shards torch.float32"] == 2
    assert n_pieces["two axes torch.float32"] == 4
    assert n_pieces["empty"] == 0
    (tmp_path / "run" / "model.pkl.gz").unlink()
    aside = stand_in.put_aside_if_removed(folder, "model")  # with all of its pieces
    for name, tensor in storage.read(aside, "model")[0]["weights"].items():
        if name != "empty":
            assert torch.equal(tensor, pieces.whole_of(0, dtype=tensor.dtype))
    sizes = [file.stat().st_size for file in Path(aside).glob("*.safetensors")]
    assert inventory.found_in(aside)[0].n_bytes == sum(sizes) > 0


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize(
    ("victim", "every"),
    [(0, 13), (1, 5), *ALL_CALLS],
)
def test_a_save_that_fails_on_a_rank_leaves_the_old_or_the_new(tmp_path, victim, every, blocking):
    """At each of its calls; all ranks go on, and the next save is whole and cleans up."""
    folder = tmp_path / "run"
    work = functools.partial(
        pieces.fail_everywhere, folder=folder, blocking=blocking, victim=victim, every=every
    )
    (left, step), *_ = ranks.values(tmp_path / "ranks", 2, work)

    assert len(left) >= (120 if victim == 0 else 24) // every
    assert set(left) == {0, 1}
    assert pieces.step_in(folder) == pieces.step_in(folder, f"model_{step + 1}") == step + 1
    assert sorted(os.listdir(folder)) == pieces.files_of(folder)


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize(
    ("victim", "every"),
    [(0, 23), (1, 4), *ALL_CALLS],
)
def test_a_rank_that_dies_in_a_save_leaves_the_old_or_the_new(tmp_path, victim, every, blocking):
    """At each of its calls; the others say that it is gone, and new ranks clean up."""
    folder, left, n = tmp_path / "run", [], 0
    named = f"Another rank is gone or does not answer: rank {victim}"
    again = functools.partial(pieces.save_again, folder=folder, blocking=blocking)
    ranks.values(tmp_path / "first", 2, functools.partial(pieces.save_first, folder=folder))
    while True:
        n += every
        step = pieces.step_in(folder)
        work = functools.partial(
            pieces.die_at, folder=folder, blocking=blocking, victim=victim, n=n
        )
        found = ranks.outcomes(tmp_path / str(n), 2, work)
        if found[victim][0] == "value":
            break
        assert found[victim] == ("signal", signal.SIGKILL)
        left.append(pieces.step_in(folder) - step)
        other = found[1 - victim]
        assert other[0] == "value" or (other[1] == "RankError" and named in other[2]), other

    ranks.values(tmp_path / "again", 2, again)
    assert len(left) >= (60 if victim == 0 else 12) // every
    assert set(left) <= {0, 1}
    assert 0 in left
    assert pieces.step_in(folder) == step + 2
    assert sorted(os.listdir(folder)) == pieces.files_of(folder)
