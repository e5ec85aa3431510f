"""A rank's rows of batches that all ranks draw alike."""

from collections.abc import Generator
from typing import Any

from trax_torch import _distributed, _nest
from trax_torch.data._streams.stream import BatchStream


class Share:
    """A rank's rows of batches that all ranks draw alike; `share_of` makes it."""

    fits_any_size = True

    def __init__(self, labeled_data: Any, rank: int, size: int):
        if not 0 <= rank < size:
            raise ValueError(f"There is no share {rank} of {size}.")
        self._stream = BatchStream(labeled_data, "The data to share out")
        self._rank, self._size = rank, size

    def __iter__(self) -> "Share":
        return self

    def __next__(self) -> Any:
        return self._rows_of(self._stream.next(), least=self._size)

    @property
    def n_batches(self) -> int | None:
        """How many batches the data has; None where it does not say."""
        return self._stream.n_batches

    @property
    def repeats(self) -> bool:
        """Whether the data is gone through again and again."""
        return self._stream.repeats

    @property
    def n_passes(self) -> int:
        """How many passes through the data are complete."""
        return self._stream.n_passes

    def key(self, seed: int | None, *keys: int | str) -> None:
        """Has the data drawn with random numbers of its own, alike on all ranks."""
        self._stream.key(seed, *keys)

    def epoch(self) -> Generator[Any, None, None]:
        """Yields this rank's rows of all batches, once; a batch may have none for it."""
        for batch in self._stream.epoch():
            rows = self._rows_of(batch, least=1)
            if len(next(_nest.leaves(rows))):
                yield rows

    def _rows_of(self, batch: Any, least: int) -> Any:
        n_rows = {len(leaf) for leaf in _nest.leaves(batch)}
        if len(n_rows) != 1 or min(n_rows) < least:
            raise ValueError(
                f"A batch is shared out by the first axis of its items, which must agree and have "
                f"a row for each of {self._size} ranks; got {sorted(n_rows)} rows."
            )
        n = n_rows.pop()
        first, last = (n * r // self._size for r in (self._rank, self._rank + 1))
        return _nest.map_leaves(lambda leaf: leaf[first:last], batch)

    @property
    def batch_size(self) -> int | None:
        """How many rows the batches have that are shared out, where their data says so."""
        return self._stream.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the data, which is the same on all ranks."""
        return self._stream.position()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place that `state_dict` told."""
        self._stream.seek(state)


def share_of(labeled_data: Any, rank: int | None = None, size: int | None = None) -> Share:
    """Returns an iterator of this rank's rows of batches that all ranks draw alike.

    Of a batch of B rows, rank r of n gets rows r * B / n to (r + 1) * B / n, rounded down. All
    ranks draw all batches, so the data must be the same on each: seeded alike, or read from the
    same files. A checkpoint keeps one place for all ranks, and a run may go on with another number
    of them. (A `DataLoader` with a `DistributedSampler` loads each rank's rows alone.)

    Args:
      labeled_data: an iterator, or an iterable gone through again and again, of batches: tuples or
        mappings of arrays or tensors, whose first axis is cut.
      rank: which share; by default the launcher's, and 0 without a launcher.
      size: how many shares; by default the launcher's number of ranks, and 1 without one.

    Raises:
      ValueError: if there is no such share, or a batch has fewer rows than there are shares.

    Example:
      >>> import torch
      >>> data = [(torch.arange(4), torch.arange(4) > 1)]
      >>> next(share_of(data, rank=1, size=2))
      (tensor([2, 3]), tensor([True, True]))
    """
    own, all_ranks = _distributed.launched()
    return Share(labeled_data, own if rank is None else rank, all_ranks if size is None else size)
