import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import vocabularies
from hypothesis import given
from hypothesis import strategies as st

from trax_torch import data
from trax_torch.data import Tokenize, detokenize, tokenize, vocab_size
from trax_torch.data._vocabularies.vocabulary import vocabulary

CHARS = {"vocab_type": "char"}


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = tuple(a.values()), tuple(b.values())
    if isinstance(a, tuple):
        assert len(a) == len(b)
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
    return np.array_equal(a, b)


def ids(*numbers):
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("example", "keys", "expected"),
    [
        ("ab", None, ids(97, 98)),
        ("ab", [0], ids(97, 98)),
        (b"ab", None, ids(97, 98)),
        (np.str_("ab"), None, ids(97, 98)),
        (np.array("ab"), None, ids(97, 98)),
        (np.array(b"ab", object), None, ids(97, 98)),
        ("", None, ids()),
        (("a", "b"), None, (ids(97), ids(98))),
        (["a", 7, "b"], (0, 2), (ids(97), 7, ids(98))),
        (("a", 7), 0, (ids(97), 7)),
        ({"text": "a", "t": 7}, ["text"], {"text": ids(97), "t": 7}),
        ({"text": "a", "t": 7}, "text", {"text": ids(97), "t": 7}),
        ({"x": "a", "y": "b"}, None, {"x": ids(97), "y": ids(98)}),
    ],
)
def test_texts_become_ids_wherever_an_example_has_them(example, keys, expected):
    """Alone, in tuples, lists and dicts; all of them, or those at the keys."""
    (given_back,) = tokenize([example], keys=keys, **CHARS)
    (staged,) = Tokenize(keys, **CHARS)(iter([example]))

    assert same(given_back, expected)
    assert same(staged, expected)


def test_what_is_not_utf_8_in_bytes_is_left_out():
    assert next(tokenize([b"a\xffb"], **CHARS)).tolist() == [97, 98]


@given(st.text(), st.integers(0, 5))
def test_chars_are_bytes_and_come_back(text, n_reserved):
    (row,) = tokenize([text], n_reserved_ids=n_reserved, **CHARS)

    assert bytes((row - n_reserved).tolist()).decode() == text
    padded = np.pad(row, (0, min(n_reserved, 2)))
    assert detokenize(padded, n_reserved_ids=n_reserved, **CHARS) == text


@pytest.mark.parametrize("vocab_type", ["char", "subword"])
def test_reserved_ids_come_before_all_others(tmp_path, vocab_type):
    named = {"vocab_type": vocab_type}
    if vocab_type == "subword":
        named |= vocabularies.subword_file(tmp_path)
    (plain,), (moved,) = (tokenize(["the"], n_reserved_ids=n, **named) for n in (0, 3))

    assert (moved - plain == 3).all()
    assert vocab_size(n_reserved_ids=3, **named) == vocab_size(**named) + 3
    assert detokenize([0, *moved, 1, 2], n_reserved_ids=3, **named) == "the"


@pytest.mark.parametrize(
    "row",
    [[72, 105], (72, 105), np.array([72, 105], np.uint8), torch.tensor([72, 105]), []],
    ids=["list", "tuple", "bytes", "tensor", "empty"],
)
def test_a_row_of_ids_is_a_text(row):
    assert detokenize(row, **CHARS) == ("Hi" if len(row) else "")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (np.zeros((2, 3), int), ValueError, r"one row of ids.*got shape \(2, 3\).*each row"),
        (5, ValueError, r"one row of ids.*got shape \(\)"),
        (np.zeros(3), TypeError, r"ids that are integers; got float64.*argmax"),
        (torch.ones(3) > 0, TypeError, r"ids that are integers; got bool"),
        ([72, 256, 300], ValueError, r"256 ids, 0 to 255, of bytes; got 256 and 1 more.*Give"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(row, error, message):
    with pytest.raises(error, match=message):
        detokenize(row, **CHARS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"vocab_type": "word"}, ValueError, r"one of 'char', 'subword'.*got 'word'. For a"),
        ({}, ValueError, r"'subword' needs the vocabulary's file; got vocab_file=None. Write"),
        ({"vocab_type": "char", "vocab_file": "x"}, ValueError, r"reads no file; got .*'x'. Leave"),
        ({"vocab_file": "x", "vocab_dir": "/no"}, FileNotFoundError, r"'/no/x', which.*vocab_dir"),
        ({"vocab_type": "char", "n_reserved_ids": -1}, ValueError, r"0 or more; got -1. Give 2"),
        ({"vocab_type": "char", "n_reserved_ids": 1.5}, ValueError, r"0 or more; got 1.5. Give 2"),
    ],
)
def test_settings_are_refused_when_they_are_made(settings, error, message):
    """Not at the first example, and by all four functions."""
    for make in (
        Tokenize,
        lambda **s: tokenize([], **s),
        vocab_size,
        lambda **s: detokenize([], **s),
    ):
        with pytest.raises(error, match=message):
            make(**settings)


