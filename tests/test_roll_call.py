"""Who does not answer is named, with what it did; nobody waits for a store that does not answer."""

import threading
import time
from concurrent import futures

import patience
import pytest

from trax_torch import _last_words, _roll_call

dist = pytest.importorskip("torch.distributed")

SIZE = 4


def rolls(store):
    return [_roll_call.Roll(store, "1", rank, SIZE) for rank in range(SIZE)]


def call(roll, name, meeting=None):
    """Waits in vain in a phase; calls the roll once all who meet have answered it."""
    with roll.phase(name, is_told=False):
        roll.answer()
        if meeting is not None:
            meeting.wait()
        return roll.call()


def call_together(some, names):
    """Has some call the roll, none before all of them have answered, and returns what they say."""
    meeting = threading.Barrier(len(some), timeout=120)
    with futures.ThreadPoolExecutor(len(some)) as pool:
        return list(pool.map(call, some, names, [meeting] * len(some)))


def test_who_is_silent_is_named_by_all_others_and_told_so_itself():
    everyone = rolls(dist.HashStore())
    with everyone[2].phase("hashing its part", is_told=True):
        found = call_together([everyone[i] for i in (0, 1, 3)], ["in step 4"] * 3)
        silent = everyone[2].call()

    for rank, said in zip((0, 1, 3), found, strict=True):
        assert said == (
            f"rank 2 (last heard of: hashing its part). This is rank {rank}, in step 4."
        )
    assert silent == (
        "rank 0 (in step 4) and rank 1 (in step 4) and rank 3 (in step 4) gave up, since this one, "
        "rank 2, was silent. This is rank 2, hashing its part."
    )
    assert everyone[0].call() == found[0]


def test_what_a_rank_has_ended_and_what_it_never_told_is_no_news_of_what_it_does(monkeypatch):
    monkeypatch.setattr(_roll_call, "_PATIENCE", 0.0)
    everyone = rolls(dist.HashStore())
    with everyone[1].phase("in run()", is_told=True), everyone[1].phase("in step 3", is_told=False):
        pass

    assert call(everyone[0], "in step 4").startswith(
        "rank 1 (last heard of: no longer in run()) and rank 2 (last heard of: nothing) and rank 3"
    )


def test_where_all_wait_each_says_in_what():
    everyone = rolls(dist.HashStore())
    found = call_together(everyone, ["in step 4", "in step 4", "in step 5", "in step 4"])

    assert found[0].startswith(
        "the others wait in vain, too: rank 1 (in step 4), rank 2 (in step 5)"
    )


def test_a_thread_beside_has_a_roll_of_its_own():
    store = dist.HashStore()
    everyone = rolls(store)
    for each in everyone[1:]:
        each.answer()
    beside = [each.beside() for each in everyone]
    for each in beside[2:]:
        each.answer()

    assert "rank 1 (last heard of: nothing). This" in beside[0].call()
    assert everyone[0].call().startswith("the others wait in vain, too")


class Stopped:
    """A store on a rank that is stopped: it takes what is said, and answers nothing."""

    def set(self, *args):
        pass

    def check(self, keys):
        threading.Event().wait(60)


@pytest.mark.parametrize("of_agent", [False, True])
def test_a_store_that_does_not_answer_stands_for_who_keeps_it(of_agent, monkeypatch):
    monkeypatch.setattr(_last_words, "_PATIENCE", 0.1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(of_agent))
    began = time.monotonic()
    said = call(rolls(Stopped())[1], "in step 4")

    keeps = "its machine keeps" if of_agent else "it keeps"
    assert said.startswith(f"rank 0, or the way to it: the store that {keeps} for all does not")
    assert time.monotonic() - began < patience.SOON


def test_without_a_store_nobody_is_accused():
    assert call(rolls(None)[1], "in step 4") == "which one is not known. This is rank 1, in step 4."
