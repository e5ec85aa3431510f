"""Beams in groups: each a search of its own, which values less what others took."""

import math

import decoding_by_hand as by_hand
import pytest
import torch
from decoders import PROMPTS, VOCAB

from trax_torch.supervised import decoding


def searched_by_hand(model, prompt, n_beams, n_groups, strength, length, eos, alpha):
    """Diverse beam search with plain lists, as Vijayakumar et al. 2018 have it; best first."""
    size = n_beams // n_groups
    living = [[([], 0.0)] for _ in range(n_groups)]
    finished = [[] for _ in range(n_groups)]

    def penalized(score, n):
        return score / ((5 + n) / 6) ** alpha

    done = [False] * n_groups
    for n in range(1, length + 1):
        taken = [0] * VOCAB
        for g in range(n_groups):
            grown = []
            for place, (made, score) in enumerate(living[g]):
                logits = torch.tensor(
                    by_hand.logits_after(model, prompt + made), dtype=torch.float64
                )
                for t, x in enumerate(torch.log_softmax(logits, 0).tolist()):
                    worth = score + x - strength * taken[t]
                    grown.append((-worth, place, t, [*made, t], score + x))
            grown.sort(key=lambda each: each[:3])
            best = grown[: 2 * size]
            ended = [e for e in best[:size] if e[2] == eos] if not done[g] else []
            finished[g] += [(penalized(e[4], n), e[3]) for e in ended]
            finished[g] = sorted(finished[g], key=lambda e: -e[0])[:size]
            living[g] = [(e[3], e[4]) for e in best if e[2] != eos][:size]
            longest = length if alpha > 0 else min(n + 1, length)
            reach = penalized(max(score for _, score in living[g]), longest)
            done[g] |= len(finished[g]) == size and finished[g][-1][0] >= reach
            if not done[g]:
                for made, _ in living[g]:
                    taken[made[-1]] += 1
    for g in range(n_groups):
        if not done[g]:
            finished[g] += [(penalized(score, length), made) for made, score in living[g]]
            finished[g] = sorted(finished[g], key=lambda e: -e[0])[:size]
    return sorted((e for each in finished for e in each), key=lambda e: -e[0])


@pytest.mark.parametrize("eos", [-1, 1, 3])
@pytest.mark.parametrize(("n_beams", "n_groups"), [(2, 2), (4, 2), (6, 3)])
@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_groups_are_searched_as_by_hand(model, eos, n_beams, n_groups, strength):
    """All rows at once; sequences, and scores, which hold nothing of the diversity."""
    length, alpha = 6, 1.0
    found, scores = decoding.beam_search(
        model,
        PROMPTS,
        3,
        n_beams,
        eos_id=eos,
        max_length=length,
        length_penalty=alpha,
        pad_id=-1,
        return_scores=True,
        n_groups=n_groups,
        diversity_penalty=strength,
    )

    for row, prompt in enumerate(PROMPTS.tolist()):
        want = searched_by_hand(model, prompt, n_beams, n_groups, strength, length, eos, alpha)
        assert scores[row].tolist() == pytest.approx([s for s, _ in want], rel=1e-5, abs=1e-5)
        rows = [[t for t in beam if t != -1] for beam in found[row].tolist()]
        assert sorted(rows) == sorted(made for _, made in want)


def test_groups_without_a_penalty_are_the_same_search_each(model):
    asked = {"eos_id": -1, "max_length": 5, "return_scores": True}
    one, score = decoding.beam_search(model, PROMPTS, 3, 2, **asked)
    found, scores = decoding.beam_search(
        model, PROMPTS, 3, 4, n_groups=2, diversity_penalty=0, **asked
    )

    assert torch.equal(found, one.repeat_interleave(2, 1))
    torch.testing.assert_close(scores, score.repeat_interleave(2, 1))


def test_groups_are_more_diverse(model):
    """Of as many beams, more begin with different tokens."""
    asked = {"n_beams": 4, "eos_id": -1, "max_length": 4}
    plain = decoding.beam_search(model, PROMPTS, 3, **asked)
    diverse = decoding.beam_search(model, PROMPTS, 3, n_groups=4, diversity_penalty=50.0, **asked)

    assert all(len({int(t) for t in row[:, 0]}) == 4 for row in diverse)
    assert any(len({int(t) for t in row[:, 0]}) < 4 for row in plain)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"n_groups": 2}, ValueError, "got 3 beams and 2 groups. Give a multiple of n_groups"),
        ({"n_groups": 0}, ValueError, "n_groups counts groups of beams, so it is at least 1"),
        ({"diversity_penalty": -1.0}, ValueError, "a number, 0 or more, in nats; got -1.0"),
        ({"diversity_penalty": math.inf}, ValueError, "a number, 0 or more, in nats; got inf"),
        ({"diversity_penalty": "a"}, TypeError, "a number, 0 or more, in nats; got 'a'"),
    ],
)
def test_groups_that_make_no_sense_are_refused(model, settings, error, match):
    with pytest.raises(error, match=match):
        decoding.beam_search(model, n_beams=3, **settings)
