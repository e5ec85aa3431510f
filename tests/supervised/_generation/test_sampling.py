"""Sampling: which token, and how often."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import sampling
from trax_torch.supervised._generation.sampling import Sampler

LOGITS = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, -torch.inf, 3.0, -1.5, 1.5])


def counts_of(n, temperature=1.0, logits=LOGITS, **kwargs):
    """How often each symbol comes in n draws, by 100 rows in turn."""
    sampler = Sampler(temperature, 100, 0, **kwargs)
    tokens = torch.cat([sampler(logits.expand(100, -1)) for _ in range(n // 100)])
    return torch.bincount(tokens, minlength=len(logits))


def assert_follows(counts, probabilities):
    """A chi-square test that what follows `probabilities` passes 999 times in 1000."""
    assert bool((counts[probabilities == 0] == 0).all())
    expected = counts.sum() * probabilities[probabilities > 0].double()
    assert float(expected.min()) > 5
    chi_square = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    assert_follows(counts_of(100_000, temperature), torch.softmax(LOGITS / temperature, dim=-1))


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 3}, [6, 2, 8]),
        ({"top_p": 0.8}, [6, 2, 8]),
        ({"min_p": 0.2}, [6, 2, 8]),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.3}, [6, 2]),
    ],
)
def test_what_a_filter_keeps_is_drawn_as_often_as_before(filters, kept):
    """The odds among those that are kept do not change; no other is ever drawn."""
    probabilities = torch.zeros_like(LOGITS)
    probabilities[kept] = torch.softmax(LOGITS[kept], dim=-1)

    assert_follows(counts_of(50_000, **filters), probabilities)


def test_steps_and_rows_are_drawn_independently():
    """Pairs of tokens, of two rows and of two steps, come as often as the product says."""
    logits = torch.tensor([[0.0, 1.0]]).expand(20_000, -1)
    sampler = Sampler(1.0, 20_000, seed=3)
    first, second = sampler(logits), sampler(logits)
    one = torch.softmax(logits[0], dim=-1)
    product = (one[:, None] * one).flatten()

    assert_follows(torch.bincount(2 * first + second, minlength=4), product)
    assert_follows(torch.bincount(2 * first[::2] + first[1::2], minlength=4), product)


def test_noise_follows_gumbels_distribution_on_both_sides():
    """P(g < x) = exp(-exp(-x)), up to where one number in a hundred thousand is."""
    noise = Sampler(1.0, 1, seed=0).noise(2_000_000)
    assert noise is not None

    assert noise.dtype == torch.float32
    for x in (-2.0, -1.0, 0.0, 1.0, 3.0, 6.0, 9.0, 11.5):
        probability = math.exp(-math.exp(-x))
        spread = math.sqrt(probability * (1 - probability) / noise.numel())
        assert float((noise < x).double().mean()) == pytest.approx(probability, abs=4 * spread)


def test_no_noise_is_infinite():
    """Not for the lowest and the highest integer either, nor does it fall between them."""
    bits = torch.tensor([0, 1, 2**30, 2**31 - 200, 2**31 - 1], dtype=torch.int32)
    noise = sampling.gumbel(bits)

    assert bool(noise.isfinite().all())
    assert noise.tolist() == sorted(noise.tolist(), reverse=True)
    assert float(noise[0]) == pytest.approx(32 * math.log(2), abs=1e-5)
    assert float(noise[2]) == pytest.approx(-math.log(math.log(2)), abs=1e-5)


def test_a_hopeless_symbol_is_not_drawn_from_a_large_vocabulary():
    """50,256 symbols of one in 10**12 each, 500 times; uniforms that may be 0 draw some of them."""
    logits = torch.full((100, 50_257), -27.6)
    logits[:, 7] = 0.0
    sampler = Sampler(1.0, 100, seed=1)

    for _ in range(5):
        assert bool((sampler(logits) == 7).all())


def test_a_temperature_of_0_takes_the_first_of_the_likeliest_and_draws_nothing():
    logits = torch.tensor([[0.1, 3.0, 3.0], [5.0, -torch.inf, 4.0]])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sampler = Sampler(0.0, 2, top_k=2, top_p=0.9, min_p=0.1)

    assert sampler(logits).tolist() == [1, 0]
    assert sampler.noise(3) is None
    assert torch.equal(torch.rand(1), expected)


def test_a_temperature_near_0_is_the_argmax():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    for temperature in (1e-6, 1e-30, 5e-324):
        sampler = Sampler(temperature, 50, seed=0, top_k=10, top_p=0.9, min_p=0.01)

        assert torch.equal(sampler(logits), logits.argmax(dim=-1))


def test_without_a_seed_torchs_generator_decides():
    def draw(seed):
        torch.manual_seed(seed)
        return Sampler(1.0, 100)(torch.zeros(100, 50))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    """A batch equals each row alone, and a row's order in the batch has no say."""
    logits = torch.randn(3, 3, 40, generator=torch.Generator().manual_seed(0))
    seeds = [5, 6, 7]
    settings = {"top_k": 30, "top_p": 0.95, "min_p": 0.001}
    together = Sampler(1.5, 3, seeds, **settings)
    turned = Sampler(1.5, 3, np.array(seeds[::-1]), **settings)
    alone = [Sampler(1.5, 1, [seed], **settings) for seed in seeds]

    for step in logits:
        tokens = together(step)
        assert torch.equal(tokens, turned(step.flip(0)).flip(0))
        assert tokens.tolist() == [int(s(step[i : i + 1])) for i, s in enumerate(alone)]


