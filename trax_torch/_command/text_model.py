"""A language model of a text, as a run's folder keeps it: its size, and its tokenizer.

They lie in `text_model.json` and `tokenizer.json`, beside the checkpoints, as plain data.
"""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trax_torch import _extras, models
from trax_torch import layers as tl
from trax_torch._durable import sync_folder
from trax_torch._errors import CheckpointError

_FILE, _TOKENIZER = "text_model.json", "tokenizer.json"


@dataclass(frozen=True)
class TextModel:
    """What makes a model, as `models.TransformerLM` takes it.

    Attributes:
      vocab_size: how many tokens there are; 256 are bytes.
      tokenizer: 'bytes' or 'bpe'.
      length: how many tokens it reads at most.
      d_model, d_ff, n_layers, n_heads, dropout: its sizes.
    """

    vocab_size: int = 256
    tokenizer: str = "bytes"
    length: int = 128
    d_model: int = 128
    d_ff: int = 512
    n_layers: int = 3
    n_heads: int = 4
    dropout: float = 0.0

    def build(self) -> tl.Layer:
        """Returns the model, without weights."""
        return models.TransformerLM(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            d_ff=self.d_ff,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            max_len=self.length,
            dropout=self.dropout,
        )


def kept(folder: str) -> TextModel | None:
    """Returns what a run's folder keeps; None if it is not there.

    Raises:
      CheckpointError: if the file cannot be read.
    """
    path = Path(folder, _FILE)
    if not path.exists():
        return None
    known = {name: type(default) for name, default in asdict(TextModel()).items()}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return TextModel(**{name: kind(found[name]) for name, kind in known.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say what the model is: {error!r}.") from None


def keep(folder: str, model: TextModel, tokenizer: "Tokenizer") -> None:
    """Writes to a run's folder what its model is."""
    os.makedirs(folder, exist_ok=True)
    if tokenizer.text is not None:
        _put(Path(folder, _TOKENIZER), tokenizer.text)
    _put(Path(folder, _FILE), json.dumps(asdict(model), indent=1))


def _put(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_folder(str(path.parent))


class Tokenizer:
    """Texts to tokens and back.

    Args:
      text: of a tokenizer of Hugging Face's, as JSON; None for bytes.

    Raises:
      ImportError: if it needs `tokenizers`, which is not there.
    """

    def __init__(self, text: str | None = None):
        self.text, self._of_library = text, None
        if text is not None:
            library = _extras.needed("tokenizers", "A tokenizer that is no bytes", "data")
            self._of_library = library.Tokenizer.from_str(text)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return 256 if self._of_library is None else self._of_library.get_vocab_size()

    def encode(self, data: bytes) -> np.ndarray:
        """Returns tokens, integers (n,)."""
        if self._of_library is None:
            return np.frombuffer(data, dtype=np.uint8)
        ids = self._of_library.encode(data.decode(errors="replace")).ids
        return np.array(ids, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; what is no UTF-8 is replaced."""
        if self._of_library is None:
            return bytes(tokens).decode(errors="replace")
        return str(self._of_library.decode(list(tokens)))

    def pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Yields the text of tokens as they come; a character when it is whole."""
        if self._of_library is None:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            for token in tokens:
                yield decoder.decode(bytes([token]))
            yield decoder.decode(b"", final=True)
            return
        seen: list[int] = []
        told = 0
        for token in tokens:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith("\ufffd"):
                yield text[told:]
                told = len(text)
        yield self.decode(seen)[told:]


def tokenizer_of(folder: str, model: TextModel) -> Tokenizer:
    """Returns the tokenizer that a run's folder keeps.

    Raises:
      CheckpointError: if it is not there.
    """
    if model.tokenizer == "bytes":
        return Tokenizer()
    path = Path(folder, _TOKENIZER)
    if not path.exists():
        raise CheckpointError(f"{path} is not there, by which the run's texts became tokens.")
    return Tokenizer(path.read_text(encoding="utf-8"))


def trained(data: bytes, vocab_size: int) -> Tokenizer:
    """Returns a tokenizer of pieces of bytes that are frequent in a text (BPE)."""
    _extras.needed("tokenizers", "A tokenizer that is no bytes", "data")
    from tokenizers import Tokenizer as OfLibrary
    from tokenizers import decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    made = OfLibrary(kinds.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer: Callable[..., Any] = trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        data.decode(errors="replace").splitlines(keepends=True),
        trainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False),
    )
    return Tokenizer(made.to_str())
