"""What a stream asks of data of ours that knows its passes."""

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable


class OtherExamplesError(ValueError):
    """Examples that were drawn again, to go to a place, are others than they were."""


@runtime_checkable
class OwnStream(Protocol):
    """An iterator that tells of the passes through what it draws from, as `Share` does."""

    n_batches: int | None
    repeats: bool
    n_passes: int

    def key(self, seed: int | None, *keys: int | str) -> None:
        """Has what is drawn from now on drawn with random numbers of this stream's own."""
        ...

    def epoch(self) -> Generator[Any, None, None]:
        """Yields all batches from the first one on, once; the position stays where it is."""
        ...
