"""Workers end with what they work for, however that ends."""

import functools
import gc
from multiprocessing.process import BaseProcess

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trax_torch.supervised import EvalTask, Loop, TrainTask


class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(24, 2, 1))


ROWS = TensorDataset(torch.zeros(24, 1), torch.zeros(24, 1))
LOADERS = {
    "rows": lambda: DataLoader(ROWS, 4, num_workers=2),
    "persistent": lambda: DataLoader(ROWS, 4, num_workers=2, persistent_workers=True),
    "iterable": lambda: DataLoader(Numbers(), 4, num_workers=2, collate_fn=pair),
}


def pair(rows):
    return tuple(torch.stack(rows).unbind(1))


@pytest.mark.slow
@pytest.mark.parametrize("n_eval_batches", [2, None])
@pytest.mark.parametrize("name", LOADERS)
def test_workers_of_a_run_that_is_let_go_of_end_at_once(name, n_eval_batches, monkeypatch):
    """Midway in passes, of training and of evals: nobody waits to end them by force."""
    ended = []
    monkeypatch.setattr(BaseProcess, "terminate", ended.append)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60)  # for 5 seconds
    loader = LOADERS[name]()
    rate = functools.partial(torch.optim.SGD, lr=1e-6)
    task = TrainTask(loader, nn.MSELoss(), rate)
    evals = EvalTask(loader, nn.MSELoss(), n_eval_batches=n_eval_batches)
    loop = Loop(nn.Linear(1, 1), task, eval_tasks=evals, eval_at=lambda step: step == 2)
    loop.run(8)

    del loader, task, evals, loop
    gc.collect()

    assert ended == []
