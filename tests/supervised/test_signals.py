"""A run that is asked to stop, stops at a whole step, and the next one goes on from there."""

import itertools
import signal

import pytest
from programs import children, runs
from programs.runs import Blow, Setup

from trax_torch.supervised import _checkpoint, _verify


def step_in(folder, name="model"):
    return _checkpoint.read(str(folder), name)[1]["step"]


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
    assert {n: _verify.differences(str(folder), str(whole), n) for n in names} == {
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
