"""Decoding in float32, compared with float64: the same, but where two choices were as good.

On every processor float32 rounds otherwise, and now and then a token or a beam more or less is the
better one by less than that. Tests of what decoding does decode in float64; these are for the paths
that float32 alone takes.
"""

import copy

import torch
from checks import off_by_rounding

from trax_torch.supervised._generation.sampling import Sampler


def in_float64(model):
    """A copy of a model in float64, in eval mode."""
    return copy.deepcopy(model).double().eval()


def logits_of(model, prompts, tokens):
    """A model's logits in eval mode, (batch, n, vocab), by which tokens (batch, n) are chosen."""
    with torch.no_grad():
        if model.n_in == 1:
            return model(torch.cat([prompts, tokens], 1))[:, prompts.shape[1] :]
        return model((prompts, tokens))[0]


def assert_same_tokens(found, want, model, prompts, temperature=0.0, seed=None):
    """Asserts that tokens (batch, n) are those wanted, up to the first tie of each row.

    Args:
      found: what was made by float32.
      want: what was made by float64, for the same prompts, temperature and seed.
      model: the float64 model.
      prompts: (batch, length); sources, where the model takes them.
    """
    assert found.shape == want.shape
    n_equal = 0
    for row in range(len(found)):
        places = (found[row] != want[row]).nonzero()
        if not len(places):
            n_equal += 1
            continue
        at = int(places[0])
        upto = prompts[row : row + 1], want[row : row + 1, : at + 1]
        logits = logits_of(model, *upto)[0, -1]
        noise = noise_at(at, len(found), logits.shape[-1], temperature, seed)
        noisy = logits if noise is None else logits + temperature * noise[row]
        gap = float(noisy[want[row, at]] - noisy[found[row, at]])
        bound = off_by_rounding(lambda upto=upto: logits_of(model, *upto)[0, -1], model)
        assert abs(gap) <= 2 * bound, f"row {row}, token {at}: {gap} is no tie ({bound})"
    assert n_equal >= len(found) / 2  # ties are rare


def noise_at(place, batch_size, vocab, temperature, seed):
    """The noise that the token at a place was chosen with."""
    sampler = Sampler(temperature, batch_size, seed)
    for _ in range(place):
        sampler.noise(vocab)
    return sampler.noise(vocab)


def assert_same_beams(found, want, bound):
    """Asserts that two searches, `(tokens, scores)`, agree up to rounding.

    Scores are the same to within the bound, and so are the tokens of each beam whose score is
    farther than that from its neighbours'.
    """
    (tokens, scores), (want_tokens, want_scores) = found, want
    torch.testing.assert_close(scores, want_scores.to(scores.dtype), rtol=0, atol=bound)
    gaps = (want_scores[:, :-1] - want_scores[:, 1:]).abs()
    far = torch.full_like(want_scores[:, :1], torch.inf)
    alone = torch.minimum(torch.cat([far, gaps], 1), torch.cat([gaps, far], 1)) > 2 * bound
    assert alone.sum() >= alone.numel() / 2
    assert torch.equal(tokens[alone], want_tokens[alone])


def bound_of_scores(model, prompts, beams):
    """How far float32 may be off the scores of hypotheses (batch, beams, n), unpenalized."""
    rows, tokens = prompts.repeat_interleave(beams.shape[1], 0), beams.flatten(0, 1)

    def scores():
        log_probs = logits_of(model, rows, tokens).log_softmax(-1)
        return log_probs.gather(-1, tokens[..., None]).sum(1)

    return off_by_rounding(scores, model)
