"""A text's bytes in UTF-8 as its ids."""

import numpy as np

from trax_torch.data._vocabularies.outside import check_inside


class ByteVocabulary:
    """Texts as the 256 bytes of UTF-8, and back."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Returns the bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode(self, ids: list[int]) -> str:
        """Returns the text of bytes; what is no UTF-8 is shown as U+FFFD.

        Raises:
          ValueError: if an id is no byte.
        """
        check_inside(ids, self.vocab_size, "bytes")
        return bytes(ids).decode("utf-8", errors="replace")
