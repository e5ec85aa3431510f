"""Beam search: Trax's figures, and agreement with brute force."""

import itertools

import figures
import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes
from trax_torch.supervised import decoding
from trax_torch.supervised._beams import best_continuations

VOCAB = 4


def filled(case):
    info = figures.case(case)
    model = getattr(models, info["model"])(**info["kwargs"])
    sig = shapes.ShapeDtype((1, 3), np.int32)
    model.init(sig if model.n_in == 1 else (sig, sig))
    figures.set_flat_weights(model, figures.parts(info["weights_of"], "w"))
    return model


@pytest.mark.parametrize(
    ("case", "inputs", "n_beams"),
    [
        ("decode_TransformerLM", "beam_inputs", 1),
        ("decode_TransformerLM", "beam_inputs", 2),
        ("decode_TransformerLM", "beam_inputs", 4),
        ("decode_Transformer", "inputs", 3),
    ],
)
def test_beams_are_those_of_trax(case, inputs, n_beams):
    """Without end symbol and length penalty, tokens and sums of log-probabilities equal Trax's."""
    tokens, log_probs = (
        figures.part(case, f"beam{n_beams}_{part}") for part in ("tokens", "logprobs")
    )

    found, scores = decoding.beam_search(
        filled(case),
        figures.part(case, inputs),
        n_beams=n_beams,
        eos_id=-1,
        length_penalty=0,
        max_length=tokens.shape[1],
        return_scores=True,
    )

    assert found[0].tolist() == tokens.tolist()
    figures.assert_close(scores[0], log_probs)


def test_an_encoder_decoder_is_decoded_as_in_trax():
    """Greedy tokens of Transformer, with and without an end symbol."""
    case = "decode_Transformer"
    settings = {"inputs": figures.part(case, "inputs"), "temperature": 0.0}

    for part, eos_id in (("greedy", -1), ("greedy_eos1", 1)):
        want = figures.part(case, part)
        found = decoding.autoregressive_sample(
            filled(case), eos_id=eos_id, max_length=want.shape[1], **settings
        )
        assert found.tolist() == want.tolist()


@pytest.fixture(scope="module")
def model():
    model = models.TransformerLM(VOCAB, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=16)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=3)
    for p in model.parameters():
        p.data *= 2.5
    return model.eval()


def log_probs_of(model, prefix, sequence):
    """The log-probability of each token of a sequence after a prefix, in eval mode."""
    tokens = torch.tensor([[*prefix, *sequence]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(tokens)[0], dim=-1)
    return [float(log_probs[len(prefix) + i, t]) for i, t in enumerate(sequence)]


def by_brute_force(model, prefix, n, eos_id, alpha, length):
    """The best n hypotheses of all."""
    found = {}
    for sequence in itertools.product(range(VOCAB), repeat=length):
        if eos_id in sequence:
            sequence = sequence[: sequence.index(eos_id) + 1]
        if sequence not in found:
            score = sum(log_probs_of(model, prefix, sequence))
            found[sequence] = score / ((5 + len(sequence)) / 6) ** alpha
    best = sorted(found.items(), key=lambda item: -item[1])[:n]
    return [list(s) + [0] * (length - len(s)) for s, _ in best], [score for _, score in best]


@pytest.mark.parametrize("eos_id", [-1, 1, 2])
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_enough_beams_find_what_brute_force_finds(model, eos_id, alpha):
    """With as many beams as there are sequences, the best are the best of all, scores included."""
    prefix, length, n = [3, 0, 2], 3, VOCAB**3
    want, want_scores = by_brute_force(model, prefix, n, eos_id, alpha, length)

    found, scores = decoding.beam_search(
        model,
        [prefix],
        n_beams=n,
        eos_id=eos_id,
        length_penalty=alpha,
        max_length=length,
        return_scores=True,
    )

    assert found[0, : len(want)].tolist() == want
    assert scores[0, : len(want)].tolist() == pytest.approx(want_scores, abs=1e-5)
    assert bool((scores[0, len(want) :] == -torch.inf).all())
    assert bool((found[0, len(want) :] == 0).all())


def test_one_beam_is_greedy(model):
    greedy = decoding.autoregressive_sample(
        model, [[3, 2]], temperature=0.0, eos_id=-1, max_length=10
    )
    beams = decoding.beam_search(model, [[3, 2]], n_beams=1, eos_id=-1, max_length=10)

    assert beams[:, 0].tolist() == greedy.tolist()


@pytest.mark.parametrize("eos_id", [-1, 1, 2])
def test_a_row_of_beams_does_not_depend_on_the_rows_beside_it(model, eos_id):
    prompts = torch.tensor([[1, 2], [3, 3], [2, 0]])
    settings = {"n_beams": 3, "eos_id": eos_id, "max_length": 8, "return_scores": True}
    together, scores = decoding.beam_search(model, prompts, batch_size=3, **settings)

    for i in range(3):
        alone, score = decoding.beam_search(model, prompts[i : i + 1], **settings)
        length = alone.shape[-1]
        assert together[i, :, :length].tolist() == alone[0].tolist()
        assert bool((together[i, :, length:] == 0).all())
        assert torch.allclose(scores[i], score[0], atol=1e-5)


def test_recurrent_models_are_searched_too():
    """Layers with a small recurrent state gather it: beams equal brute force."""
    model = models.GRULM(VOCAB, d_model=8, n_layers=1, mode="eval")
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=2)
    for p in model.parameters():
        p.data *= 3
    want, want_scores = by_brute_force(model, [2], 5, 1, 0.0, 3)

    found, scores = decoding.beam_search(
        model, [[2]], n_beams=64, eos_id=1, length_penalty=0.0, max_length=3, return_scores=True
    )

    assert found[0, :5].tolist() == want
    assert scores[0, :5].tolist() == pytest.approx(want_scores, abs=1e-5)


def test_ties_go_to_the_lower_beam_and_token():
    scores = torch.tensor([[-1.0, -1.0, -torch.inf]])
    log_probs = torch.full((1, 3, 4), -2.0)
    log_probs[0, 1, 3] = -1.0

    values, parents, tokens = best_continuations(scores, log_probs, 4)

    assert values.tolist() == [[-2.0, -3.0, -3.0, -3.0]]
    assert parents.tolist() == [[1, 0, 0, 0]]
    assert tokens.tolist() == [[3, 0, 1, 2]]


def test_more_beams_than_continuations_leaves_some_empty():
    values, _, _ = best_continuations(torch.tensor([[0.0]]), torch.full((1, 1, 3), -1.0), 5)

    assert values.tolist() == [[-1.0, -1.0, -1.0, -torch.inf, -torch.inf]]


def test_what_cannot_be_searched_is_refused(model):
    with pytest.raises(ValueError, match="at least 1 beam; got n_beams=0"):
        decoding.beam_search(model, n_beams=0)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        decoding.beam_search(model, max_length=0)
    with pytest.raises(ValueError, match="batch of 1, but batch_size is 2"):
        decoding.beam_search(model, [[1]], batch_size=2)

    class Broken(tl.Layer):
        def __init__(self):
            super().__init__()
            self.shift = tl.ShiftRight()

        def forward(self, x):
            return torch.full((*x.shape, VOCAB), torch.nan)

    with pytest.raises(ValueError, match=r"logits for token 1 are not numbers \(NaN\)"):
        decoding.beam_search(Broken())
