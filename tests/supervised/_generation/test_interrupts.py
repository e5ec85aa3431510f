"""A call that is interrupted leaves the model, its lock and autograd as they were."""

import json
import subprocess
import sys

import pytest
import ranks
import torch
from programs import interrupted

from trax_torch import layers as tl
from trax_torch.layers._predict import Block


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_interrupts_at_any_moment_leave_nothing_behind(seed):
    """Ctrl-C in a notebook: the next call, in any thread, is what it was."""
    command = [sys.executable, interrupted.__file__, str(seed), "160"]
    done = subprocess.run(
        command, env=ranks.environment(), capture_output=True, text=True, check=True, timeout=1200
    )
    told = json.loads(done.stdout)

    assert told["n_hit"] > 40
    assert (told["wrong"], told["same"]) == ([], [True] * len(interrupted.CALLS))


class Breaks(KeyboardInterrupt):
    pass


class BreaksIn:
    """Raises as a function of given files is entered, or a generator of them resumed: the n-th.

    That is where a signal is raised. It counts, too, so with n = 0 it tells how many there are.
    """

    def __init__(self, files, n):
        self._files, self._n = files, n
        self.n_entered = 0

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, arg):
        if event == "call" and frame.f_code.co_filename.endswith(self._files):
            self.n_entered += 1
            if self.n_entered == self._n:
                raise Breaks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("i", range(len(interrupted.CALLS)))
def test_a_call_that_breaks_where_any_block_is_entered_or_left_leaves_nothing_behind(i):
    """Not when the collector comes, which may be much later: at once."""
    model = interrupted.make_model()
    files = (
        "contextlib.py",
        "checks.py",
        "engine.py",
        "block.py",
        "mode.py",
        "place.py",
        "quiet.py",
    )
    call = interrupted.CALLS[i]
    wanted = str(call(model, 1))
    with BreaksIn(files, 0) as counts:
        call(model, 1)
    assert counts.n_entered > 50

    kept = []
    for n in range(1, counts.n_entered + 1):
        try:
            with BreaksIn(files, n):
                call(model, 1)
        except Breaks as error:
            kept.append(error)  # as a notebook keeps the last one, with all its frames
        wrong = interrupted.what_is_wrong(model)
        assert wrong == [], n

    assert len(kept) > 0.98 * counts.n_entered  # a destructor's errors, Python drops
    assert str(call(model, 1)) == wanted


def test_a_block_that_breaks_on_its_way_in_is_left():
    """What was done before is undone."""
    events = []

    class Broken(Block):
        def _run(self):
            events.append("in")
            try:
                raise Breaks
                yield
            finally:
                events.append("out")

    with pytest.raises(Breaks), Broken():
        pass

    assert events == ["in", "out"]


def test_predict_mode_that_is_broken_off_while_it_is_left_is_left(monkeypatch):
    """Its own look at the order of blocks may be interrupted."""
    model = tl.Serial(tl.Dense(3), tl.GRU(3))
    model.init(torch.zeros(1, 2, 3), rng=0)
    run = model.predict(1)

    def broken():
        raise Breaks

    monkeypatch.setattr(run, "_is_innermost", broken)
    with pytest.raises(Breaks), run:
        assert model.mode == "predict"

    assert model.mode == "train"
    assert not any(layer._place.is_lent for layer in (model, *model.sublayers))
