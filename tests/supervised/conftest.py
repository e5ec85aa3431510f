"""What all tests of decoding share."""

import pytest
import torch
from decoders import VOCAB

from trax_torch import models


@pytest.fixture(scope="module")
def model():
    """A small language model to decode from."""
    model = models.TransformerLM(
        vocab_size=VOCAB, d_model=16, d_ff=16, n_layers=2, n_heads=2, max_len=64, dropout=0.2
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=4)
    for p in model.parameters():  # livelier than at the start, so that rows differ
        p.data *= 3
    return model.double()
