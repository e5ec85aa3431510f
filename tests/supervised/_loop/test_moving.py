"""Batches come to the device whole, whatever they are and whatever it computes meanwhile."""

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._loop.moving import Mover

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Graphs:
    """An object that moves itself."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Graphs(self.x.to(device))


class Mapping(dict):
    """A dict of a kind of its own."""


def batch_of():
    return (
        torch.arange(6.0).view(2, 3).t(),
        [np.arange(3), 2.5],
        Mapping(a=torch.ones(2, dtype=torch.bfloat16)),
        Graphs(torch.ones(2)),
        "a text",
    )


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=needs_gpu)])
def test_all_that_a_batch_holds_is_moved(device):
    """Also objects that know how to, and what is in mappings; texts stay."""
    x, (array, number), mapping, graphs, text = Mover(torch.device(device))(batch_of())

    for tensor in (x, array, number, mapping["a"], graphs.x):
        assert tensor.device.type == device
    assert (x.shape, x.stride()) == ((3, 2), (1, 3))
    assert (array.dtype, mapping["a"].dtype) == (torch.int64, torch.bfloat16)
    assert text == "a text"


@needs_gpu
def test_a_gpu_computes_with_each_batch_as_it_was():
    """Though it is behind, and each batch is dropped, and its memory taken, as soon as may be."""
    move, total = Mover(torch.device("cuda")), torch.zeros(4, device="cuda", dtype=torch.float64)
    for i in range(50):
        (x,) = move((torch.full((1 << 20,), float(i)),))
        torch.cuda._sleep(2_000_000)
        total += torch.stack(
            [x.double().mean(), x.double().min(), x.double().max(), x[-1].double()]
        )
        del x

    assert total.tolist() == [sum(range(50))] * 4


@needs_gpu
def test_the_host_is_one_batch_ahead_and_no_more():
    """While a GPU computes with one batch the next one comes; the host waits with a third."""
    move = Mover(torch.device("cuda"))
    batch, computed = (torch.ones(1 << 20),), []
    for _ in range(4):
        move(batch)
        assert all(event.query() for event in computed[:-1])
        torch.cuda._sleep(200_000_000)
        computed.append(torch.cuda.Event())
        computed[-1].record()

    assert not computed[-1].query()


@needs_gpu
def test_a_run_on_a_gpu_is_the_one_on_batches_that_were_there():
    def run(to):
        torch.manual_seed(0)
        x = torch.randn(8, 16, 4)
        model = nn.Linear(4, 1).cuda()
        data = [(row.to(to), row.sum(1, keepdim=True).to(to)) for row in x]
        task = TrainTask(data, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        loop = Loop(model, task, random_seed=0, progress=False, device="cuda")
        loop.run(20)
        return [p.detach().cpu() for p in model.parameters()]

    assert all(map(torch.equal, run("cpu"), run("cuda")))
