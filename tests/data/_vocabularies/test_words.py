import itertools
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from trax_torch.data._vocabularies import words


def test_a_word_is_of_letters_and_numbers_of_all_scripts():
    """Of the categories that begin with L or N, whatever release of Unicode Python knows."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    is_word = [unicodedata.category(c)[0] in "LN" for c in every]
    expected = [
        "".join(c for _, c in run)
        for _, run in itertools.groupby(zip(is_word, every, strict=True), key=lambda pair: pair[0])
    ]

    runs = words.split("".join(every))

    assert runs == [run for run in expected if run != " "]


@given(st.text() | st.text("a1 _\n'\u00e9\u4e2d"))
def test_runs_give_the_text_back(text):
    assert words.join(words.split(text)) == text


def test_single_spaces_go_without_saying_between_words_alone():
    """At the begin, at the end, or twice, they are said."""
    assert words.split(" a b  c ") == [" ", "a", "b", "  ", "c", " "]
    assert words.split(" ") == [" "]
    assert words.split("") == []
