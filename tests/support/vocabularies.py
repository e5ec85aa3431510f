"""Vocabulary files: small ones of our own, and where those of others lie, if they do."""

import io
import os
from pathlib import Path

import figures
import pytest

# Of characters that are escaped when they are not spelled: none may be missing.
ESCAPES = list("\\_u;0123456789")
SMALL = ["<pad>", "<EOS>", "the_", "th", "e_", "lea", "learn", "ing_", ", _", " \u2014 _", "\u00fc"]
SMALL += ["q\u00fcx_", "learners", "___", "\t", "a", "e", "g", "h", "i", "l", "n", "r", "s", "t"]
SMALL += [" ", ",", "\u2014", "q", "x", "<", ">", "p", "d", "E", "O", "S", *ESCAPES]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "caf\u00e9", "cafe", "Cafe"]
PIECES += ["\u4e2d", "!", "'", "##s", "[", "]", "mask", "##", "a", "[MASK]"]

_OTHERS = Path(os.environ.get("TRAX_VOCAB_DIR") or figures.FOLDER.parents[1] / "../shared/vocab")


def others(name: str) -> dict[str, str]:
    """Returns the arguments that name a file that is not ours; skips the test without it.

    Files are looked for in the folder of the environment variable TRAX_VOCAB_DIR.
    """
    if not (_OTHERS / name).exists():
        pytest.skip(f"{name} is not kept here; TRAX_VOCAB_DIR says where it is")
    return {"vocab_file": name, "vocab_dir": str(_OTHERS)}


def subword_file(folder: Path, subwords: list[str] = SMALL, quote: str = "'") -> dict[str, str]:
    """Writes a subword vocabulary; returns the arguments that name it."""
    lines = "".join(f"{quote}{subword}{quote}\n" for subword in subwords)
    (folder / "small.subword").write_text(lines, encoding="utf-8", newline="")
    return {"vocab_file": "small.subword", "vocab_dir": str(folder)}


def pieces_file(folder: Path, pieces: list[str] = PIECES) -> dict[str, str]:
    """Writes a vocabulary of word pieces; returns the arguments that name it."""
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8", newline="")
    return {"vocab_file": "vocab.txt", "vocab_dir": str(folder)}


def sentencepiece_file(folder: Path, library) -> dict[str, str]:
    """Trains a small sentencepiece model, with ids as T5's has; returns the arguments."""
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog and a cat", "dogs sit"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "small.model").write_bytes(model.getvalue())
    return {"vocab_file": "small.model", "vocab_dir": str(folder)}
