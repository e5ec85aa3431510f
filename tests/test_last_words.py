"""What a rank that fails says reaches others; nobody waits for a store that is cut off."""

import threading
import time

import patience
import pytest

from trax_torch import _last_words
from trax_torch._last_words import Words, heard

dist = pytest.importorskip("torch.distributed")


def two(store):
    both = [Words(store, rank) for rank in (0, 1)]
    for words in both:
        words.begin()
    return both


def test_the_first_words_of_a_call_are_read_by_the_others():
    one, other = two(dist.HashStore())
    assert other.read() is None
    one.leave(ValueError("no such file"))
    other.leave(KeyError("later"))
    assert other.read() == "On rank 0: ValueError: no such file "
    other.begin()
    assert other.read() is None


def test_what_all_have_heard_is_not_said_again():
    one, other = two(dist.HashStore())
    one.leave(heard(ValueError("told already")))
    assert other.read() is None


def test_without_a_store_nobody_hears_anything():
    one, other = two(None)
    one.leave(ValueError("lost"))
    assert other.read() is None


class CutOff:
    """A store that answers while its network is there."""

    def __init__(self, is_gone):
        self.is_gone, self.is_cut = is_gone, False

    def add(self, key, n):
        return n

    def check(self, keys):
        if self.is_gone:
            raise ConnectionError("gone")
        threading.Event().wait(60 if self.is_cut else 0)
        return False

    def compare_set(self, *args):
        self.check([])


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch, is_gone):
    monkeypatch.setattr(_last_words, "_PATIENCE", 0.1)
    store = CutOff(is_gone)
    one, other = two(store)
    store.is_cut = True
    began = time.monotonic()
    one.leave(ValueError("unheard"))
    assert other.read() is None
    assert time.monotonic() - began < patience.SOON
