"""Drafts change how many steps are taken, and no token."""

import random

import compiled_decoding
import pytest
import torch
from decoders import Caching, recurrent
from drafting import VOCAB, AnyLength, all_models, around, drawn, lively
from ties import assert_same_tokens, in_float64

from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import drafted
from trax_torch.supervised._generation.budget import Budget
from trax_torch.supervised._generation.drafts import ModelDrafts, NoiseAhead, TextDrafts
from trax_torch.supervised._generation.ragged import RaggedRun
from trax_torch.supervised._generation.sampling import Sampler

PROMPTS = torch.tensor([[1, 2, 3, 1], [4, 5, 6, 4], [2, 2, 2, 2]])
SETTINGS = {"batch_size": 3, "temperature": 0.0, "eos_id": -1, "max_length": 30}


def sample(model, inputs=PROMPTS, **kwargs):
    return decoding.autoregressive_sample(model, inputs, **{**SETTINGS, **kwargs})


@pytest.fixture
def any_length(monkeypatch):
    """Drafts are made all the time, and of all lengths."""
    monkeypatch.setattr(AnyLength, "draws", random.Random(0))
    monkeypatch.setattr(drafted, "Budget", AnyLength)


@pytest.fixture
def sizes(monkeypatch):
    """How many tokens each step reads."""
    noted = []
    look = RaggedRun.look
    monkeypatch.setattr(
        RaggedRun, "look", lambda run, tokens: (noted.append(tokens.shape[1]), look(run, tokens))[1]
    )
    return noted


def successor():
    """A model that remembers nothing: after each symbol comes the next."""
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, VOCAB), tl.Dense(VOCAB, use_bias=False))
    model.init(torch.zeros(1, 1, dtype=torch.int64))
    model.weights = ((), torch.eye(VOCAB), torch.eye(VOCAB).roll(1, 1))
    return model


def assert_same_as_plain(seed, n):
    draws = random.Random(seed)
    pairs = list(all_models())
    for _ in range(n):
        model, drafts = draws.choice(pairs)
        inputs, settings = drawn(draws, model)
        want = decoding.autoregressive_sample(model, inputs, **settings)
        got = decoding.autoregressive_sample(model, inputs, draft=draws.choice(drafts), **settings)
        assert torch.equal(got[0], want[0]), (model, settings)
        torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("any_length")
def test_tokens_are_those_of_the_run_without_drafts():
    """And their log-probabilities, whatever drafts, temperatures, filters, prompts and ends."""
    assert_same_as_plain(seed=0, n=40)


@pytest.mark.slow
@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("seed", range(1, 6))
def test_tokens_are_those_of_the_run_without_drafts_in_500_drawn_settings(seed):
    """None of them at a tie: in float64 there are none."""
    assert_same_as_plain(seed, n=100)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_float32_tokens_are_those_of_float64_up_to_ties(temperature):
    """Longer steps are rounded otherwise; a token may be another one where two are as good."""
    model = lively("two layers", dtype=torch.float32)
    exact = in_float64(model)
    settings = {"temperature": temperature, "seed": 1}

    found = sample(model, draft="prompt", **settings)

    assert_same_tokens(found, sample(exact, **settings), exact, PROMPTS, temperature, 1)


@pytest.mark.usefixtures("any_length")
def test_a_stream_with_drafts_yields_what_a_stream_does():
    """Position by position, with pairs of log-probabilities; other runs may go on meanwhile."""
    model = lively("attention")
    settings = {"batch_size": 3, "seed": 2, "return_log_probs": True}
    streams = [
        decoding.autoregressive_sample_stream(model, PROMPTS, draft=draft, **settings)
        for draft in (None, "prompt", lively("attention", seed=5))
    ]
    for _, want, *others in zip(range(20), *streams, strict=False):
        for got in others:
            assert torch.equal(got[0], want[0])
            assert got[0].dtype == want[0].dtype
            torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_text_that_repeats_itself_takes_few_steps(sizes, batch):
    """As soon as it does; greedily and by chance."""
    model, prompts = successor(), torch.arange(batch)[:, None]
    settings = {"batch_size": batch, "temperature": 0.0, "eos_id": -1, "max_length": 80}

    tokens = decoding.autoregressive_sample(model, prompts, draft="prompt", **settings)

    assert torch.equal(tokens, (prompts + torch.arange(1, 81)) % VOCAB)
    assert len(sizes) <= 40


