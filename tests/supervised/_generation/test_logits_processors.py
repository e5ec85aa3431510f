"""What is asked of logits: penalties, banned and forced tokens, users' functions."""

import copy
import math

import decoding_by_hand as by_hand
import pytest
import torch
from decoders import PROMPTS, VOCAB, recurrent, sample

from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.logits_processors import Rules

RULES = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -0.8},
    "banned": {"banned": [3, 5]},
    "forced": {"forced": {0: 4, 4: [1, 2, 3]}},
    "all": {
        "repetition_penalty": 0.7,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.9,
        "banned": [2],
        "forced": {2: [6, 2, 0]},
    },
}


@pytest.fixture(scope="module")
def models_of(model):
    return {"attention": model, "GRU": recurrent(tl.GRU(8))}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", ["attention", "GRU"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_tokens_are_those_of_the_rules_by_hand(models_of, kind, temperature, rules):
    """Row by row, with prompts of one length and of several, in predict mode and in eval mode."""
    model = models_of[kind]
    lengths = [3, 1, 2]
    settings = {"inputs": PROMPTS, "temperature": temperature, "seed": 5, **rules}
    whole = by_hand.sampled(model, PROMPTS.tolist(), 10, temperature, 5, **rules)
    short = [row[:n] for row, n in zip(PROMPTS.tolist(), lengths, strict=True)]
    ragged = by_hand.sampled(model, short, 10, temperature, 5, **rules)

    assert sample(model, **settings).tolist() == whole
    assert sample(model, prompt_lengths=lengths, **settings).tolist() == ragged
    assert sample(model, eval_mode=True, **settings).tolist() == whole


def test_rules_change_what_is_made(model):
    """So that equal tokens above say something."""
    plain = sample(model, inputs=PROMPTS)

    for name, rules in RULES.items():
        assert not torch.equal(sample(model, inputs=PROMPTS, **rules), plain), name


def test_no_rule_is_no_work(model, monkeypatch):
    """What is asked by its neutral value is not looked at, and tokens are those without."""
    plain = sample(model, inputs=PROMPTS, temperature=1.0, seed=0)
    monkeypatch.setattr("trax_torch.supervised._generation.drawing.Processing", None)
    neutral = {
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "banned": [],
        "forced": {},
        "logits_processor": [],
    }

    assert torch.equal(sample(model, inputs=PROMPTS, temperature=1.0, seed=0, **neutral), plain)


def test_a_processor_sees_all_tokens_so_far_and_its_word_counts(model):
    """Those of the prompt first; -1 before shorter rows; what it writes in place is its own."""
    seen = []

    def always(tokens, logits):
        seen.append(tokens)
        logits[:, :2] = -torch.inf
        return logits

    def later(tokens, logits):
        return logits if tokens.shape[1] < 6 else logits.masked_fill(logits < 99, 0.0) + 0.0

    found, log_probs = sample(
        model,
        inputs=PROMPTS,
        prompt_lengths=[3, 1, 2],
        logits_processor=[always, later],
        return_log_probs=True,
        max_length=6,
    )
    plain = sample(model, inputs=PROMPTS, prompt_lengths=[3, 1, 2], banned=[0, 1], max_length=3)

    given = torch.tensor([[1, 2, 3], [-1, -1, 4], [-1, 2, 2]])
    assert torch.equal(seen[0], given)
    assert torch.equal(seen[-1], torch.cat([given, found[:, :5]], dim=1))
    assert torch.equal(found[:, :3], plain)
    assert bool((found[:, 3:] == 0).all())
    assert bool(log_probs.isfinite().all())  # the model's own


def test_a_processor_sees_the_tokens_made_alone_where_inputs_are_a_source():
    from trax_torch import models

    model = models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=32)
    one = torch.ones(1, 2, dtype=torch.int64)
    model.init((one, one), rng=0)
    seen = []
    found = sample(model, inputs=PROMPTS, logits_processor=lambda t, x: (seen.append(t), x)[1])

    assert [t.shape[1] for t in seen] == list(range(10))
    assert torch.equal(seen[-1], found[:, :-1])


