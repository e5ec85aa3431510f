"""Machines with folders of their own: each keeps its part, and all go on from one step."""

import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import pieces
import pytest
import ranks
import torch

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import own_folders, storage

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

ALL_CALLS = [pytest.param(i, 1, marks=pytest.mark.exhaustive) for i in (0, 1)]


def folders_of(folder, n):
    return [pathlib.Path(pieces.own_folder(folder, i)) for i in range(n)]


def own_files(folder):
    """The files that the manifests of a folder list and that are its own, and themselves."""
    return [name for name in pieces.files_of(folder) if (folder / name).exists()]


def loaded(rank, folder):
    return pieces.weights_of(pieces.make_loop(rank, 2, folder).model)


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_two_machines_go_on_from_what_each_has_in_a_folder_of_its_own(strategy, tmp_path):
    """As one process does, up to rounding; under hsdp each has all pieces."""
    cut = tmp_path / "cut"
    start = functools.partial(pieces.run_apart, size=4, n_beside=2, strategy=strategy)
    one = functools.partial(pieces.run, size=1, folder=None, until=8)
    wanted = ranks.values(tmp_path / "a", 1, one)[0]
    for until in (4, 8):
        found = ranks.values(
            tmp_path / f"b{until}", 4, functools.partial(start, folder=cut, until=until)
        )

    for name, weights in wanted.items():
        np.testing.assert_allclose(found[0][name], weights, rtol=1e-6, atol=1e-9)
    for i, folder in enumerate(folders_of(cut, 2)):
        ranks_of = {name.split(".")[-2] for name in os.listdir(folder) if ".rank" in name}
        assert ranks_of == {f"rank{2 * i}", f"rank{2 * i + 1}"}
        assert sorted(x.name for x in folder.iterdir() if x.is_file()) == own_files(folder)
        if strategy == "hsdp":
            assert storage.read(str(folder), "model")[1]["step"] == 8
    if strategy == "hsdp":
        alone = ranks.values(tmp_path / "c", 2, functools.partial(loaded, folder=folder))
        assert all(np.array_equal(alone[0][name], found[0][name]) for name in wanted)


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize(("victim", "every"), [(0, 43), (1, 37), *ALL_CALLS])
def test_a_rank_that_dies_leaves_a_step_that_all_folders_have(tmp_path, victim, every, blocking):
    """Whole, the old one or the new one; new ranks go on from it, and clean up."""
    folder, left, n, step = tmp_path / "run", [], 0, 1
    how = {"folder": folder, "blocking": blocking}
    again = functools.partial(pieces.go_on_apart, **how)
    assert ranks.values(tmp_path / "first", 2, again) == [0, 0]
    while True:
        n += every
        work = functools.partial(pieces.die_apart, **how, victim=victim, n=n)
        found = ranks.outcomes(tmp_path / f"{n}", 2, work)
        if found[victim][0] == "value":
            break
        assert found[victim] == ("signal", signal.SIGKILL)
        (now, same) = ranks.values(tmp_path / f"{n}again", 2, again)
        assert now == same
        left.append(now - step)
        step = now + 1

    assert len(left) >= 43 // every
    assert set(left) <= {0, 1}
    assert 0 in left
    for each in folders_of(folder, 2):
        assert sorted(os.listdir(each)) == own_files(each)


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize(("victim", "every"), [(0, 11), (1, 7), *ALL_CALLS])
def test_a_full_disk_of_one_machine_is_an_error_on_all_and_the_next_save_works(
    tmp_path, victim, every, blocking
):
    folder = tmp_path / "run"
    how = {"folder": folder, "blocking": blocking, "victim": victim, "every": every}
    (left, other) = ranks.values(tmp_path / "ranks", 2, functools.partial(pieces.full_apart, **how))

    assert left == other
    assert len(left) >= 40 // every
    assert set(left) <= {0, 1}
    assert 0 in left


@pytest.mark.parametrize(
    ("lost", "text"),
    [(0, "is in {} of rank 1, and not of rank 0. Copy"), (1, "when the files of all are in one")],
)
def test_a_folder_that_is_lost_is_told_and_nothing_begins_afresh(lost, text, tmp_path):
    """What is left of them is put together."""
    folder = tmp_path / "run"
    again = functools.partial(pieces.go_on_apart, folder=folder, blocking=True)
    ranks.values(tmp_path / "first", 2, again)
    one, other = folders_of(folder, 2)
    kept = shutil.copytree((one, other)[lost], tmp_path / "kept")
    shutil.rmtree((one, other)[lost])
    found = ranks.outcomes(tmp_path / "lost", 2, again)

    for rank, (kind, name, said) in enumerate(found):
        assert (kind, name) == ("error", "CheckpointError")
        assert text.format(folders_of(folder, 2)[rank]) in said
    there = (one, other)[1 - lost]
    for path in kept.glob("model.*.rank*"):
        shutil.copy(path, there)
    assert pieces.step_in(there) == 1


def swept(rank, folder):
    """Who is beside this rank, and what is left, where ranks wait for days and for minutes."""
    world, found = _distributed.join(), []
    for timeout in (100_000.0, 300.0):
        waiting = dataclasses.replace(world, timeout=timeout)
        found.append(own_folders.ranks_beside(str(folder), waiting))
        world.all_agree(True)  # all have taken their marks away
        found.append(sorted(os.listdir(folder)))
        world.all_agree(True)
    return found


def test_marks_of_starts_that_were_killed_are_swept_once_nobody_looks_for_them(tmp_path):
    """What is younger than a day, or than ranks wait, may be of a start that is under way."""
    young, other = f".beside.{'1' * 16}.0", ".beside.notes"
    old = [f".beside.{'0' * 16}.{i}" for i in (0, 12)]
    folder, now = tmp_path / "run", time.time()
    folder.mkdir()
    for name in (*old, young, other):
        (folder / name).touch()
        age = 80_000 if name == young else 90_000  # seconds; a day has 86,400
        os.utime(folder / name, (now - age, now - age))

    for found in ranks.values(tmp_path / "ranks", 2, functools.partial(swept, folder=folder)):
        assert found == [[0, 1], [*old, young, other], [0, 1], [young, other]]


def fill_up(rank, folder):
    """Saves to a disk that is full on rank 1, and then is not; returns what was raised."""
    saves = pieces.SavesApart(rank, folder, blocking=True)
    filler = f"{saves.folder}/filler"
    if rank:
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(fd, b"\0" * 4096)
        os.close(fd)
    with pytest.raises(CheckpointError) as raised:
        saves.save(1, ["model"])
    if rank:
        os.unlink(filler)
    nothing, _ = saves.read()
    saves.save(2, ["model"])
    return str(raised.value), nothing, saves.read()[0]


def test_a_disk_that_is_full_in_truth_is_told_by_all(tmp_path):
    disk = pathlib.Path(pieces.own_folder(tmp_path / "run", 1))
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk is mounted by root alone")
    try:
        found = ranks.values(
            tmp_path / "ranks", 2, functools.partial(fill_up, folder=tmp_path / "run")
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    for said, nothing, step in found:
        assert "No space left on device" in said
        assert (nothing, step) == (0, 2)