def test_a_model_that_drafts_as_the_model_chooses_takes_few_steps(sizes, monkeypatch):
    """By the same noise: at temperature 1, too, all drafts of an equal model are right."""
    monkeypatch.setattr(drafted, "_relative_size", lambda *models: 0.0)
    model, twin = lively("attention"), lively("attention")

    sample(model, draft=twin, temperature=1.0, seed=0, max_length=60)

    assert sum(n == drafted.N_DRAFTED + 1 for n in sizes) >= 5
    assert sum(n > 2 for n in sizes) <= 11  # all but the draft's own steps


@pytest.mark.usefixtures("any_length")
def test_tokens_of_a_draft_are_chosen_at_once(sizes, monkeypatch):
    """As often as the model is asked, and no token by itself."""
    noted = []
    choose = Sampler.choose_any
    monkeypatch.setattr(
        Sampler, "choose_any", lambda s, x, *noise: (noted.append(len(x)), choose(s, x, *noise))[1]
    )

    sample(lively("attention"), draft="prompt", temperature=1.0, seed=0)

    assert noted == [3, *(3 * n for n in sizes)]
    assert max(sizes) > 2


@pytest.mark.parametrize(("batch", "n"), [(1, 8), (2, 4), (3, 2), (4, 2), (9, 2)])
def test_compiled_steps_have_no_more_tokens_than_are_quick(batch, n):
    """Up to 8 of all rows on a CPU; of more rows two."""
    assert drafted.n_at_once(batch, torch.device("cpu")) == n
    assert drafted.n_at_once(batch, torch.device("cuda")) == 8


@pytest.mark.parametrize("batch", [1, 3])
def test_drafts_that_never_fit_cost_next_to_nothing(sizes, monkeypatch, batch):
    """With what longer steps cost at most, 200 tokens take at most 1 / 0.95 of 200 steps."""

    def wrong(self, rows, n, noise):
        return [[(text[-1] + 2) % VOCAB] * n for text in self._texts]

    monkeypatch.setattr(TextDrafts, "propose", wrong)
    prompts = torch.arange(batch)[:, None]
    decoding.autoregressive_sample(
        successor(), prompts, batch, 0.0, max_length=200, eos_id=-1, draft="prompt"
    )

    assert len(sizes) == 199
    each = drafted._COST + batch * drafted._COST_OF_ROW
    costs = [1.0 if n == 1 else 1 + drafted._FIRST_COST + each * (n - 1) for n in sizes]
    assert 199 < sum(costs) <= 200 / 0.95


def test_what_a_small_model_reads_late_is_counted(sizes, monkeypatch):
    """One that never fits is tried less often, since each try begins with what it has not read."""

    def wrong(self, rows, n, noise):
        made = right(self, rows, n, noise)
        return [
            [(text[-1] + 2) % VOCAB] * len(d) for text, d in zip(self._texts, made, strict=True)
        ]

    right, reading = ModelDrafts.propose, []
    counted = ModelDrafts.cost_of_reading
    monkeypatch.setattr(ModelDrafts, "propose", wrong)
    monkeypatch.setattr(drafted, "_relative_size", lambda *_: 0.1)
    n_tries = {}
    for kind in ("counted", "not"):
        sizes.clear()

        def cost(self, rows, kind=kind):
            reading.append(counted(self, rows))
            return reading[-1] if kind == "counted" else 0.0

        monkeypatch.setattr(ModelDrafts, "cost_of_reading", cost)
        decoding.autoregressive_sample(
            successor(), PROMPTS[:1], 1, 0.0, max_length=300, eos_id=-1, draft=lively("attention")
        )
        n_tries[kind] = sum(n > 1 for n in sizes)

    assert max(reading) >= 0.2  # a step of 64 tokens, of a tenth of the size
    assert 1 <= n_tries["counted"] < n_tries["not"]


