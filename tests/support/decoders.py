"""Small models and plain modules to decode from, prompts for them, and how tokens are drawn."""

import typing

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.supervised import decoding

VOCAB = 7
PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6], [2, 2, 2]])


def sample(model, **kwargs):
    defaults = {"eos_id": -1, "max_length": 10, "temperature": 0.0, "batch_size": 3}
    return decoding.autoregressive_sample(model, **{**defaults, **kwargs})


def livelier(model, example):
    """Its weights are larger than at the start, so that rows differ."""
    model.init(example, rng=5)
    for p in model.parameters():
        p.data *= 3
    return model.double()


class Foreign(nn.Module):
    """A plain module: the next token is the number of tokens so far."""

    def forward(self, tokens):
        counts = torch.arange(tokens.shape[1]).expand(tokens.shape) % VOCAB
        return torch.nn.functional.one_hot(counts, VOCAB).float()


class Caching(Foreign):
    """The same with a cache of its own, by the protocol."""

    rooms: typing.ClassVar = []
    count = None

    def init_cache(self, batch_size, max_length):
        self.count = 0
        self.rooms.append((batch_size, max_length))

    def reset_cache(self):
        self.count = 0

    def forward(self, tokens):
        logits = super().forward(tokens)
        if self.count is None:
            return logits
        logits = logits.roll(self.count, dims=-1)
        self.count += tokens.shape[1]
        return logits


def recurrent(cell):
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, 8), cell, tl.Dense(VOCAB))
    return livelier(model, torch.zeros(1, 1, dtype=torch.int64))
