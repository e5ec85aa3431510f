"""Workers of loaders, and what ranks say of one another."""

import gc
import weakref
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import ranks
import torch
import torch.distributed as dist
from torch import nn

from trax_torch import _torch_private as private
from trax_torch._last_words import Words


def test_a_loader_keeps_its_workers_in_its_iterator():
    """Workers that persist lie elsewhere: two streams that share a loader disturb each other."""
    loader = torch.utils.data.DataLoader(range(4), num_workers=1, persistent_workers=True)
    first = iter(loader)

    assert iter(loader) is first
    assert iter(private.loader_without_workers(loader)) is not first


def test_workers_hear_of_their_end_in_a_collection(monkeypatch):
    """Unless they wait in other queues: each that was not told is waited for, and then ended."""
    ended = []
    monkeypatch.setattr(BaseProcess, "terminate", ended.append)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60)  # for 5 seconds
    loader = torch.utils.data.DataLoader(range(40), num_workers=2)
    holder = SimpleNamespace(iterator=iter(loader))
    holder.itself = holder  # so that a collection ends it
    gone = weakref.ref(holder.iterator)
    private.end_workers_at_once(holder.iterator)
    next(holder.iterator)
    del holder
    gc.collect()

    assert gone() is None
    assert ended == []


def test_without_the_queues_that_there_were_a_pass_ends_all_the_same():
    """A release that has others, and workers that are only slower to end."""
    iterator = iter(torch.utils.data.DataLoader(range(4)))  # it has none
    private.end_workers_at_once(iterator)

    assert len(list(iterator)) == 4


def _texts(rank):
    found = {}
    dist.init_process_group("cpu:gloo")
    for_gpus = dist.new_group(backend="cuda:gloo")
    try:
        dist.all_reduce(torch.ones(1), group=for_gpus)
    except RuntimeError as error:
        found["backend"] = private.lacks_a_backend(error), str(error)
    words = Words(private.meeting_store(), rank)
    words.leave(ValueError("mine"))
    found["store"] = words.read()
    words.begin()
    found["store later"] = words.read()
    two = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    two.forward = lambda x: two[0](x)
    parallel = nn.parallel.DistributedDataParallel(two)
    try:
        for _ in range(2):
            parallel(torch.ones(1)).sum().backward()
    except RuntimeError as error:
        found["unused"] = private.asks_to_find_unused(error), str(error)
    if rank == 1:
        return found
    try:
        for _ in range(1000):
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        found["gone"] = private.is_of_gloo(error), type(error).__name__, str(error)
    return found


def test_errors_between_ranks_are_known_by_their_words(tmp_path):
    """torch says in other words that a rank is gone, a weight unused, or a device without a way."""
    first, other = ranks.values(tmp_path, 2, _texts)

    assert first["store"] in ("On rank 0: ValueError: mine ", "On rank 1: ValueError: mine ")
    assert other["store"] == first["store"]
    assert first["store later"] is None
    assert first["backend"][0], first["backend"]
    assert first["unused"][0], first["unused"]
    assert first["gone"][0] or issubclass(getattr(dist, first["gone"][1], int), dist.DistError)