@pytest.mark.parametrize("max_length", [20, 100, 1000, None])
@pytest.mark.parametrize("share_right", [0.0, 0.2, 0.5, 0.9])
def test_a_budget_loses_no_more_than_a_twentieth(max_length, share_right):
    """Whatever drafts bring: each token is right with one probability, and costs what is said."""
    draws = random.Random(0)
    budget = Budget(0.3, 0.25, 7, max_length)
    n_tokens, time = 1, 1.0
    while n_tokens < (max_length or 1000):
        n = budget.n_now(n_tokens)
        n_right = 0
        while n_right < n and draws.random() < share_right:
            n_right += 1
        time += 1 + (0.3 + 0.25 * n if n else 0)
        n_tokens += n_right + 1
        budget.note(n, n_right, n_right + 1)

    assert 0.95 * time <= n_tokens
    if share_right == 0.9 and n_tokens >= 100:
        assert n_tokens > 1.2 * time


@pytest.mark.parametrize("max_length", [100, 1000, None])
def test_a_budget_asks_for_no_draft_that_cannot_pay(max_length):
    """Where a step with a draft costs as much for one token as for all, one is never worth it."""
    budget = Budget(1.1, 0.2, 7, max_length)  # a compiled step, and a small model's
    drafted = []
    for n_tokens in range(1, 80):
        drafted.append(budget.n_now(n_tokens))
        budget.note(drafted[-1], 0, 1)
    assert 1 <= sum(n > 0 for n in drafted) <= 4
    assert not {1} & set(drafted)

    budget = Budget(1.1, 0.2, 7, max_length)
    n_tokens, n_steps = 1, 0
    while n_tokens < 80:
        n = budget.n_now(n_tokens)
        budget.note(n, n, n + 1)  # all are right
        n_tokens, n_steps = n_tokens + n + 1, n_steps + 1
    assert n_steps <= 80 / 8 + 4


def test_a_budget_counts_what_a_small_model_reads_before_each_try():
    """Each 64 tokens that were made without it, say, cost it a step that is not compiled."""
    times = {}
    for reading in (0.0, 0.8):
        budget = Budget(1.1, 0.2, 7, 200)
        n_unread, times[reading] = 1, 0.0
        for n_tokens in range(1, 200):  # no draft is right
            of_try = reading if n_unread > 8 else 0.0
            n = budget.n_now(n_tokens, of_try)
            budget.note(n, 0, 1, of_try)
            times[reading] += 1 + (1.1 + 0.2 * n + of_try if n else 0)
            n_unread = 1 if n else n_unread + 1

    assert max(times.values()) <= 199 / 0.95


def test_a_row_draws_its_noise_in_order_and_once():
    """However far ahead some rows look, it is what a sampler would draw token by token."""
    plain, ahead = (Sampler(1.0, 2, seed=3) for _ in range(2))
    want = torch.stack([plain.noise(5) for _ in range(4)])
    noise = NoiseAhead(ahead, 5, torch.device("cpu"))

    assert torch.equal(noise.at(1, [0])[0], want[1, 0])
    noise.use([2, 0])
    assert torch.equal(noise.at(1, [0, 1]), torch.stack([want[3, 0], want[1, 1]]))
    noise.use([0, 1])
    assert torch.equal(noise.at(0, [0, 1]), torch.stack([want[2, 0], want[1, 1]]))
    first = noise.first([2, 1])
    assert torch.equal(first[0], want[2:, 0])
    assert torch.equal(first[1], torch.stack([want[1, 1], torch.zeros(5)]))


def test_text_is_drafted_by_its_longest_run_that_stood_before():
    """The latest of them, and round and round where that has not ended."""
    noise = NoiseAhead(Sampler(0.0, 4), VOCAB, torch.device("cpu"))
    texts = [[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], [7, 8, 7, 8], [1, 2, 3], [5, 6, 0, 5, 6]]

    drafts = TextDrafts(texts).propose([0, 1, 2], 3, noise)

    assert drafts == [[4, 9, 2], [7, 8, 7], [], []]


@pytest.mark.usefixtures("any_length")
def test_a_draft_may_share_layers_with_the_model():
    """The first layers of a model and its own head, say: each run has its own past."""
    model = lively("two layers")
    first = tl.Serial(*model.sublayers[:3], model.sublayers[-1])
    settings = {"temperature": 1.0, "seed": 4}

    assert torch.equal(sample(model, draft=first, **settings), sample(model, **settings))


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("draft", ["prompt", "model", "model with less room"])
def test_a_model_may_be_filled_to_its_last_position(draft):
    """No draft looks beyond it; one more token is refused, as it is without drafts."""
    model = lively("attention")  # with room for 80
    short = around(tl.PositionalEncoding(66), tl.CausalAttention(8, n_heads=2))
    short.init(PROMPTS, rng=0)
    others = {"model": lively("attention", seed=5), "model with less room": short}
    draft = others.get(draft, draft)
    prompts, lengths = PROMPTS.repeat(1, 15), [58, 60, 57]
    for settings in ({}, {"prompt_lengths": lengths}):
        fits = {**settings, "max_length": 20}
        got = sample(model, prompts, draft=draft, **fits)
        assert torch.equal(got, sample(model, prompts, **fits))
        for each in (None, draft):
            with pytest.raises(tl.LayerError, match="ask for at most 20 tokens"):
                sample(model, prompts, draft=each, **{**settings, "max_length": 21})


