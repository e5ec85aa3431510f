"""Models to compile steps of, prompts for them, and a backend that counts programs."""

import torch

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding

VOCAB = 7


def around(*layers):
    return tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, 8), *layers, tl.Dense(VOCAB))


MAKERS = {
    "attention": lambda: around(tl.PositionalEncoding(160), tl.CausalAttention(8, n_heads=2)),
    "GRU": lambda: around(tl.GRU(8)),
    "LSTM": lambda: around(tl.LSTM(8)),
    "SRU": lambda: around(tl.SRU(8)),
    "encoder-decoder": lambda: models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=160),
}


def lively(name, seed=4, dtype=torch.float64, makers=MAKERS):
    """A model whose rows differ, though nobody trained it."""
    model = makers[name]()
    one = torch.ones(1, 2, dtype=torch.int64)
    model.init(one if model.n_in == 1 else (one, one), rng=seed)
    for p in model.parameters():
        p.data *= 3
    return model.to(dtype)


def prompts(n, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (batch, n), generator=generator)


def counted():
    """Returns a backend that runs a graph as it is, and the list of graphs that it was given."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return graphs, backend


def sample(model, inputs, **kwargs):
    settings = {"batch_size": len(inputs), "temperature": 0.0, "eos_id": -1, "max_length": 20}
    return decoding.autoregressive_sample(model, inputs, **{**settings, **kwargs})


def search(model, inputs, **kwargs):
    settings = {"batch_size": len(inputs), "n_beams": 3, "max_length": 12, "return_scores": True}
    return decoding.beam_search(model, inputs, **{**settings, **kwargs})