@pytest.mark.parametrize(
    ("example", "keys", "error", "message"),
    [
        (("a", 7), None, TypeError, r"needs texts, str or bytes; got int: 7. .*keys=\[0\]"),
        ({"t": None}, None, TypeError, r"got NoneType: None. Name"),
        (7, None, TypeError, r"got int: 7. Name the keys"),
        (("a",), [0, 1], ValueError, r"keys are \[0, 1\], and an example has \[0\]. Name those"),
        ({"text": "a"}, ["sentence"], ValueError, r"\['sentence'\], and an example has \['text'\]"),
    ],
)
def test_examples_without_texts_are_refused(example, keys, error, message):
    with pytest.raises(error, match=message):
        list(tokenize([example], keys=keys, **CHARS))


def test_a_file_is_read_once_until_it_changes(tmp_path):
    """Also where a text is asked for again and again."""
    named = vocabularies.subword_file(tmp_path)
    first, again = vocabulary("subword", **named), vocabulary("subword", **named)
    os.utime(tmp_path / "small.subword", ns=(1, 1))
    changed = vocabulary("subword", **named)

    assert again is first
    assert changed is not first


def test_a_file_is_named_by_its_folder_or_alone(tmp_path, monkeypatch):
    """A whole path needs no folder, `~` is home, and without a folder it is the present one."""
    named = vocabularies.subword_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    n = vocab_size(**named)

    assert vocab_size(vocab_file="small.subword") == n
    assert vocab_size(vocab_file=str(tmp_path / "small.subword")) == n
    assert vocab_size(vocab_file="small.subword", vocab_dir="~") == n


def test_a_stage_travels_without_its_vocabulary(tmp_path):
    """To workers that are spawned, say, which read it themselves."""
    stage = Tokenize(keys=[0], n_reserved_ids=2, **vocabularies.subword_file(tmp_path))
    expected = list(stage([("the", 1)]))

    sent = pickle.dumps(stage)

    assert len(sent) < 1000
    assert same(tuple(pickle.loads(sent)([("the", 1)])), tuple(expected))


QUIET = """
import sys
import trax_torch.data
print(sorted({'tokenizers', 'sentencepiece', 'datasets', 'tensorflow_datasets'} & set(sys.modules)))
"""


def test_libraries_are_imported_when_they_are_needed():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_texts_become_ids_within_a_pipeline_that_keeps_its_place():
    """Wherever it is cut, twice in a row; the stage tells of its settings."""
    texts = [(f"text {i}", i) for i in range(7)]

    def pipeline():
        return data.Serial(
            data.Examples(texts, shuffle=True, seed=3, n_epochs=2),
            Tokenize(keys=[0], n_reserved_ids=2, **CHARS),
            data.Shuffle(queue_size=3, seed=1),
        )()

    whole = list(pipeline())
    for cut in range(len(whole)):
        part, second, third = pipeline(), pipeline(), pipeline()
        for _ in range(cut):
            next(part)
        second.load_state_dict(part.state_dict())
        seen = list(itertools.islice(second, 2))
        third.load_state_dict(second.state_dict())
        assert same((*seen, *third), tuple(whole[cut:])), cut
    assert "keys=[0], vocab_type='char'" in repr(Tokenize(keys=[0], **CHARS))