def test_one_seed_gives_rows_noise_of_their_own():
    noise = Sampler(1.0, 3, seed=4).noise(1000)
    more = Sampler(1.0, 4, seed=np.int64(4)).noise(1000)
    assert noise is not None
    assert more is not None

    assert len({tuple(row.tolist()) for row in noise}) == 3
    assert torch.equal(noise, more[:3])


def test_a_seed_of_its_own_is_another_than_the_same_for_all():
    """By 5 a row draws what its place says; by [5] the same wherever it stands."""
    for_all, own = (Sampler(1.0, 1, seed=seed).noise(100) for seed in (5, [5]))
    moved = Sampler(1.0, 2, seed=[6, 5]).noise(100)
    assert for_all is not None
    assert moved is not None

    assert not torch.equal(for_all, own)
    assert torch.equal(moved[1:], own)


def test_a_model_draws_sequences_as_often_as_it_says_they_come():
    """Pairs of tokens after a prompt, against the products of its probabilities in eval mode."""
    model = models.TransformerLM(4, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=8)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=1)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    whole = torch.cat([torch.full((16, 1), 2), pairs], dim=1)
    model.eval()
    with torch.no_grad():
        log_probs = sampling.log_probs_of(model(whole), whole)[:, 1:].sum(1)

    found = decoding.autoregressive_sample(
        model, torch.full((20_000, 1), 2), 20_000, eos_id=-1, max_length=2, seed=0
    )

    assert_follows(torch.bincount(4 * found[:, 0] + found[:, 1], minlength=16), log_probs.exp())


def test_masked_symbols_are_never_drawn_at_any_temperature():
    logits = torch.full((1000, 6), -torch.inf)
    logits[:, 2], logits[:, 4] = -50.0, -51.0
    for temperature in (0.0, 1.0, 1e6):
        for filters in ({}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 0.001}):
            tokens = Sampler(temperature, 1000, 0, **filters)(logits)

            assert set(tokens.tolist()) == ({2} if temperature == 0 else {2, 4})


def brute_force(logits, temperature, top_k, top_p, min_p):
    """The symbols that are kept, by their definitions, in float64."""
    kept = {i for i, logit in enumerate(logits) if logit > -math.inf}

    def probabilities():
        best = max(logits)
        mass = {i: math.exp((logits[i] - best) / temperature) for i in kept}
        return {i: m / sum(mass.values()) for i, m in mass.items()}

    if top_k is not None:
        kth = sorted((logits[i] for i in kept), reverse=True)[: int(top_k)][-1]
        kept = {i for i in kept if logits[i] >= kth}
    if top_p is not None:
        p = probabilities()
        kept = {i for i in kept if sum(q for q in p.values() if q > p[i]) < top_p}
    if min_p is not None:
        p = probabilities()
        kept = {i for i in kept if p[i] >= min_p * max(p.values())}
    return kept


# Logits of few values tie often; shares that no sum of them meets leave rounding no say.
LOGIT = st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 0.25, 1.0, 2.5])
SHARE = st.sampled_from([0.0313, 0.1207, 0.2503, 0.3331, 0.5011, 0.7477, 0.9017, 0.9903])


