"""Whatever breaks a save, and wherever, a checkpoint that was acknowledged is not lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest
import torch
from programs import children, crashing
from saboteur import Saboteur
from toys import assert_same_run, let_others_in, line_loop, state_of

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import saver as _saver
from trax_torch.supervised._checkpoint import storage, verify
from trax_torch.supervised.history import History


def parts_of(step):
    return {
        "weights": {"w": torch.full((2, 3), float(step))},
        "state": {"n": torch.tensor(step)},
        "opt_slots0": {},
    }


def history_of(steps):
    history = History()
    for step in steps:
        history.append("train", "loss", step, 1 / step)
        if step % 2:
            history.append("eval", "metrics/accuracy", step, step / 10)
    return history


def save(saver, steps, blocking=True):
    """Saves the last of some steps, with the history of all."""
    step, history = steps[-1], history_of(steps)
    names, info = ["model", f"model_{step}"], {"step": step}
    saver.save(names, parts_of(step), info, history, blocking)
    saver.wait()


def saver_at(path, name):
    """A saver of a run that has gone on from a checkpoint."""
    saver = _saver.Saver(str(path), _distributed.join(), keep_last=2)
    manifest, (_, info) = storage.read_manifest(str(path), name), storage.read(str(path), name)
    saver.goes_on_from(name, manifest, History.from_dict(info["history"]))
    return saver


def steps_in(path, steps):
    """The step of each checkpoint of a folder, which all are whole.

    Args:
      path: the folder.
      steps: of the history of each, by its last step.
    """
    found = {}
    for manifest in path.glob("*.json"):
        parts, info = storage.read(str(path), manifest.stem)
        step = info["step"]
        assert parts["state"]["n"].item() == step
        assert torch.equal(parts["weights"]["w"], parts_of(step)["weights"]["w"])
        assert History.from_dict(info["history"]).to_dict() == history_of(steps[step]).to_dict()
        assert manifest.stem in ("model", f"model_{step}")
        found[manifest.stem] = step
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2."""
    path = tmp_path_factory.mktemp("saved")
    saver = _saver.Saver(str(path), _distributed.join(), keep_last=2)
    save(saver, [1])
    save(saver, [1, 2])
    assert steps_in(path, {1: [1], 2: [1, 2]}) == {"model": 2, "model_1": 1, "model_2": 2}
    return path


@pytest.mark.parametrize(
    ("begin", "blocking"),
    [("model", True), ("model", False), ("model_1", True)],
    ids=["foreground", "background", "went back"],
)
@pytest.mark.parametrize("how", [OSError, KeyboardInterrupt, "death"])
def test_a_save_broken_anywhere_leaves_the_old_or_the_new(tmp_path, saved, how, blocking, begin):
    """At every call, in a child of its own for death: nothing is mixed; the next save cleans up.

    What is saved takes the place of an older checkpoint, pushes another out (keep_last), and
    appends to the history; or, after going back, writes it anew, for there is more in the file.
    """
    n, outcomes = 0, set()
    new = [1, 2, 3] if begin == "model" else [1, 3]
    of_step = {1: [1], 2: [1, 2], 3: new}
    while True:
        n += 1
        path = tmp_path / str(n)
        shutil.copytree(saved, path)
        saver = saver_at(path, begin)
        is_broken = break_save(saver, n, how, new, blocking)
        steps = steps_in(path, of_step)
        if not is_broken:
            break

        outcomes.add(steps["model"])
        assert steps["model"] in (2, 3)
        assert len(steps) >= 3  # 'model' and two permanent ones
        if how == "death":
            saver = saver_at(path, "model" if steps["model"] == 3 else begin)
        save(saver, new)
        assert steps_in(path, of_step) == {"model": 3, "model_2": 2, "model_3": 3}
        n_histories = 1 if begin == "model" else 2
        assert len(list(path.iterdir())) == 3 * 4 + n_histories + 1  # and the lock

    assert steps == {"model": 3, "model_2": 2, "model_3": 3}
    assert outcomes == {2, 3}
    assert n > 80


def break_save(saver, n, how, steps, blocking):
    """Breaks the n-th call of a save; returns whether there was one."""
    if how == "death":
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                Saboteur(patch, n, how)
                save(saver, steps, blocking)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        saboteur = Saboteur(patch, n, how)
        with contextlib.suppress(CheckpointError, KeyboardInterrupt):
            save(saver, steps, blocking)
    return saboteur.count >= n


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize("how", [OSError, KeyboardInterrupt])
def test_a_save_that_fails_leaves_the_run_as_it_was(tmp_path, how, blocking):
    """At every call: training state untouched, and the run goes on and saves as if nothing was."""
    at = {"dropout": 0.3, "checkpoint_at": lambda step: False}
    twin, loop = line_loop(**at), line_loop(tmp_path, **at)

    def save():
        loop.save_checkpoint("model", blocking=blocking)
        loop._saver.wait()

    save()
    n, is_broken = 0, True
    while is_broken:
        n += 1
        before = state_of(loop)
        with pytest.MonkeyPatch.context() as patch:
            saboteur = Saboteur(patch, n, how)
            with contextlib.suppress(CheckpointError, KeyboardInterrupt):
                save()
        is_broken = saboteur.count >= n
        after = state_of(loop)
        loop.run(1)
        twin.run(1)
        save()

        assert all(torch.equal(before[key], after[key]) for key in before)
        assert storage.read(str(tmp_path), "model")[1]["step"] == loop.step

    assert n > 40
    assert_same_run(loop, twin)
    assert_same_run(line_loop(tmp_path, **at), twin)


