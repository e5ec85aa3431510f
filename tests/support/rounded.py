"""What is tried with rounded weights: a Dense layer, numbers, and ways to decode."""

import torch

from trax_torch import layers as tl
from trax_torch.supervised import decoding

VOCAB = 11


def dense(d_in=8, n_units=6, seed=0, **kwargs):
    layer = tl.Dense(n_units, bias_initializer=tl.RandomNormalInitializer(1.0), **kwargs)
    layer.init(torch.zeros(1, d_in), rng=seed)
    return layer


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts(n=5, batch=2):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(1, VOCAB, (batch, n), generator=generator)


def sample(model, inputs, **kwargs):
    chosen = {"batch_size": len(inputs), "temperature": 0.5, "seed": 3, "eos_id": -1}
    return decoding.autoregressive_sample(model, inputs, **{"max_length": 20, **chosen, **kwargs})


def search(model, inputs, n_beams=3):
    return decoding.beam_search(
        model, inputs, batch_size=len(inputs), n_beams=n_beams, max_length=12, return_scores=True
    )