@given(
    logits=st.lists(LOGIT, min_size=1, max_size=12).filter(lambda x: max(x) > -math.inf),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | SHARE | st.just(1.0),
    min_p=st.none() | SHARE | st.sampled_from([0.0, 1.0]),
)
@example(logits=[1.0, 0.75, 0.5, 0.0], temperature=1.0, top_k=2, top_p=0.5011, min_p=None)
@example(logits=[0.0, 0.0, 0.0, 0.0], temperature=1.0, top_k=1, top_p=0.9, min_p=None)
def test_filters_keep_exactly_what_they_should(logits, temperature, top_k, top_p, min_p):
    """Each alone and all in turn, with ties and masks, against their definitions."""
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampler = Sampler(temperature, len(logits), seed=0, **filters)
    noise = torch.full((len(logits), len(logits)), -1e30).fill_diagonal_(1e30)
    rows = torch.tensor(logits).expand(len(logits), -1)
    chosen = sampler.choose(rows, noise)  # row i takes symbol i wherever it may

    kept = {i for i, token in enumerate(chosen.tolist()) if token == i}
    assert kept - {i for i, x in enumerate(logits) if x == -math.inf} == brute_force(
        logits, temperature, top_k, top_p, min_p
    )


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999999])
def test_a_nucleus_of_any_size_is_found(top_p, temperature):
    """Where the likeliest few symbols hold enough, and where almost all are needed."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 5.0):
        logits = torch.randn(2, 5000, generator=generator) * scale
        logits -= logits.amax(dim=-1, keepdim=True)
        lowest = sampling.lowest_kept(logits, temperature, None, top_p, None)
        probabilities = torch.softmax(logits.double() / temperature, dim=-1)
        kept = logits >= lowest
        mass = probabilities.masked_fill(~kept, 0.0).sum(dim=-1)
        last = probabilities.masked_fill(~kept, 1.0).amin(dim=-1)

        assert bool((mass >= top_p - 1e-6).all())
        assert bool((mass - last < top_p + 1e-6).all())


def test_filters_look_at_the_distribution_that_is_drawn_from():
    """Half the temperature squares the odds, so that a nucleus is smaller."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()

    assert counts_of(1000, 1.0, logits, top_p=0.6).count_nonzero() == 2
    assert counts_of(1000, 0.5, logits, top_p=0.6).count_nonzero() == 1
    assert counts_of(1000, 1.0, logits, min_p=0.5).count_nonzero() == 2
    assert counts_of(1000, 0.5, logits, min_p=0.5).count_nonzero() == 1


