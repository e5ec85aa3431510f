"""Models, losses and batches for tests of how they meet."""

import collections
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

from trax_torch.supervised import EvalTask, Loop, TrainTask

ROWS = torch.linspace(-1, 1, 32).view(8, 4)
CLASSES = torch.arange(8) % 3
ROW = {"x": ROWS, "labels": CLASSES}


class Net(nn.Module):
    """Called by name, it gives logits in a dict, and its own loss if it is given labels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, mask=None, labels=None):
        logits = self.linear(x)
        if mask is not None:
            logits = logits * mask[:, None]
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def kind_of(batch):
    return type(batch).__name__


def seeded(kind, *args):
    torch.manual_seed(0)
    return kind(*args)


def trained(model, batch, loss, n_steps=3, evals=None, kind=Loop, **settings):
    """Returns a loop after some steps of SGD on one batch."""
    task = TrainTask([batch], loss, torch.optim.SGD(model.parameters(), 0.5))
    eval_tasks = None if evals is None else EvalTask([batch], evals)
    loop = kind(model, task, eval_tasks=eval_tasks, random_seed=0, progress=False, **settings)
    loop.run(n_steps)
    return loop


def bare(model, loss_of, n_steps=3):
    """Returns the weights after the same steps in a bare loop."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return dict(model.named_parameters())


def assert_same(loop, weights):
    for name, weight in loop.model.named_parameters():
        assert torch.equal(weight, weights[name]), name


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    labels: torch.Tensor


Named = collections.namedtuple("Named", "labels x")


@dataclasses.dataclass(frozen=True)
class Frozen:
    labels: torch.Tensor
    x: torch.Tensor
    mask: torch.Tensor | None = None


LOSSES = [
    None,
    "model",
    nn.CrossEntropyLoss(),
    F.cross_entropy,
    lambda outputs, batch: F.cross_entropy(outputs["logits"], _labels(batch)),
    lambda batch, outputs: F.cross_entropy(outputs["logits"], _labels(batch)),
    lambda logits, labels: F.cross_entropy(logits, labels),
]


def _labels(batch):
    return batch["labels"] if hasattr(batch, "keys") else batch.labels


class WithOwnLoss(Loop):
    """Computes the loss itself, as no rule would."""

    def compute_loss(self, model, batch):
        logits = model(batch["x"])["logits"]
        return F.cross_entropy(logits, batch["labels"]) + logits.square().mean()


class Returning(nn.Module):
    """Gives its logits as it is told to."""

    def __init__(self, pack):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self._pack = pack

    def forward(self, x, mask=None):
        return self._pack(self.linear(x))


class Both(nn.Module):
    def forward(self, a, b, y):
        return F.cross_entropy(a, y) + 0.3 * F.cross_entropy(b, y)
