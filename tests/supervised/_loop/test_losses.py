"""The shortest way from a batch to the loss of a foreign model is the way through all layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._loop import losses

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.linear(x * mask)


class Tupled(nn.Module):
    """Returns more than the loss wants."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x), x


class WithLoss(nn.Module):
    """Computes its own loss."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, y):
        return {"loss": F.cross_entropy(self.linear(x), y)}


CASES = {
    "module and module": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, Y)),
    "a function": (lambda: nn.Linear(4, 3), F.cross_entropy, (X, Y)),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)),
        nn.CrossEntropyLoss(),
        (X, Y),
    ),
    "two inputs": (Two, nn.CrossEntropyLoss(), (X, torch.ones(6, 4), Y)),
    "a tuple": (Tupled, nn.CrossEntropyLoss(), (X, Y)),
    "all outputs and the batch": (
        Tupled,
        lambda outputs, batch: F.cross_entropy(outputs[0], batch[1]),
        (X, Y),
    ),
    "its own loss": (WithLoss, None, {"x": X, "y": Y}),
    "by name": (Two, nn.CrossEntropyLoss(), {"x": X, "mask": torch.ones(6, 4), "labels": Y}),
    "elementwise": (lambda: nn.Linear(4, 4), nn.MSELoss(), (X, X)),
}


def forever(batch):
    while True:
        yield batch


def loop_of(make, loss, batch):
    torch.manual_seed(2)
    model = make()
    task = TrainTask(forever(batch), loss, torch.optim.SGD(model.parameters(), 0.1))
    return Loop(model, task, random_seed=0, progress=False, verbose=False, device="cpu")


@pytest.mark.filterwarnings("ignore:The model returns")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_shortest_way_gives_the_same_loss_and_gradients(case):
    """To the last bit, as model and loss in series do, in whose layers each is called."""
    loop = loop_of(*case)
    trainer = loop._parts.trainers[0]
    both = trainer.model_with_loss
    assert losses.Straight.can_take(both)
    batch = loop._parts.meetings[0].arranged(case[2])
    found = []
    for way in (both, losses.Straight(both)):
        torch.manual_seed(7)
        loss = way(batch)
        found.append((loss, *torch.autograd.grad(loss, list(both.parameters()))))

    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_step_calls_no_modules_but_the_users():
    """So it takes no longer than it must; who listens to all modules hears of those."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    loop = loop_of(lambda: model, nn.CrossEntropyLoss(), (X, Y))
    called = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: called.append(type(module).__name__)
    )
    try:
        loop.run(1)
    finally:
        handle.remove()

    assert called == ["Sequential", "Linear", "ReLU", "Linear", "CrossEntropyLoss"]


@pytest.mark.parametrize("bad", [(X[:, :3], Y), (X, Y[:5]), (X,), (X, Y, Y), (X, Y.float())])
def test_the_shortest_way_fails_as_the_other_does(bad):
    """With the same words: which module, with which inputs, where it stands."""
    both = loop_of(*CASES["module and module"])._parts.trainers[0].model_with_loss
    found = []
    for way in (both, losses.Straight(both)):
        try:
            found.append(way(bad))
        except Exception as error:
            found.append((type(error), str(error), type(error.__cause__)))

    if isinstance(found[0], tuple) and isinstance(found[0][0], torch.Tensor):
        assert all(map(torch.equal, *found))
    else:
        assert found[0] == found[1]


def test_layers_that_someone_listens_to_are_called():
    both = loop_of(*CASES["module and module"])._parts.trainers[0].model_with_loss
    both.sublayers[0].register_forward_hook(lambda *a: None)

    assert not losses.Straight.can_take(both)


def test_layers_of_ones_own_are_called():
    """Their user may listen to them at any time."""
    model = tl.Serial(tl.as_layer(nn.Linear(4, 3)))
    loop = loop_of(lambda: model, tl.WeightedCategoryCrossEntropy(), (X, Y, torch.ones(6)))
    called = []
    model.register_forward_hook(lambda *a: called.append(a))

    loop.run(2)

    assert len(called) == 2
