"""Models that drafts are made for, of all memories that can go back, and calls drawn at random."""

import functools
import random

import compiled_decoding
import torch
from compiled_decoding import VOCAB, around

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding

MAKERS = {
    "attention": lambda: around(tl.PositionalEncoding(80), tl.CausalAttention(8, n_heads=2)),
    "two layers": lambda: around(*[tl.CausalAttention(8, n_heads=2) for _ in range(2)]),
    "chunks": lambda: around(
        tl.SelfAttention(n_heads=2, d_qk=4, d_v=4, causal=True, chunk_len=4, n_chunks_before=1)
    ),
    "hashes": lambda: around(
        tl.PositionalEncoding(80),
        tl.LSHSelfAttention(
            n_heads=2, d_qk=4, d_v=4, causal=True, chunk_len=4, n_hashes=2, n_buckets=4
        ),
    ),
    "encoder-decoder": lambda: models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=80),
}

lively = functools.partial(compiled_decoding.lively, makers=MAKERS)


def all_models():
    """Pairs of a model, and what drafts for it: its text, another model, one like it, itself."""
    for name in MAKERS:
        model, like = lively(name), lively(name)
        generator = torch.Generator().manual_seed(0)
        for p in like.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        yield model, ["prompt", lively(name, seed=5), like, model]
        yield decoding.quantize(model), ["prompt", model]


def drawn(draws: random.Random, model):
    """Settings of a call of `autoregressive_sample`: inputs, and all else."""
    batch, n = draws.choice([1, 1, 2, 3]), draws.choice([1, 2, 5, 12])
    inputs = [[draws.randrange(1, VOCAB) for _ in range(n)] for _ in range(batch)]
    settings = {
        "batch_size": batch,
        "temperature": draws.choice([0.0, 0.0, 0.3, 1.0, 1.7]),
        "eos_id": draws.choice([-1, 1, (2, 3)]),
        "pad_id": draws.choice([0, 6]),
        "max_length": draws.choice([1, 2, 7, 12, 20]),
        "seed": draws.choice([draws.randrange(99), [draws.randrange(99) for _ in range(batch)]]),
        "stop": draws.choice([None, None, [[2, 3], [4]]]),
        "top_k": draws.choice([None, None, 3]),
        "top_p": draws.choice([None, None, 0.7]),
        "min_p": draws.choice([None, None, 0.1]),
        "return_log_probs": True,
    }
    if isinstance(settings["seed"], int):
        settings["n_samples"] = draws.choice([None, 1, 2])
    if model.n_in == 1 and draws.random() < 0.5:
        settings["prompt_lengths"] = [draws.randint(0, n) for _ in range(batch)]
    return torch.tensor(inputs), settings


class AnyLength:
    """A budget of drafts of any lengths, whatever they bring."""

    draws = random.Random(0)

    def __init__(self, *costs):
        pass

    def n_now(self, n_tokens, reading=0.0):
        return self.draws.choice([0, 1, 2, 4, 7])

    def note(self, *counts):
        pass
