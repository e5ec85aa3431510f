"""Prompts that are read in pieces become what they become when they are read at once."""

import pytest
import torch
from compiled_decoding import MAKERS as RECURRENT
from drafting import MAKERS, VOCAB, lively
from live_bytes import Peak

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import reading

ALL = {**MAKERS, **RECURRENT}
PROMPTS = torch.tensor([[1, 2, 3, 1, 5, 6, 2, 2, 4], [4, 5, 6, 4, 1, 1, 3, 2, 5]])


@pytest.fixture
def in_pieces(monkeypatch):
    """Pieces of two tokens, and the last of one or two."""
    sizes = []
    monkeypatch.setattr(reading, "_AT_ONCE", 4)
    monkeypatch.setattr(reading, "_LEAST", 2)
    read = reading._read_part

    def noting(layer, source, tokens, *args, **kwargs):
        sizes.append(tokens.shape[1])
        return read(layer, source, tokens, *args, **kwargs)

    monkeypatch.setattr(reading, "_read_part", noting)
    return sizes


def made(model, **kwargs):
    settings = {"batch_size": 2, "eos_id": -1, "max_length": 8}
    sampled = {"seed": 3, "return_log_probs": True, **settings, **kwargs}
    searched = {"n_beams": 3, "return_scores": True, **settings, **kwargs}
    return (
        *decoding.autoregressive_sample(model, PROMPTS, **sampled),
        *decoding.beam_search(model, PROMPTS, **searched),
    )


@pytest.mark.parametrize("name", sorted(set(ALL) - {"encoder-decoder"}))
@pytest.mark.parametrize("lengths", [None, [9, 9], [0, 9], [4, 7], [1, 2]])
def test_pieces_make_the_same_tokens(name, lengths, request):
    """Drawn and searched, of prompts of one length and of several, whatever layers remember."""
    model = lively(name, makers=ALL)
    want = made(model, prompt_lengths=lengths)
    sizes = request.getfixturevalue("in_pieces")

    got = made(model, prompt_lengths=lengths)

    longest = 10 if lengths is None else max(lengths) + 1
    whole, rest = divmod(longest, 2)
    assert sizes == [*[2] * whole, *[1] * rest] * 2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("in_pieces")
def test_what_is_wrong_in_a_later_piece_is_told_as_in_the_first():
    """An id outside the vocabulary; a layer that is used twice is none for being asked again."""
    model = lively("attention")
    prompts = PROMPTS.clone()
    prompts[1, -1] = VOCAB
    with pytest.raises(tl.LayerError, match="Token id 7 is outside the vocabulary of 7"):
        decoding.autoregressive_sample(model, prompts, 2)
    with pytest.raises(tl.LayerError, match="has room for 80.*|built for 80"):
        decoding.autoregressive_sample(model, PROMPTS.repeat(1, 9), 2)


def test_short_prompts_are_read_at_once():
    """So their numbers are those of one pass."""
    sizes = []
    model = lively("attention")
    model.register_forward_hook(lambda m, args, y: sizes.append(args[0].shape[1]))

    decoding.autoregressive_sample(model, PROMPTS, 2, max_length=1)

    assert sizes == [10]


def test_a_longer_prompt_takes_no_more_than_it_leaves_behind(monkeypatch):
    """Activations are those of a piece: what grows is keys, values and a row of a mask."""
    model = models.TransformerLM(VOCAB, 8, 512, 1, 2, max_len=2048)
    model.init(torch.zeros(1, 1, dtype=torch.int64))

    def peak(n):
        with Peak() as peak:
            decoding.autoregressive_sample(model, torch.ones(1, n, dtype=torch.int64), max_length=1)
        return peak.most

    n = 1024 - 512
    at_once = (peak(1024) - peak(512)) / n
    monkeypatch.setattr(reading, "_AT_ONCE", 64)
    in_pieces = (peak(1024) - peak(512)) / n

    assert at_once > 2 * 512 * 4  # bytes a position: two hidden vectors of float32
    assert in_pieces < at_once / 4
    assert peak(1024) < 1024 * at_once / 4
