"""Metrics with a state, and what they are measured on."""

import torch
from torch import nn


class Seen:
    """Says what it was told, and computes how many rows it saw, and in which types."""

    def __init__(self, value=None):
        self.calls, self.value, self.types = [], value, []

    def reset(self):
        self.calls.append("reset")
        self.n_rows = 0

    def update(self, outputs, targets):
        self.calls.append("update")
        self.types.append((outputs.dtype, outputs.requires_grad, torch.is_autocast_enabled("cpu")))
        self.n_rows += len(targets)

    def compute(self):
        self.calls.append("compute")
        return self.n_rows if self.value is None else self.value


def auroc(scores, targets):
    """How often a row of class 1 has a higher score than one of class 0."""
    pairs = scores[targets == 1][:, None] - scores[targets == 0][None, :]
    return ((pairs > 0).double() + (pairs == 0).double() / 2).mean()


def sorted_rows():
    """Scores that tell the classes apart, in batches that hardly do: one class is in most."""
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[:, None]
    return x, (x[:, 0] > 3).long()


def classes(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 10, generator=g)
    return x, (x[:, 0] + torch.randn(n, generator=g) > 1.0).long()


def trained():
    """Gives probabilities: of logits, torchmetrics judges batch by batch whether they are some."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 2), nn.Softmax(-1))


def collection(tm):
    kinds = tm.classification
    return tm.MetricCollection(
        {
            "f1": kinds.MulticlassF1Score(2, average="macro"),
            "auroc": kinds.MulticlassAUROC(2),
            "recall": kinds.MulticlassRecall(2, average="none"),
        }
    )
