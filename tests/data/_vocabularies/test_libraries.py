"""Vocabularies of libraries: what they give is what the libraries give."""

import sys

import numpy as np
import pytest
import vocabularies
from packages import needed

from trax_torch.data import detokenize, tokenize, vocab_size

TEXTS = [
    "Unaffable caf\u00e9s, CAF\u00c9!",
    "",
    "  two  spaces\tand\na line ",
    "[MASK] isn't [UNK]",
    "\u4e2d\u6587 a\u4e2db \u0000 \ufffd \u200b \U0001f600",
    "the cat \u0130stanbul \u00df 1,000.5",
]


def ids_of(text, **named):
    return next(iter(tokenize([text], **named))).tolist()


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("vocab_type", ["bert", "bert-lowercase"])
def test_bert_is_transformers_tokenizer_without_its_special_tokens(tmp_path, vocab_type, ours):
    needed("tokenizers")
    theirs = vocabularies.others("bert_uncased_vocab.txt") if not ours else None
    named = {"vocab_type": vocab_type, **(theirs or vocabularies.pieces_file(tmp_path))}
    transformers = needed("transformers")
    rival = transformers.BertTokenizer(
        f"{named['vocab_dir']}/{named['vocab_file']}", do_lower_case=vocab_type == "bert-lowercase"
    )

    assert vocab_size(**named) == len(rival.get_vocab())
    for text in TEXTS:
        expected = rival(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids_of(text, **named) == expected, text


def test_bert_spells_words_by_pieces(tmp_path):
    """The longest first; a word that it cannot spell, or of over 200 letters, is [UNK]; letters
    lose accents and size in lowercase alone; what looks like a special token is none."""
    needed("tokenizers")
    named = vocabularies.pieces_file(tmp_path)
    spelled = {
        kind: [
            [vocabularies.PIECES[i] for i in ids_of(text, vocab_type=kind, **named)]
            for text in ["unaffable!", "caf\u00e9", "Cafe", "unaffables'", "a" * 201, "[MASK]"]
        ]
        for kind in ("bert", "bert-lowercase")
    }

    shared = ["un", "##aff", "##able"]
    assert spelled["bert"][:4] == [[*shared, "!"], ["caf\u00e9"], ["Cafe"], [*shared, "##s", "'"]]
    assert spelled["bert-lowercase"][1:3] == [["cafe"], ["cafe"]]
    assert spelled["bert"][4:] == [["[UNK]"], ["[", "[UNK]", "]"]]
    assert spelled["bert-lowercase"][5] == ["[", "mask", "]"]


def test_bert_gives_words_back(tmp_path):
    """Pieces that go on join the word before; reserved ids are nothing; others are refused."""
    needed("tokenizers")
    named = {"vocab_type": "bert", **vocabularies.pieces_file(tmp_path)}
    ids = ids_of("unaffables!", n_reserved_ids=3, **named)

    assert detokenize([0, *ids, 1, 2], n_reserved_ids=3, **named) == "unaffables !"
    assert detokenize([], **named) == ""
    n = len(vocabularies.PIECES)
    with pytest.raises(ValueError, match=rf"{n} ids, 0 to {n - 1}, of .*vocab.txt; got {n}. Give"):
        detokenize([n], **named)


def test_word_pieces_need_one_for_what_they_cannot_spell(tmp_path):
    needed("tokenizers")
    named = vocabularies.pieces_file(tmp_path, ["a", "b"])

    with pytest.raises(ValueError, match=r"needs the piece \[UNK\].*vocab.txt has 2 pieces.*Use"):
        vocab_size("bert", **named)


@pytest.mark.parametrize("ours", [True, False])
def test_sentencepiece_is_the_librarys(tmp_path, ours):
    library = needed("sentencepiece")
    theirs = vocabularies.others("sentencepiece.model") if not ours else None
    named = theirs or vocabularies.sentencepiece_file(tmp_path, library)
    rival = library.SentencePieceProcessor()
    rival.load(f"{named['vocab_dir']}/{named['vocab_file']}")
    named["vocab_type"] = "sentencepiece"

    assert vocab_size(n_reserved_ids=2, **named) == rival.get_piece_size() + 2
    for text in TEXTS:
        ids = ids_of(text, **named)
        assert ids == rival.encode(text)
        assert detokenize(ids, **named) == rival.decode(ids)


def test_a_text_of_sentencepiece_ends_at_its_end_of_sequence(tmp_path):
    """Padding is nothing, and what is outside is an unknown piece: a model may have more ids."""
    library = needed("sentencepiece")
    named = vocabularies.sentencepiece_file(tmp_path, library)
    named["vocab_type"] = "sentencepiece"
    ids = ids_of("the cat", **named)

    assert detokenize([*ids, 1, *ids, 0, 0], **named) == "the cat"
    assert detokenize(np.array([*ids, 0, 0]), **named) == "the cat"
    assert detokenize([*ids, 10**6], **named) == detokenize([*ids, 2], **named) != "the cat"


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
    needed("sentencepiece")
    named = vocabularies.pieces_file(tmp_path)

    with pytest.raises(ValueError, match=r"needs a model file.*vocab.txt cannot be read.*\.vocab"):
        vocab_size("sentencepiece", **named)


@pytest.mark.parametrize(
    ("vocab_type", "package"),
    [("sentencepiece", "sentencepiece"), ("bert", "tokenizers"), ("bert-lowercase", "tokenizers")],
)
def test_a_library_that_is_not_there_is_asked_for(tmp_path, monkeypatch, vocab_type, package):
    monkeypatch.setitem(sys.modules, package, None)
    named = vocabularies.pieces_file(tmp_path)

    with pytest.raises(
        ImportError,
        match=rf"vocab_type='{vocab_type}' needs the package {package}.*"
        r"pip install 'trax-torch\[data\]'",
    ):
        list(tokenize(["a"], vocab_type=vocab_type, **named))
