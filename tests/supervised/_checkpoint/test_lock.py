"""One writer a folder, also in one process; and a lock ends with who took it."""

import fcntl
import logging
import os
import subprocess
import sys
import threading

import pytest
from toys import line_loop

from trax_torch._errors import CheckpointError
from trax_torch.supervised import TrainingStepCallback
from trax_torch.supervised._checkpoint import lock, storage

needs_ofd = pytest.mark.skipif(
    not hasattr(fcntl, "F_OFD_SETLK"), reason="needs open-file-description locks"
)
TRY = "import sys; from trax_torch.supervised._checkpoint.lock import FolderLock\n"
TRY += "with FolderLock(sys.argv[1]).held(): pass"


def others_may_write(folder):
    """Whether another process gets the lock."""
    ended = subprocess.run([sys.executable, "-c", TRY, str(folder)], capture_output=True, text=True)
    assert not ended.returncode or "Another process is training" in ended.stderr, ended.stderr
    return not ended.returncode


def is_refused(folder_lock, words):
    """Whether it is not to be had, in these words."""
    try:
        with folder_lock.held():
            return False
    except CheckpointError as error:
        return words in str(error)


@needs_ofd
def test_a_second_lock_of_one_process_is_refused_and_leaves_the_first(tmp_path):
    first, second = lock.FolderLock(str(tmp_path)), lock.FolderLock(str(tmp_path))
    with first.held():
        with first.held():  # its own, several times over
            pass
        for _ in range(2):
            assert is_refused(second, "or another Loop of this one")
        assert not others_may_write(tmp_path)
    with second.held():
        pass
    assert others_may_write(tmp_path)


@needs_ofd
def test_a_loop_built_inside_a_run_is_refused_and_told_what_to_do(tmp_path):
    class BuildsOne(TrainingStepCallback):
        def on_step_end(self, step):
            with pytest.raises(CheckpointError, match="give it none, and call load_checkpoint"):
                line_loop(tmp_path)
            reader = line_loop(None)
            reader.load_checkpoint(str(tmp_path))
            steps.append(reader.step)

    steps = []
    loop = line_loop(
        tmp_path, callbacks=[BuildsOne], checkpoint_at=lambda step: True, eval_at=lambda step: False
    )
    loop.save_checkpoint("model")
    loop.run(2)

    assert steps == [0, 1]
    assert line_loop(tmp_path).step == 2


@needs_ofd
def test_of_two_threads_one_trains_and_the_other_is_told(tmp_path):
    """Whatever their order: the folder is whole, and of the one that trained."""
    loops, errors = [line_loop(tmp_path, random_seed=seed) for seed in (1, 2)], []

    def run(loop):
        try:
            loop.run(30)
        except CheckpointError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (error,) = errors
    assert "Another process is training" in error or "has trained into" in error
    assert sorted(loop.step for loop in loops) == [0, 30]
    (winner,) = [loop for loop in loops if loop.step]
    assert storage.read(str(tmp_path), "model")[1]["seed"] == winner._state.seed


@needs_ofd
def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    """A DataLoader's workers look for their parent every few seconds only."""
    code = (
        "import os, sys, time\n"
        "from trax_torch.supervised._checkpoint.lock import FolderLock\n"
        "with FolderLock(sys.argv[1]).held():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        time.sleep(600)\n"
        "        os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        is_free = others_may_write(tmp_path)
        parent.kill()
    try:
        assert not is_free
        os.kill(child, 0)  # it is there
        with lock.FolderLock(str(tmp_path)).held():
            pass
    finally:
        os.kill(child, 9)


@needs_ofd
def test_a_fork_leaves_the_parents_lock_alone(tmp_path):
    with lock.FolderLock(str(tmp_path)).held():
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not others_may_write(tmp_path)


def test_without_such_locks_processes_are_kept_apart_and_that_is_told(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(lock, "_SETLK", None)
    lock._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING, "trax_torch"):
        for _ in range(2):
            with lock.FolderLock(str(tmp_path)).held():
                assert not others_may_write(tmp_path)

    (record,) = caplog.records
    assert "no open-file-description locks" in record.getMessage()
    assert "other Loops of this process are not" in record.getMessage()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "outside")

    assert is_refused(lock.FolderLock(str(tmp_path / "run")), "Could not open")
    assert not (tmp_path / "outside").exists()
