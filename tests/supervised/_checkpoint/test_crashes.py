"""Whatever breaks a save, and wherever, a checkpoint that was acknowledged is not lost."""

import builtins
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
import safetensors.torch
import torch
from programs import children, crashing
from toys import assert_same_run, let_others_in, line_loop, state_of

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import saver as _saver
from trax_torch.supervised._checkpoint import storage, verify

CALLS = {
    os: "mkdir rename replace fsync fstat stat lstat chmod open close unlink rmdir listdir scandir",
    builtins: "open",
    safetensors.torch: "save_file",
    storage: "_write",
}
WRITERS = ("save_file", "_write")


class Saboteur:
    """Breaks the n-th file-system call of a save; of one that writes, after half of the file.

    Args:
      n: which call, counted from 1; 0 breaks none.
      how: what is raised; or 'death', which kills the process.
    """

    def __init__(self, patch, n, how):
        self.n, self.how, self.count = n, how, 0
        for owner, names in CALLS.items():
            for name in names.split():
                patch.setattr(owner, name, self.wrap(name, getattr(owner, name)))

    def wrap(self, name, call):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                if name in WRITERS:
                    self.n = 0  # what it calls itself is not to break
                    call(*args, **kwargs)
                    path = next(a for a in args if isinstance(a, str))
                    os.truncate(path, os.path.getsize(path) // 2)
                if self.how == "death":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise self.how("sabotage")
            return call(*args, **kwargs)

        return wrapped


def parts_of(step):
    return {
        "weights": {"w": torch.full((2, 3), float(step))},
        "state": {"n": torch.tensor(step)},
        "opt_slots0": {},
    }


def save(saver, step, blocking=True):
    saver.save(["model", f"model_{step}"], parts_of(step), {"step": step}, blocking)
    saver.wait()


def steps_in(path):
    """The step of each checkpoint of a folder, which all are whole."""
    steps = {}
    for manifest in path.glob("*.json"):
        parts, info = storage.read(str(path), manifest.stem)
        assert parts["state"]["n"].item() == info["step"]
        assert torch.equal(parts["weights"]["w"], parts_of(info["step"])["weights"]["w"])
        assert manifest.stem in ("model", f"model_{info['step']}")
        steps[manifest.stem] = info["step"]
    return steps


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2."""
    path = tmp_path_factory.mktemp("saved")
    saver = _saver.Saver(str(path), _distributed.join(), keep_last=2)
    save(saver, 1)
    save(saver, 2)
    assert steps_in(path) == {"model": 2, "model_1": 1, "model_2": 2}
    return path


@pytest.mark.parametrize("blocking", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize("how", [OSError, KeyboardInterrupt, "death"])
def test_a_save_broken_anywhere_leaves_the_old_or_the_new(tmp_path, saved, how, blocking):
    """At every call, in a child of its own for death: nothing is mixed; the next save cleans up.

    What is saved takes the place of an older checkpoint, and pushes another out (keep_last).
    """
    n, outcomes = 0, set()
    while True:
        n += 1
        path = tmp_path / str(n)
        shutil.copytree(saved, path)
        saver = _saver.Saver(str(path), _distributed.join(), keep_last=2)
        is_broken = break_save(saver, n, how, blocking)
        steps = steps_in(path)
        if not is_broken:
            break

        outcomes.add(steps["model"])
        assert steps["model"] in (2, 3)
        assert len(steps) >= 3  # 'model' and two permanent ones
        save(saver, 3)
        assert steps_in(path) == {"model": 3, "model_2": 2, "model_3": 3}
        assert len(list(path.iterdir())) == 3 * 4 + 1  # and the lock

    assert steps == {"model": 3, "model_2": 2, "model_3": 3}
    assert outcomes == {2, 3}
    assert n > 80


def break_save(saver, n, how, blocking):
    """Breaks the n-th call of a save of step 3; returns whether there was one."""
    if how == "death":
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                Saboteur(patch, n, how)
                save(saver, 3, blocking)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        saboteur = Saboteur(patch, n, how)
        with contextlib.suppress(CheckpointError, KeyboardInterrupt):
            save(saver, 3, blocking)
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
    for manifest in path.glob("*.json"):
        entries = json.loads(manifest.read_text())["files"].values()
        files -= {manifest.name, *(entry["name"] for entry in entries)}
    return files


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_thirty_kills_lose_nothing_that_was_acknowledged(tmp_path, background):
    """`kill -9` at random; what was said to be saved is there or newer, whole; nothing grows."""
    chance = random.Random(7)
    folder, said = tmp_path / "run", tmp_path / "run.said"
    for kill in range(30):
        n_said = len(said.read_text()) if said.exists() else 0
        child = children.start(crashing.train_and_tell, folder, background)
        waited = time.monotonic()
        while kill % 5 and time.monotonic() < waited + 60:  # at every fifth, it may just begin
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
    monkeypatch.setattr(storage, "_write", lambda *what: gate.wait(60) and write(*what))
    saver = _saver.Saver(str(tmp_path), _distributed.join())
    saver.save(["model"], parts_of(1), {"step": 1}, blocking=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_saver.futures, "wait", interrupt)
        saver.save(["model"], parts_of(2), {"step": 2}, blocking=False)
    gate.set()
    saver.wait()

    assert steps_in(tmp_path) == {"model": 1}


def interrupt(*_):
    raise KeyboardInterrupt