@pytest.mark.usefixtures("any_length", "_compiler_afresh")
@pytest.mark.parametrize("name", ["attention", "encoder-decoder"])
def test_compiled_steps_with_drafts_are_the_same(name):
    """A program for one token and one for the most, and of a batch for rows that are apart."""
    model = lively(name)
    for batch, n_programs in ((1, 2), (3, 3)):
        graphs, backend = compiled_decoding.counted()
        fast = tl.Accelerate(model, backend=backend)
        for n, temperature in ((3, 0.0), (5, 1.0), (4, 1.0)):
            prompts = compiled_decoding.prompts(n, batch, seed=n)
            settings = {"batch_size": batch, "temperature": temperature, "seed": 3}
            got = sample(fast, prompts, draft="prompt", **settings)
            assert torch.equal(got, sample(model, prompts, **settings))
        assert len(graphs) <= n_programs


@pytest.mark.slow
@pytest.mark.usefixtures("any_length", "_compiler_afresh")
def test_after_a_warmup_with_a_draft_nothing_compiles():
    """By torch's own compiler: model, draft, and rows that are apart."""
    model, small = lively("attention"), lively("attention", seed=5)
    decoding.warmup(model, batch_size=2, inputs=PROMPTS[:2], max_length=30, draft=small)
    settings = {"batch_size": 2, "temperature": 1.0, "seed": 3}
    want = sample(model, PROMPTS[:2], accelerate=False, **settings)

    torch.compiler.set_stance("fail_on_recompile")
    got = sample(model, PROMPTS[:2], draft=small, **settings)

    assert torch.equal(got, want)


class Wide(tl.Layer):
    """Gives logits for more symbols than it was asked for."""

    def __init__(self):
        super().__init__()

    def forward(self, tokens):
        return torch.zeros(*tokens.shape, 2 * VOCAB)


@pytest.mark.parametrize(
    ("model", "settings", "error", "words"),
    [
        (lambda: recurrent(tl.GRU(8)), {"draft": "prompt"}, TypeError, "GRU.*cannot"),
        (
            lambda: around(tl.CausalConv(8, kernel_width=3)),
            {"draft": "prompt"},
            TypeError,
            "CausalConv in Serial cannot",
        ),
        (Caching, {"draft": "prompt"}, TypeError, "Caching in"),
        (lambda: lively("attention"), {"draft": recurrent(tl.GRU(8))}, TypeError, "GRU"),
        (
            lambda: lively("attention"),
            {"draft": "prompt", "banned": [3]},
            ValueError,
            "banned and forced",
        ),
        (lambda: lively("attention"), {"draft": "text"}, ValueError, "draft is 'prompt'"),
        (
            lambda: lively("attention"),
            {"draft": "prompt", "eval_mode": True},
            ValueError,
            "leave eval_mode out",
        ),
        (
            lambda: lively("attention"),
            {"draft": lively("encoder-decoder")},
            TypeError,
            "n_in=1",
        ),
        (lambda: lively("attention"), {"draft": Wide()}, ValueError, "7 symbols; Wide"),
    ],
)
def test_what_cannot_be_drafted_is_refused(model, settings, error, words):
    """By the name of the layer that cannot go back, or by what was given."""
    model = model()
    if isinstance(model, tl.Serial):
        model.init(torch.zeros(1, 2, dtype=torch.int64), rng=0)
    with pytest.raises(error, match=words):
        sample(model, **settings)


@pytest.mark.usefixtures("any_length")
def test_logits_that_are_no_numbers_are_refused_with_drafts():
    """At the token that has them, in a row that goes on."""
    model = lively("attention")
    model.sublayers[-1].weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"logits for token 1 are not numbers"):
        sample(model, draft="prompt")