def files_left_in(path):
    """The files of checkpoints in a folder that no manifest lists."""
    files = {p.name for p in path.iterdir()} - {".lock", "train", "eval"}
    for path_of_one in path.glob("*.json"):
        manifest = json.loads(path_of_one.read_text())
        entries = [*manifest["files"].values(), manifest["history"]]
        files -= {path_of_one.name, *(entry["name"] for entry in entries if entry)}
    return files


@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [30, pytest.param(100, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_kills_lose_nothing_that_was_acknowledged(tmp_path, background, n_kills):
    """`kill -9` at random; what was said to be saved is there or newer, whole; nothing grows."""
    chance = random.Random(7)
    folder, said = tmp_path / "run", tmp_path / "run.said"
    for kill in range(n_kills):
        n_said = len(said.read_text()) if said.exists() else 0
        child = children.start(crashing.train_and_tell, folder, background)
        waited = time.monotonic()
        while kill % 5 and time.monotonic() < waited + 600:  # at every fifth, it may just begin
            if said.exists() and len(said.read_text()) > n_said:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        assert children.ended(child) == -signal.SIGKILL
        last = dict(line.split() for line in said.read_text().splitlines()) if n_said else {}
        permanent = sorted(int(p.stem[6:]) for p in folder.glob("model_*.json"))
        left = files_left_in(folder) if folder.exists() else set()

        assert len(left) <= 32  # those of a save or two that were broken off, and no more
        for name, step in last.items():
            if name in ("model", "lowest_L2Loss") or int(step) in permanent[-2:]:
                assert storage.read(str(folder), name)[1]["step"] >= int(step)
        for manifest in folder.glob("*.json"):
            assert storage.read(str(folder), manifest.stem) is not None

    loop = crashing.make_loop(folder, background)
    loop.run(40 - loop.step % 20)
    twin = crashing.make_loop(None, random_seed=0)
    twin.run(loop.step)
    assert files_left_in(folder) == set()
    assert len(list(folder.glob("model_*.json"))) == 2
    assert_same_run(loop, twin)


@contextlib.contextmanager
def small_disk(path, size):
    """Mounts a file system of so many bytes; skips the test where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() or not shutil.which("mount") or subprocess.call(command, stderr=-3):
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.check_call(["umount", "-l", str(path)])


def test_a_full_disk_is_spoken_of_and_lived_through(tmp_path):
    """Whatever is left of it: path and reason, the old one intact; with space, all goes on."""
    twin = line_loop(**crashing.AT)
    with small_disk(tmp_path / "disk", 512 * 1024):
        folder, ballast = tmp_path / "disk" / "run", tmp_path / "disk" / "ballast"
        loop = line_loop(folder, **crashing.AT)
        n_free, is_refused = 0, True
        while is_refused:
            fill(ballast, n_free)
            is_refused = crashing.breaks_off(loop, twin, "No space left on device")
            n_free += 4096
            ballast.unlink()
            loop.save_checkpoint("model")
            assert crashing.step_in(folder) == loop.step
        assert files_left_in(folder) == set()
        assert_same_run(line_loop(folder, **crashing.AT), twin)

    assert n_free > 3 * 4096


def fill(path, n_free):
    """Fills a disk with a file, but for so many bytes."""
    disk = os.statvfs(path.parent)
    path.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - n_free)))


def test_files_that_may_not_grow_are_spoken_of_and_lived_through(tmp_path):
    """As a quota has it: a limit of their size, which is lifted again."""
    assert children.run(crashing.save_under_limits, tmp_path) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_that_turns_read_only_is_spoken_of_and_lived_through(tmp_path):
    """In a child that is not root; also one that belongs to somebody else from the start."""
    let_others_in(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "ours", 12345, 12345)

    assert children.run(crashing.save_as_nobody, tmp_path) == 0


def test_a_permanent_checkpoint_that_a_crash_prevented_is_made_up_for(tmp_path, monkeypatch):
    """It comes after the one to go on from, and is just as it would have been."""
    folders = [tmp_path / "whole", tmp_path / "cut"]
    crashing.make_loop(folders[0]).run(5)
    save = storage.Folder.save

    def save_or_die(self, basename, *what):
        if basename == "model_4":
            raise KeyboardInterrupt
        return save(self, basename, *what)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage.Folder, "save", save_or_die)
        crashing.make_loop(folders[1]).run(5)
    assert not (folders[1] / "model_4.json").exists()
    crashing.make_loop(folders[1]).run(1)

    assert verify.differences(*map(str, folders), "model_4") == []


def test_a_wait_that_is_broken_off_leaves_the_save_in_flight(tmp_path, monkeypatch):
    """The next save does not write into the copy that the last one is made of."""
    gate, write = threading.Event(), storage._write
    monkeypatch.setattr(storage, "_write", lambda *what: gate.wait(600) and write(*what))
    saver = _saver.Saver(str(tmp_path), _distributed.join())
    saver.save(["model"], parts_of(1), {"step": 1}, history_of([1]), blocking=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_saver.futures, "wait", interrupt)
        saver.save(["model"], parts_of(2), {"step": 2}, history_of([1, 2]), blocking=False)
    gate.set()
    saver.wait()

    assert steps_in(tmp_path, {1: [1]}) == {"model": 1}


def interrupt(*_):
    raise KeyboardInterrupt
