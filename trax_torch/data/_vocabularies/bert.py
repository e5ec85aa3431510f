"""BERT's word pieces, cut by Hugging Face's tokenizers."""

from typing import Any

from trax_torch._extras import needed
from trax_torch.data._vocabularies.files import lines_of
from trax_torch.data._vocabularies.outside import check_inside

_MAX_LETTERS = 200  # of a word that is cut, as in BERT's own code and in Trax


class BertVocabulary:
    """Texts as ids of word pieces, and back as far as pieces tell.

    Args:
      path: of a file with one piece a line; line 1 has id 0.
      lowercase: whether letters are made small, and lose their accents.
    """

    def __init__(self, path: str, lowercase: bool):
        vocab_type = "bert-lowercase" if lowercase else "bert"
        library: Any = needed("tokenizers", f"vocab_type={vocab_type!r}", extra="data")
        pieces = {line.strip(): i for i, line in enumerate(lines_of(path))}
        if "[UNK]" not in pieces:
            raise ValueError(
                f"A vocabulary of word pieces needs the piece [UNK], for words that it cannot "
                f"spell; {path} has {len(pieces)} pieces and not this one. Use BERT's vocab.txt."
            )
        self._source = path
        self._library = library.Tokenizer(
            library.models.WordPiece(
                pieces, unk_token="[UNK]", max_input_chars_per_word=_MAX_LETTERS
            )
        )
        self._library.normalizer = library.normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
        )
        self._library.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        self._decoder = library.decoders.WordPiece(prefix="##", cleanup=False)
        self._pieces = {i: piece for piece, i in pieces.items()}
        self.vocab_size = len(pieces)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, [CLS] and [SEP] not among them."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the words that pieces spell, with a space between any two.

        Raises:
          ValueError: if an id is outside the vocabulary.
        """
        check_inside(ids, max(self._pieces) + 1, self._source)
        text: str = self._decoder.decode([self._pieces.get(i, "") for i in ids])
        return text
