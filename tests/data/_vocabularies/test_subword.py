import json
import time
import unicodedata
from pydoc_data import topics

import figures
import pytest
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch.data import detokenize, tokenize, vocab_size
from trax_torch.data._vocabularies.subword import SubwordVocabulary

FIGURES = json.loads((figures.FOLDER / "subword_figures.json").read_text())
SMALL = SubwordVocabulary(vocabularies.SMALL, "here")
LETTERS = "ab\\_u;1\n \u00e9"


def ids_of(text, **named):
    return next(iter(tokenize([text], **named))).tolist()


@pytest.mark.parametrize("name", FIGURES)
def test_ids_and_texts_are_those_of_trax(name):
    """154 texts by the two vocabularies of Trax's own models, and what each id stands for."""
    named = vocabularies.others(name)
    assert vocab_size(**named) == FIGURES[name]["vocab_size"]
    assert len(FIGURES[name]["cases"]) == 77

    for text, ids, parts in FIGURES[name]["cases"]:
        assert ids_of(text, **named) == ids
        assert detokenize(ids, **named) == text
        assert [detokenize([i], **named) for i in ids[: len(parts)]] == parts


def brute_force(text, subwords):
    """The rules as they are told: runs, escapes, then the longest subword each time."""
    runs = [""]
    for c in text:
        is_word = unicodedata.category(c)[0] in "LN"
        if runs[-1] and is_word != (unicodedata.category(runs[-1][-1])[0] in "LN"):
            runs.append("")
        runs[-1] += c
    kept = [run for i, run in enumerate(runs) if run != " " or i in (0, len(runs) - 1)]
    alphabet = {c for subword in subwords for c in subword} | set("\\_u;0123456789")
    ids = []
    for run in kept:
        rest = "".join(
            {"\\": "\\\\", "_": "\\u"}.get(c)
            or (c if c in alphabet and c != "\n" else f"\\{ord(c)};")
            for c in run
        )
        rest += "_" if run else ""
        while rest:
            end = max(n for n in range(1, len(rest) + 1) if rest[:n] in subwords)
            ids.append(max(i for i, subword in enumerate(subwords) if subword == rest[:end]))
            rest = rest[end:]
    return ids


@settings(deadline=None)
@given(
    st.lists(st.text("ab\\_u;1 \u00e9", min_size=1, max_size=6), max_size=12),
    st.text(LETTERS, max_size=40) | st.text(max_size=20),
)
def test_the_longest_subword_is_found(longer, text):
    """As by trying all of them, in any vocabulary; then the text comes back."""
    alphabet = {c for subword in longer for c in subword} | set(vocabularies.ESCAPES)
    subwords = [*longer, *sorted(alphabet)]
    vocabulary = SubwordVocabulary(subwords, "here")

    ids = vocabulary.encode(text)

    assert ids == brute_force(text, subwords)
    assert vocabulary.decode(ids) == text


@given(st.text() | st.text(LETTERS + "\u2014,<pad>EOS"))
def test_every_text_comes_back(text):
    assert SMALL.decode(SMALL.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the learning", ["the_", "learn", "ing_"]),
        ("learners", ["learners", "_"]),
        ("q\u00fcx", ["q\u00fcx_"]),
        ("_", ["\\", "u", "_"]),
        ("\\u", ["\\", "\\", "_", "u", "_"]),
        ("\n", ["\\", "1", "0", ";", "_"]),
        ("\u4e2d", ["\\", "2", "0", "0", "1", "3", ";", "_"]),
        ("\U0001f600", ["\\", "1", "2", "8", "5", "1", "2", ";", "_"]),
        ("<pad>", ["<", "_", "p", "a", "d", "_", ">", "_"]),
    ],
)
def test_a_text_is_spelled_by(text, pieces):
    """Underscores, backslashes, newlines and characters that are unknown, by escapes; reserved
    ids by no text."""
    assert [vocabularies.SMALL[i] for i in SMALL.encode(text)] == pieces


def test_ids_that_say_nothing_are_passed_over():
    """Outside the vocabulary, or an escape of no character, which is shown as in Trax."""
    spelled = SMALL.encode("the")

    assert SMALL.decode([-1, *spelled, len(vocabularies.SMALL), 10**9]) == "the"
    nothing = [vocabularies.SMALL.index(c) for c in "\\9999999;"]
    assert SMALL.decode(nothing) == "\u3013"
    assert SMALL.decode([*nothing[:1], *nothing[1:2] * 5000, *nothing[-1:]]) == "\u3013"


@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_lines_of_a_file_are_subwords_in_quotes_or_without(tmp_path, quote):
    lines = [c for c in vocabularies.SMALL if quote or c.strip() == c]

    named = vocabularies.subword_file(tmp_path, lines, quote)

    assert vocab_size(**named) == len(lines)
    for i, line in enumerate(lines):
        assert SubwordVocabulary(lines, "here").decode([i]) == detokenize([i], **named), line


def test_of_equal_lines_the_last_counts_as_in_trax(tmp_path):
    named = vocabularies.subword_file(tmp_path, [*vocabularies.SMALL, "the_", ""])

    assert ids_of("the", **named) == [len(vocabularies.SMALL)]
    assert vocab_size(**named) == len(vocabularies.SMALL) + 2


def test_a_vocabulary_that_cannot_spell_its_characters_is_refused(tmp_path):
    named = vocabularies.subword_file(tmp_path, ["ab_", "a", *vocabularies.ESCAPES])

    assert ids_of("ab", **named) == [0]
    with pytest.raises(
        ValueError, match=r"must hold each of its characters.*small.subword.*'bab_'.*whole file"
    ):
        ids_of("abab", **named)


@pytest.mark.parametrize(
    "text",
    [
        "".join(topics.topics.values()) * 3,
        "a" * 10**6,
        "," * 10**6,
        "\\_" * 500_000,
        "\u65e5\u672c\u8a9e" * 111_112,
    ],
    ids=["English", "one word", "one sign", "escapes", "no spaces"],
)
def test_a_megabyte_takes_seconds_of_the_processor_and_not_hours(text):
    """However long its words are: a search over all lengths of a word would take its square."""
    assert len(text.encode()) >= 10**6
    started = time.process_time()

    ids = SMALL.encode(text[: 10**6])

    assert time.process_time() - started <= 60
    assert SMALL.decode(ids) == text[: 10**6]
