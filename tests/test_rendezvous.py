"""Ranks find each other under a name of their own, whatever an earlier start left behind."""

import datetime
import time
from concurrent.futures import ThreadPoolExecutor

import patience
import pytest
import torch.distributed as dist

from trax_torch._rendezvous import agreed_name

LIMIT = datetime.timedelta(seconds=120)


def start(store, size, late=()):
    """The names that ranks come to; some come later than others."""

    def one(rank):
        time.sleep(0.2 * (rank in late))
        return agreed_name(store, rank, size, LIMIT)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("late", [(), (0,), (1,), (1, 2)])
def test_each_start_has_one_name_and_another_than_before(late):
    """With as many ranks as before, more, or fewer; the first of them may be the last to come."""
    store = dist.HashStore()
    names = [start(store, size, late) for size in (3, 3, 2, 4, 3)]

    assert all(len(set(each)) == 1 for each in names)
    assert len({each[0] for each in names}) == 5


def test_ranks_that_died_on_the_way_are_not_waited_for_nor_taken_for_others():
    """One has said its word, one has been answered, and the first had begun to answer."""
    store = dist.HashStore()
    store.set("word of 1", "of a dead rank")
    store.set("word of 2", "of another")
    store.set("answer to of another", "an old name")
    store.set("an old name got by 2", "")

    (name,) = set(start(store, 3, late=(1, 2)))
    assert name != "an old name"


@pytest.mark.parametrize("missing", [0, 1])
def test_who_does_not_come_is_an_error_within_the_limit(missing):
    began = time.monotonic()
    with pytest.raises(dist.DistError, match="ranks \\[1\\]" if missing else "timeout"):
        agreed_name(dist.HashStore(), 1 - missing, 2, datetime.timedelta(seconds=0.3))
    assert time.monotonic() - began < patience.SOON