def test_a_processor_may_begin_anew_with_each_run(model):
    """`begin` makes one for each run, so that two streams do not meet in it."""

    class Counting:
        def begin(self, tokens):
            count = iter(range(VOCAB))
            width = tokens.shape[1]

            def processor(tokens, logits):
                assert tokens.shape[1] >= width
                return torch.full_like(logits, -torch.inf).index_fill(
                    1, torch.tensor([next(count)]), 0.0
                )

            return processor

    settings = {"inputs": PROMPTS[:1], "max_length": 4, "logits_processor": Counting()}
    one, other = (decoding.autoregressive_sample_stream(model, **settings) for _ in range(2))
    found = [(int(a), int(b)) for a, b in zip(one, other, strict=True)]

    assert found == [(i, i) for i in range(4)]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_beams_are_those_of_a_plain_beam_search_by_the_rules(model, rules):
    """Kept by hand: the best hypotheses by sums of what the rules leave of log-probabilities."""
    prompts, n_beams, length = PROMPTS.tolist(), 3, 5
    found, scores = decoding.beam_search(
        model,
        PROMPTS,
        3,
        n_beams,
        eos_id=-1,
        max_length=length,
        length_penalty=0,
        return_scores=True,
        **rules,
    )

    for row, prompt in enumerate(prompts):
        beams = [([], 0.0)]
        for _ in range(length):
            grown = []
            for made, score in beams:
                logits = torch.tensor(
                    by_hand.logits_after(model, prompt + made), dtype=torch.float64
                )
                log_probs = torch.log_softmax(logits, 0).tolist()
                ruled = by_hand.ruled(log_probs, prompt, made, row, rules)
                grown += [([*made, t], score + x) for t, x in enumerate(ruled) if x > -math.inf]
            beams = sorted(grown, key=lambda each: -each[1])[:n_beams]
        assert found[row].tolist() == [made for made, _ in beams]
        assert scores[row].tolist() == pytest.approx([s for _, s in beams], rel=1e-5, abs=1e-5)


def test_beams_that_nothing_follows_die_alone(model):
    """A hypothesis without any symbol left is none; where all die, rows hold padding."""

    def end(tokens, logits):
        return logits.masked_fill((tokens[:, -1:] != 4).expand_as(logits), -torch.inf)

    found, scores = decoding.beam_search(
        model, [[1, 4]], n_beams=2, max_length=4, logits_processor=end, return_scores=True
    )

    ended = scores[0] > -torch.inf
    assert found.shape[-1] == 1 or bool((found[0][ended][:, :-1] == 4).all())
    assert bool((found[0][~ended] == 0).all())


def test_forced_places_are_counted_from_the_end_too(model):
    found = sample(model, inputs=PROMPTS, forced={-1: 5, -10: torch.tensor([1, 2, 3])})

    assert found[:, -1].tolist() == [5, 5, 5]
    assert found[:, 0].tolist() == [1, 2, 3]


