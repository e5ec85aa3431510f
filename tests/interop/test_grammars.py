"""What is made under a grammar fits it, and is the best that does."""

import itertools
import json
import re
import sys

import pytest
import torch
from decoders import livelier, recurrent

from trax_torch import layers as tl
from trax_torch.interop.grammars import Grammar
from trax_torch.supervised import decoding

pytest.importorskip("outlines_core")

TEXTS = [None, None, "a", "b", "c", "ab", "a"]  # 1 ends a text; two tokens are the same text
PATTERN = "(ab|ba)*c"


@pytest.fixture(scope="module")
def model():
    return recurrent(tl.GRU(8)).eval()


def text_of(tokens):
    return "".join(TEXTS[t] or "" for t in tokens)


def log_prob(model, tokens):
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([tokens]))[0], dim=-1)
    return float(log_probs[range(len(tokens)), tokens].sum())


def fitting(length):
    """All rows of tokens that fit and end, of so many tokens at most."""
    for n in range(1, length):
        for made in itertools.product(range(2, len(TEXTS)), repeat=n):
            if re.fullmatch(PATTERN, text_of(made)):
                yield [*made, 1]


def test_samples_fit_and_come_as_often_as_the_masked_model_says(model):
    """2,000 rows: each fits, or is the beginning of one that does, and several texts come."""
    grammar = Grammar(PATTERN, TEXTS)
    found = decoding.autoregressive_sample(
        model, batch_size=2000, seed=0, max_length=8, logits_processor=grammar
    )

    texts = set()
    for row in found.tolist():
        if 1 in row:
            assert re.fullmatch(PATTERN, text_of(row[: row.index(1)]))
            texts.add(text_of(row[: row.index(1)]))
        else:
            assert re.fullmatch("(ab|ba)*[abc]?", text_of(row))
    assert len(texts) >= 5


def test_tokens_are_those_of_a_search_by_hand(model):
    """Greedy: at each token the likeliest of those with which some fitting text begins."""
    rows = [tuple(row) for row in fitting(7)]
    grammar = Grammar(PATTERN, TEXTS)
    (found,) = decoding.autoregressive_sample(
        model, temperature=0.0, max_length=4, logits_processor=grammar
    ).tolist()

    made = []
    while len(made) < len(found):
        n = len(made)
        follow = {row[n] for row in rows if len(row) > n and list(row[:n]) == made}
        if not follow:
            break
        made.append(max(follow, key=lambda t: log_prob(model, [*made, t])))
    assert found == made


def test_beams_find_the_best_texts_of_all(model):
    """Enough beams find all texts in order, with the model's own scores."""
    want = sorted(((log_prob(model, row), row) for row in fitting(5)), reverse=True)
    found, scores = decoding.beam_search(
        model,
        n_beams=400,
        max_length=5,
        length_penalty=0,
        return_scores=True,
        logits_processor=Grammar(PATTERN, TEXTS),
    )

    ended = [[t for t in row if t] for row in found[0].tolist() if 1 in row]
    assert ended == [row for _, row in want]
    assert [float(s) for s, row in zip(scores[0], found[0].tolist(), strict=True) if 1 in row] == (
        pytest.approx([score for score, _ in want], rel=1e-5)
    )


def test_texts_begin_after_the_prompt_and_one_grammar_serves_streams_at_once(model):
    grammar = Grammar("c", TEXTS)
    asked = {"max_length": 2, "logits_processor": grammar, "n_samples": 2}
    streams = [
        decoding.autoregressive_sample_stream(
            model, [[4, 4, 3], [2, 0, 0]], 2, prompt_lengths=[3, 1], seed=seed, **asked
        )
        for seed in (0, 1)
    ]
    for expected in (4, 1):
        for stream in streams:
            assert (next(stream) == expected).all()


def test_json_fits_its_schema():
    """Of a model that knows nothing, by the characters of JSON."""
    texts = [None, None, *'{}[]":,truefalsb0123456789-', b"\xc3", b"\xa9"]  # two halves of an é
    model = tl.Serial(tl.ShiftRight(), tl.Embedding(len(texts), 8), tl.GRU(8), tl.Dense(len(texts)))
    model = livelier(model, torch.zeros(1, 1, dtype=torch.int64))
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 22, "é"]}},
        "required": ["a", "b"],
    }
    found = decoding.autoregressive_sample(
        model,
        batch_size=20,
        seed=0,
        max_length=60,
        logits_processor=Grammar.of_json(schema, texts),
    )

    made = [row[: row.index(1)] for row in found.tolist() if 1 in row]
    assert made
    for row in made:
        text = b"".join(
            t.encode() if isinstance(t, str) else t for t in map(texts.__getitem__, row)
        )
        value = json.loads(text)
        assert set(value) == {"a", "b"}
        assert isinstance(value["a"], bool)
        assert value["b"] in [1, 22, "é"]


@pytest.mark.parametrize("pattern", ["(", "z"])
def test_a_grammar_that_no_text_fits_is_refused(pattern):
    with pytest.raises(ValueError, match=r"some text of the tokens fits; '.' is none"):
        Grammar(pattern, TEXTS)


def test_without_the_library_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)

    with pytest.raises(ImportError, match=r"A grammar needs .* 'trax-torch\[grammars\]'"):
        Grammar(PATTERN, TEXTS)