def test_what_keeps_all_changes_nothing():
    logits = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    plain = Sampler(1.0, 100, seed=2)(logits)

    for filters in ({"top_k": 20}, {"top_k": 99}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert torch.equal(Sampler(1.0, 100, seed=2, **filters)(logits), plain)


def test_half_precision_and_large_logits_are_drawn_in_float32():
    """bfloat16 logits far from 0: what is drawn is drawn from their exact softmax."""
    logits = (LOGITS + 4096).to(torch.bfloat16)
    shifted = (logits.float() - 4096).expand(500, -1)

    assert torch.equal(Sampler(1.0, 500, 0)(logits.expand(500, -1)), Sampler(1.0, 500, 0)(shifted))


def test_choosing_is_one_graph():
    """Without a break, filters and all; and the same tokens."""
    sampler = Sampler(0.8, 4, seed=0, top_k=50, top_p=0.9, min_p=0.01)
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    noise = sampler.noise(100)
    compiled = torch.compile(sampler.choose, fullgraph=True, backend="eager")

    assert torch.equal(compiled(logits, noise), sampler.choose(logits, noise))


def test_log_probabilities_are_the_models_own():
    """At temperature 1, unfiltered, in float32, for any leading axes."""
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    logits[..., 4] = -torch.inf
    tokens = torch.tensor([[0, 4, 8], [1, 2, 3]])
    expected = torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]

    torch.testing.assert_close(sampling.log_probs_of(logits, tokens), expected)
    half = sampling.log_probs_of(logits.bfloat16(), tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, sampling.log_probs_of(logits.bfloat16().float(), tokens))
    torch.testing.assert_close(sampling.log_probs_of(logits + 100, tokens), expected)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"temperature": -0.5}, ValueError, "temperature is a number, 0 or more; got -0.5"),
        ({"temperature": math.nan}, ValueError, "temperature is a number, 0 or more; got nan"),
        ({"temperature": math.inf}, ValueError, "temperature is a number, 0 or more; got inf"),
        ({"temperature": None}, TypeError, "temperature is a number, 0 or more; got None"),
        ({"temperature": "1"}, TypeError, "temperature is a number, 0 or more; got '1'. 0 takes"),
        ({"temperature": torch.ones(2)}, TypeError, r"got tensor\(\[1., 1.\]\)"),
        ({"top_k": 0}, ValueError, "top_k keeps at least 1 symbol, an integer; got 0. Give None"),
        ({"top_k": -3}, ValueError, "at least 1 symbol, an integer; got -3"),
        ({"top_k": 2.5}, TypeError, "at least 1 symbol, an integer; got 2.5"),
        ({"top_k": 2.0}, TypeError, "at least 1 symbol, an integer; got 2.0"),
        ({"top_k": True}, ValueError, "at least 1 symbol, an integer; got True"),
        ({"top_p": "a"}, TypeError, "top_p is a probability above 0 and up to 1; got 'a'"),
        ({"min_p": [0.1]}, TypeError, r"min_p is a share of the likeliest .*; got \[0.1\]"),
        ({"top_p": 0.0}, ValueError, "top_p is a probability above 0 and up to 1; got 0.0"),
        ({"top_p": 1.1}, ValueError, "up to 1; got 1.1. Give None to keep all"),
        ({"top_p": math.nan}, ValueError, "up to 1; got nan"),
        ({"min_p": -0.1}, ValueError, "min_p is a share of the likeliest .*; got -0.1"),
        ({"min_p": 1.5}, ValueError, "0 to 1; got 1.5"),
        ({"min_p": math.nan}, ValueError, "0 to 1; got nan"),
        ({"seed": [1]}, ValueError, "one seed, or one a row; got 1 for 2 rows"),
        ({"seed": np.array([1, 2, 3])}, ValueError, "got 3 for 2 rows"),
        ({"seed": 1.5}, TypeError, "A seed is an integer; got 1.5. Give one for all rows, or a"),
        ({"seed": [1, 1.5]}, TypeError, r"A seed is an integer; got \[1, 1.5\]"),
        ({"seed": "ab"}, TypeError, "A seed is an integer; got 'ab'"),
        ({"seed": [[1], [2]]}, TypeError, r"A seed is an integer; got \[\[1\], \[2\]\]"),
        ({"seed": torch.ones(2)}, TypeError, r"A seed is an integer; got tensor"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kwargs, error, match):
    with pytest.raises(error, match=match):
        Sampler(**{"temperature": 1.0, "batch_size": 2, **kwargs})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([0.0, math.nan, 1.0], "those of row 1 hold NaN. Look for the first layer"),
        ([0.0, math.inf, 1.0], r"those of row 1 hold \+inf"),
        ([-math.inf] * 3, "those of row 1 hold -inf everywhere"),
    ],
)
def test_logits_that_are_no_numbers_are_refused(temperature, row, match):
    logits = torch.tensor([[0.0, 1.0, -math.inf], row])

    with pytest.raises(ValueError, match=match):
        Sampler(temperature, 2, seed=0)(logits)


def test_logits_of_another_shape_are_refused():
    sampler = Sampler(1.0, 2, seed=0)

    with pytest.raises(ValueError, match=r"takes logits of shape \(2, vocab\); got \(3, 4\)"):
        sampler(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"got \(2, 1, 4\)"):
        sampler(torch.zeros(2, 1, 4))


@pytest.mark.parametrize("unit", [8, 10, 16, 20, 100])
def test_top_p_that_is_a_sum_of_the_likeliest_keeps_those_alone(unit):
    """Though float32 has neither the probabilities' logarithms nor their sums exactly."""
    draws = random.Random(unit)
    for _ in range(300):
        n = draws.randrange(3, 7)
        cuts = sorted(draws.sample(range(1, unit), n - 1))
        counts = sorted(np.diff([0, *cuts, unit]).tolist(), reverse=True)
        k = draws.randrange(1, n)
        if counts[k - 1] == counts[k]:
            continue  # what ties with one that is kept is kept
        logits = torch.tensor([counts]).double().div(unit).log().float()
        logits = logits - logits.max()
        top_p = float(Fraction(sum(counts[:k]), unit))

        lowest = sampling.lowest_kept(logits, 1.0, None, top_p, None)

        assert (logits >= lowest)[0].tolist() == [i < k for i in range(n)], (counts, top_p)
