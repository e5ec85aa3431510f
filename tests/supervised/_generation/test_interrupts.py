"""A call that is interrupted leaves the model, its lock and autograd as they were."""

import json
import subprocess
import sys

import pytest
import ranks
import torch
from programs import interrupted

from trax_torch import layers as tl
from trax_torch.layers._predict import Block, lock_of


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_interrupts_at_any_moment_leave_nothing_behind(seed):
    """Ctrl-C in a notebook: the next call, in any thread, is what it was."""
    command = [sys.executable, interrupted.__file__, str(seed), "160"]
    done = subprocess.run(
        command, env=ranks.environment(), capture_output=True, text=True, check=True, timeout=300
    )
    told = json.loads(done.stdout)

    assert told["n_hit"] > 40
    assert (told["wrong"], told["same"]) == ([], [True] * len(interrupted.CALLS))


class Breaks(Exception):
    pass


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
    assert lock_of(model).held.acquire(blocking=False)
    lock_of(model).held.release()