def test_a_compiled_processor_gives_the_same(model):
    """One that torch.compile made; a program or two serve all lengths."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def penalized(tokens, logits):
        return logits.scatter_add(1, tokens, torch.full_like(tokens, -1, dtype=logits.dtype))

    compiled = torch.compile(penalized, backend=backend, dynamic=True, fullgraph=True)
    want = sample(model, inputs=PROMPTS, logits_processor=penalized)

    assert torch.equal(sample(model, inputs=PROMPTS, logits_processor=compiled), want)
    assert len(graphs) <= 2


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty is a number above 0; got 0"),
        ({"repetition_penalty": "a"}, TypeError, "a number above 0; got 'a'. Give 1.0 for none"),
        ({"presence_penalty": None}, TypeError, "presence_penalty is a number .*; got None. Give"),
        ({"frequency_penalty": float("nan")}, ValueError, "frequency_penalty is a .*; got nan"),
        ({"logits_processor": 3}, TypeError, "is a function .tokens so far, logits.*; got 3"),
        ({"logits_processor": [3]}, TypeError, "or a list of them; got 3"),
        ({"banned": 3}, TypeError, "banned are token ids, a list of integers .*; got 3. Give"),
        ({"banned": [-1]}, ValueError, r"a list of integers from 0; got \[-1\]"),
        ({"banned": [1.5]}, TypeError, r"a list of integers from 0; got \[1.5\]"),
        ({"forced": [1]}, TypeError, r"forced are tokens by their places, as in .*; got \[1\]"),
        ({"forced": {0: 1.5}}, TypeError, "got {0: 1.5}. Tokens are integers, one for all rows"),
        ({"forced": {0: -1}}, ValueError, "got {0: -1}. Tokens are ids from 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, error, match):
    with pytest.raises(error, match=match):
        Rules(**rules)


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ({"banned": [7]}, ValueError, "banned tokens are ids .* vocabulary, 0 to 6; got 7"),
        ({"forced": {1: 9}}, ValueError, "forced tokens are ids .* vocabulary, 0 to 6; got 9"),
        ({"forced": {10: 1}}, ValueError, "place 10, but there are 10 tokens: give one from -10"),
        ({"forced": {0: [1, 2]}}, ValueError, "forced has 2 tokens at place 0 for 3 rows"),
        (
            {"banned": range(7)},
            ValueError,
            "leave no symbol to choose for token 1: in a row all logits are -inf",
        ),
        (
            {"logits_processor": lambda t, x: x * float("nan")},
            ValueError,
            "leave no symbol to choose for token 1",
        ),
        (
            {"logits_processor": lambda t, x: x[0]},
            ValueError,
            r"returns logits of shape \(3, 7\); <lambda> returned \(7,\). Mask symbols by -inf",
        ),
        (
            {"logits_processor": lambda t, x: None},
            TypeError,
            r"returns logits of shape \(3, 7\); <lambda> returned NoneType. Return the tensor",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(model, rules, error, match):
    with pytest.raises(error, match=match):
        sample(model, inputs=PROMPTS, **rules)
    assert sample(model, inputs=PROMPTS).shape == (3, 10)  # and nothing is left behind


def test_places_from_the_end_need_an_end(model):
    stream = decoding.autoregressive_sample_stream(model, forced={-1: 2})

    with pytest.raises(ValueError, match="place -1, which counts from the end; give max_length"):
        next(stream)


@pytest.mark.parametrize("kind", ["attention", "GRU"])
def test_a_processor_may_ask_the_model_that_decodes(models_of, kind):
    """It finds it as it is outside of a run: what it asks is no part of what was made."""
    model = copy.deepcopy(models_of[kind]).eval()
    tokens = torch.tensor([[4], [3], [2]])
    want, found = model(tokens), []

    def processor(so_far, logits):
        found.append(model(tokens))
        decoding.autoregressive_sample(model, tokens[:1], max_length=2)
        return logits

    assert torch.equal(sample(model, logits_processor=processor), sample(model))
    search = {"inputs": PROMPTS, "batch_size": len(PROMPTS), "max_length": 5}
    beams = decoding.beam_search(model, **search, logits_processor=processor)
    assert torch.equal(beams, decoding.beam_search(model, **search))
    assert len(found) > 5
    assert all(torch.allclose(each, want) for each in found)


def test_two_tokens_for_one_place_are_refused(model):
    """A place from the end may be one from the beginning, too."""
    with pytest.raises(ValueError, match="two tokens for one place: -1 is place 3 of 4"):
        sample(model, max_length=4, forced={3: 5, -1: 6})
    assert sample(model, max_length=4, forced={3: 5, -1: 5})[:, 3].tolist() == [5] * len(PROMPTS)


def test_what_is_no_tree_of_beams_is_refused(model):
    with pytest.raises(TypeError, match=r"tree is a decoding.BeamTree\(\), .*; got 3"):
        decoding.beam_search(model, tree=3)
