"""A run that is asked to stop, stops at a whole step, and the next one goes on from there."""

import errno
import os
import signal
import threading

import pytest
from programs import children, runs
from programs.runs import Blow, Setup
from toys import assert_same_run, line_loop

from trax_torch import _signals
from trax_torch._errors import CheckpointError
from trax_torch.supervised import TrainingStepCallback
from trax_torch.supervised._checkpoint import storage, verify


def step_in(folder, name="model"):
    return storage.read(str(folder), name)[1]["step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody disturbed; workers and where they save change nothing."""
    folder = tmp_path_factory.mktemp("whole")
    assert children.run(runs.train, folder, Setup()) == 0
    return folder


def assert_ends_as(folder, whole):
    """Asserts that every checkpoint of two folders is the same, and that neither has more."""
    names = {p.stem for p in whole.glob("*.json")}
    assert {p.stem for p in folder.glob("*.json")} == names
    assert {n: verify.differences(str(folder), str(whole), n) for n in names} == {
        n: [] for n in names
    }


SAVED_AT = {"step": 5, "save": 4, "evals": 6}  # where the blow falls is where the run is saved


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("to_group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("place", ["step", "save", "evals", "data"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_leaves_the_checkpoint_of_a_whole_step(
    tmp_path, whole, signum, place, to_group, n_workers
):
    """Wherever it comes: exit code 143 or 130, and the resumed run ends as if nothing had been."""
    setup = Setup(n_workers=n_workers)
    blow = Blow(SAVED_AT.get(place, 5), place, signum, to_group)

    code = children.run(runs.train, tmp_path, setup, blow)
    saved = step_in(tmp_path)
    children.run(runs.train, tmp_path, setup)

    assert code == 128 + signum
    assert saved == SAVED_AT.get(place, saved)
    assert 0 < saved < runs.N_STEPS
    assert_ends_as(tmp_path, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_while_workers_begin_leaves_a_whole_step(tmp_path, whole, signum):
    """One gets it before it knows what it asks, and begins all the same."""
    setup, blow = Setup(n_workers=2), Blow(signum=signum, to_group=True)

    code = children.run(runs.train_and_strike_a_worker_that_begins, tmp_path, setup, blow)
    saved = step_in(tmp_path)
    children.run(runs.train, tmp_path, setup)

    assert code == 128 + signum
    assert saved < runs.N_STEPS  # 0 where those of the first epoch are slow to begin
    assert_ends_as(tmp_path, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_second_signal_exits_at_once(tmp_path, signum):
    """In the middle of the step, without another save."""
    blow = Blow(5, "step", signum, n_times=2, apart=1.1)
    code = children.run(runs.train, tmp_path, Setup(), blow)

    assert code == 128 + signum
    assert step_in(tmp_path) == 4


@pytest.mark.parametrize("to_group", [False, True], ids=["alone", "group"])
def test_a_signal_that_is_passed_on_as_well_is_one(tmp_path, to_group):
    """A launcher and a terminal both send it; the step ends in good order, and workers go on."""
    blow = Blow(5, "step", signal.SIGINT, to_group, n_times=2, apart=0.2, echo=60.0)
    code = children.run(runs.train, tmp_path, Setup(n_workers=2), blow)

    assert code == 130
    assert step_in(tmp_path) == 5


def test_a_signal_that_is_ignored_stays_so(tmp_path, whole):
    """As `nohup` and a shell's background jobs have it."""
    blow = Blow(5, "step", signal.SIGINT, to_group=True)

    code = children.run(runs.train_ignoring_signals, tmp_path, Setup(n_workers=2), blow)

    assert code == 0
    assert_ends_as(tmp_path, whole)


def test_a_thread_may_run_a_loop(tmp_path):
    """Where Python takes no signals: handlers are left as they are, and the run is the same."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    class Look(TrainingStepCallback):
        def on_step_end(self, step):
            seen.append(signal.getsignal(signal.SIGTERM))

    loop, twin = line_loop(tmp_path / "one", callbacks=[Look]), line_loop(tmp_path / "two")
    thread = threading.Thread(target=loop.run, args=(6,))
    thread.start()
    thread.join()
    twin.run(6)

    assert seen == [before] * 6
    assert_same_run(loop, twin)


def test_handlers_are_as_they_were_after_a_run():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    line_loop().run(1)

    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_at_the_very_end_of_a_run_is_heard(tmp_path):
    """While the last save is waited for, say: the run is saved, and the process ends."""

    class EndsUnderFire(TrainingStepCallback):
        def on_run_end(self, step):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        line_loop(tmp_path, callbacks=[EndsUnderFire]).run(7)

    assert caught.value.code == 143
    assert step_in(tmp_path) == 7


def test_a_signal_too_late_to_save_is_heard(monkeypatch):
    """Between the last look at it and the end of its handler."""
    with pytest.raises(SystemExit) as caught, _signals.Stopper():
        os.kill(os.getpid(), signal.SIGINT)

    assert caught.value.code == 130


def test_a_signal_does_not_hide_that_a_save_in_the_background_failed(tmp_path, monkeypatch):
    """The end of the process tells it, where an exit code alone would not."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    class Ask(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 5:
                self._loop._saver.wait()
                monkeypatch.setattr(storage, "_write", fail)
                os.kill(os.getpid(), signal.SIGTERM)

    loop = line_loop(tmp_path, background_saves=True, callbacks=[Ask])
    with pytest.raises(CheckpointError, match="somewhere: No space left on device"):
        loop.run(9)

    assert step_in(tmp_path) == 1
