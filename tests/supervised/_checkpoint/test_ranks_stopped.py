"""A rank that falls in a save: the others say which, and in what; no checkpoint is a mixture."""

import functools
import os
import signal
import time

import patience
import pieces
import pytest
import ranks
import torch

from trax_torch import _last_words, _roll_call

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

# Who stops, and when.
PHASES = [
    (1, "hashing its part"),
    (1, "writing its part"),
    (1, "waiting for all parts"),
    (1, "waiting for the chief's list"),
    (1, "waiting for the chief to commit"),
    (0, "waiting for the chief to begin"),
    (0, "hashing its part"),
    (0, "writing its part"),
    (0, "listing the parts"),
    (0, "committing"),
]
FALLS = [("stopped", *each) for each in PHASES]
FALLS += [(fate, *PHASES[i]) for fate in ("slow", "killed") for i in (1, 7, 9)]
QUICK = {("foreground", *FALLS[0]), ("background", *FALLS[9])}
CASES = [
    pytest.param(
        *(way, *fall),
        id=f"{way} save, rank {fall[1]} {fall[0]} {fall[2]}",
        marks=[] if (way, *fall) in QUICK else pytest.mark.exhaustive,
    )
    for way in ("foreground", "background")
    for fall in FALLS
]


def fallen(path, size, victim, fate, work):
    """Starts the ranks, one of which falls; a stopped one goes on when the others have ended.

    Returns:
      What each rank came to; nothing that comes from itself where it was killed.
    """
    there = ranks.start(path, size, work)
    until = time.monotonic() + ranks.LIMIT
    found = {i: rank.wait(until) for i, rank in enumerate(there) if i != victim}
    if fate == "stopped":
        os.kill(there[victim].pid, signal.SIGCONT)
    found[victim] = there[victim].wait(until)
    return [found[rank] for rank in range(size)]


def assert_is_named(way, fate, victim, phase, path, timeout):
    """Asserts it of ranks that give each other up after so many seconds."""
    folder = path / "run"
    how = {"folder": folder, "blocking": way == "foreground"}
    ranks.values(path / "first", 2, functools.partial(pieces.save_first, folder=folder))
    work = functools.partial(
        pieces.fall_in, **how, victim=victim, phase=phase, fate=fate, timeout=timeout
    )
    found = fallen(path / fate, 3, victim, fate, work)
    for came_to in found:
        print(came_to)

    began = float((path / "run.stopped").read_text())
    assert pieces.step_in(folder) in (1, 2)
    itself = found.pop(victim)
    seconds = [when - began for _, (_, when) in found]
    print(f"| {way} | {fate} | {victim} | {phase} | {max(seconds):.1f} |")
    for _, (said, _) in found:
        named = f"rank {victim} (last heard of: {phase}"
        is_store_there = victim or fate == "slow"
        assert (named if is_store_there else "rank 0, or the way to it: ") in said
        assert "of step 2. (" in said
    if fate == "killed":
        assert itself == ("signal", signal.SIGKILL)
        assert max(seconds) < patience.SOON
    else:
        assert itself[1][0].startswith("RankError: Another rank is gone or does not answer: ")
        assert timeout / 2 < min(seconds) <= max(seconds) < timeout + patience.SOON
    step = pieces.step_in(folder)
    ranks.values(path / "again", 2, functools.partial(pieces.save_again, **how))
    assert pieces.step_in(folder) == step + 1


@pytest.mark.parametrize(("way", "fate", "victim", "phase"), CASES)
def test_a_rank_that_falls_in_a_save_is_named_with_what_it_did(
    way, fate, victim, phase, tmp_path, monkeypatch
):
    """Within the timeout; the old checkpoint is there or the new one; it ends, too, when it can."""

    def check(timeout):
        monkeypatch.setattr(_roll_call, "_PATIENCE", timeout / 3)
        monkeypatch.setattr(_last_words, "_PATIENCE", timeout / 1.5)
        path = tmp_path / f"within{timeout}"
        path.mkdir()
        assert_is_named(way, fate, victim, phase, path, timeout)

    patience.with_more_time(check, 3, 20, 60)
