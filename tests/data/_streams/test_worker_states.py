"""Workers tell where their generators are, and others take their places."""

import pytest
import torch
from drawing_rows import Rows, seed_numpy
from torch.utils.data import DataLoader

from trax_torch.data._streams.worker_states import WorkerStates

N_WORKERS, N_AHEAD = 2, 3


def loader_of(states, dataset=None, **kwargs):
    begin, collate = states.watched(seed_numpy, torch.utils.data.default_collate)
    return DataLoader(
        dataset or Rows(),
        num_workers=N_WORKERS,
        worker_init_fn=begin,
        collate_fn=collate,
        prefetch_factor=N_AHEAD,
        generator=torch.Generator().manual_seed(1),
        **kwargs,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("context", "cuts"), [("fork", (2, 10, 22)), ("spawn", (10,))])
def test_workers_that_take_places_draw_what_would_have_come(context, cuts):
    """After any number of batches, though those are made ahead; and once more by these."""
    states = WorkerStates(N_WORKERS, N_AHEAD)
    whole, places = [], []
    for batch in loader_of(states, multiprocessing_context=context):
        whole.append(batch)
        n_rounds = len(whole) // N_WORKERS
        places.append([states.after(worker, n_rounds) for worker in range(N_WORKERS)])

    for n in cuts:
        twin = WorkerStates(N_WORKERS, N_AHEAD, places[n - 1])
        drawn = iter(loader_of(twin, multiprocessing_context=context))
        assert all(torch.equal(next(drawn), batch) for batch in whole[n : n + 9])
        for worker in range(N_WORKERS):
            assert torch.equal(twin.after(worker, 0), places[n - 1][worker])
            assert torch.equal(twin.after(worker, 4), places[n + 7][worker])


@pytest.mark.slow
def test_of_workers_that_draw_nothing_there_is_nothing_to_tell():
    states = WorkerStates(N_WORKERS, N_AHEAD)
    for _ in loader_of(states, Rows(draws=False)):
        pass

    assert [states.after(worker, 20) for worker in range(N_WORKERS)] == [None, None]
