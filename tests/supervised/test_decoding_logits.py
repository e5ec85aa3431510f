"""Tokens are chosen by logits, whose log-probabilities are told; what is no logits is refused."""

import copy

import pytest
import ties
import torch
import toys
from checks import off_by_rounding
from decoders import PROMPTS, VOCAB, Caching, Foreign, sample

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(model):
    """Up to the end symbol; padding has 0. A stream yields the same."""
    free = sample(model, inputs=PROMPTS, temperature=2.0, seed=1)
    settings = {"temperature": 2.0, "seed": 1, "eos_id": int(free[0, 4])}
    tokens, log_probs = sample(model, inputs=PROMPTS, return_log_probs=True, **settings)

    model.eval()
    whole = torch.cat([PROMPTS, tokens], dim=1)
    with torch.no_grad():
        want = torch.log_softmax(model(whole), -1).gather(2, whole[..., None])[:, 3:, 0].float()
    ends = (tokens == settings["eos_id"]).cumsum(1) - (tokens == settings["eos_id"]).long()
    assert torch.allclose(log_probs, want.masked_fill(ends > 0, 0.0), atol=1e-5)
    assert torch.equal(tokens, sample(model, inputs=PROMPTS, **settings))
    stream = decoding.autoregressive_sample_stream(
        model, PROMPTS, 3, temperature=2.0, seed=1, return_log_probs=True
    )
    first, its_log_probs = next(stream)
    assert torch.equal(first, tokens[:, :1])
    assert torch.allclose(its_log_probs, want[:, :1], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_type_give_float32_log_probabilities(model, dtype):
    """Those that float64 weights give to the same tokens, as closely as the type allows."""
    other = copy.deepcopy(model).to(dtype)
    settings = {"inputs": PROMPTS, "batch_size": 3, "eos_id": -1}

    tokens, log_probs = sample(other, return_log_probs=True, **settings)
    beams, scores = decoding.beam_search(
        other, n_beams=2, max_length=5, length_penalty=0, return_scores=True, **settings
    )

    assert log_probs.dtype == scores.dtype == torch.float32
    for found, its in ((log_probs, tokens), (scores, beams.flatten(0, 1))):
        rows = its.shape[0] // 3
        close = {torch.bfloat16: 0.2, torch.float64: 1e-5}.get(dtype)
        if close is None:
            close = off_by_rounding(lambda its=its, rows=rows: wide_told(model, its, rows), model)
        want = told(model, its, rows)
        if found is scores:
            n_terms = its.shape[1] if dtype == torch.float32 else 2  # a bound, or what was seen
            want, close = want.sum(1).view_as(scores), n_terms * close
        assert torch.allclose(found, want, rtol=0, atol=close)
    if dtype == torch.float64:
        assert torch.equal(tokens, sample(model, **settings))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
def test_float32_chooses_what_float64_does_for_any_number_of_rows(model, n_rows):
    """Few rows are multiplied in a way of their own; processors have kernels by their number."""
    inputs = torch.randint(1, VOCAB, (n_rows, 3), generator=torch.Generator().manual_seed(n_rows))
    narrow, chosen = copy.deepcopy(model).float(), {"temperature": 0.7, "seed": 2}

    found, want = (sample(m, inputs=inputs, batch_size=n_rows, **chosen) for m in (narrow, model))

    ties.assert_same_tokens(found, want, ties.in_float64(model), inputs, **chosen)


def told(model, tokens, n_each=1):
    """The log-probabilities of what follows the prompts, from the model in eval mode."""
    return wide_told(model, tokens, n_each).float()


def wide_told(model, tokens, n_each=1):
    """The same in the model's own type."""
    logits = ties.logits_of(model.eval(), PROMPTS.repeat_interleave(n_each, 0), tokens)
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


class Answering(Caching):
    """Returns what it is told to make of its logits."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, tokens):
        return self.made(super().forward(tokens))


@pytest.mark.parametrize("eval_mode", [False, True])
@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda x: {"logits": x}, "Answering gave dict. Let it return them, or a tuple"),
        (lambda x: (), "Answering gave tuple"),
        (lambda x: x[:, -1], r"Answering gave torch.float32 of shape \(3, 7\)"),
        (lambda x: x.argmax(-1, keepdim=True), r"gave torch.int64 of shape \(3, \d, 1\)"),
        (lambda x: x[:, :2], r"\(3, 4, vocab\); Answering gave torch.float32 of shape \(3, 2, 7\)"),
        (lambda x: x[:1], r"gave torch.float32 of shape \(1, 4, 7\)"),
    ],
)
def test_what_is_no_logits_is_refused(made, match, eval_mode):
    with pytest.raises(tl.LayerError, match="Tokens are chosen by logits, .*" + match):
        sample(Answering(made), inputs=PROMPTS, eval_mode=eval_mode)


def test_logits_may_begin_a_tuple_or_a_list():
    for made in (lambda x: (x, 1), lambda x: [x]):
        tokens = sample(Answering(made), eval_mode=True)

        assert torch.equal(tokens, sample(Foreign(), eval_mode=True))


@pytest.mark.parametrize("eval_mode", [False, True])
def test_logits_that_are_not_numbers_are_refused(eval_mode):
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    model.sublayers[-1].bias.data[3] = torch.nan

    with pytest.raises(ValueError, match="logits for token 1 are not numbers: a row holds NaN"):
        sample(model, eval_mode=eval_mode)


def test_masked_logits_are_numbers():
    """A model may forbid tokens by -inf."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    model.sublayers[-1].bias.data[1:] = -torch.inf

    assert set(sample(model, temperature=1.0, seed=0).flatten().tolist()) == {0}
    found, scores = decoding.beam_search(model, n_beams=2, max_length=3, return_scores=True)
    assert found.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert scores.tolist() == [[0.0, -torch.inf]]


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_has_ended_may_have_nothing_left(seed):
    """What a model makes of it is nobody's concern: its mates go on as they would alone."""
    settings = {"start_id": 4, "eos_id": 1, "temperature": 1.0}
    together = sample(toys.Grammar(), inputs=[[3], [2]], batch_size=2, seed=[0, seed], **settings)
    alone = sample(toys.Grammar(), inputs=[[2]], batch_size=1, seed=[seed], **settings)

    assert together[0].tolist() == [1] + [0] * (alone.shape[1] - 1)
    assert together[1].tolist() == alone[0].tolist()


def test_a_row_that_has_not_ended_must_have_something_left():
    """Without an end symbol no row ends, of a stream neither."""
    settings = {"start_id": 4, "temperature": 0.0}
    with pytest.raises(ValueError, match="logits for token 2 are not numbers"):
        sample(toys.Grammar(), inputs=[[3]], batch_size=1, eos_id=-1, **settings)
    with pytest.raises(ValueError, match="logits for token 2 are not numbers"):
        list(decoding.autoregressive_sample_stream(toys.Grammar(), [[3]], **settings))
