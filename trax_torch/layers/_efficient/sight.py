"""What a position of predict mode sees of those before: chunks, and what was not forgotten."""

from typing import Any

import torch


def check_chunks(chunk_len: int | None, n_before: int, n_after: int) -> None:
    """Raises ValueError if there can be no such chunks."""
    if n_before < 0 or n_after < 0 or (chunk_len is not None and chunk_len < 1):
        raise ValueError(
            f"chunk_len is at least 1, and chunks beside one at least 0; got chunk_len={chunk_len},"
            f" n_chunks_before={n_before}, n_chunks_after={n_after}."
        )
    if chunk_len is None and (n_before or n_after):
        raise ValueError(
            f"n_chunks_before={n_before} and n_chunks_after={n_after} count chunks, but without "
            f"chunk_len there are none. Give a chunk_len, or leave them out."
        )


def check_mode(mode: str, causal: bool, n_after: int, name: str) -> None:
    """Raises ValueError if predict mode is asked of attention to what is not there yet."""
    if mode != "predict" or (causal and not n_after):
        return
    raise ValueError(
        f"In predict mode later positions are not there yet, so {name} needs causal=True and "
        f"n_chunks_after=0; got causal={causal}, n_chunks_after={n_after}. Decode in eval mode, or "
        f"put it in a Cache if its input is known whole."
    )


class Sight:
    """Which of the positions before, a position of predict mode still sees.

    Args:
      mem_len: how many it sees at most; None for no limit.
      drop_len: how many it forgets at once when there are so many; by default a chunk, or all.
      chunk_len: length of chunks; None for none.
      n_before: how many chunks before its own a position sees.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> sight = Sight(mem_len=4, drop_len=2)
      >>> sight.first(torch.arange(8)).tolist()
      [0, 0, 0, 0, 2, 2, 4, 4]
    """

    def __init__(
        self,
        mem_len: int | None,
        drop_len: int | None = None,
        chunk_len: int | None = None,
        n_before: int = 0,
    ):
        self.mem_len = mem_len
        self._drop_len = drop_len or min(chunk_len or mem_len or 1, mem_len or 1)
        self._chunk_len, self._n_before = chunk_len, n_before
        if mem_len is not None and not 0 < self._drop_len <= mem_len:
            raise ValueError(
                f"Predict mode forgets predict_drop_len positions when it remembers "
                f"predict_mem_len, so 0 < predict_drop_len <= predict_mem_len; got {drop_len} and "
                f"{mem_len}."
            )

    @property
    def is_whole(self) -> bool:
        """Whether a position sees all before it."""
        return self.mem_len is None and self._chunk_len is None

    def first(self, places: torch.Tensor) -> torch.Tensor:
        """Returns the first position that each of these sees, itself counted; integers, too."""
        first = torch.zeros_like(places)
        if self._chunk_len is not None:
            chunk = torch.div(places, self._chunk_len, rounding_mode="floor") - self._n_before
            first = torch.maximum(first, chunk * self._chunk_len)
        if self.mem_len is not None:
            n_drops = -torch.div(self.mem_len - 1 - places, self._drop_len, rounding_mode="floor")
            first = torch.maximum(first, n_drops * self._drop_len)
        return first

    def hidden(
        self, places: torch.Tensor, of_keys: torch.Tensor, visible: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns which keys are hidden from queries, and which are their own.

        Args:
          places: positions of the queries, integers (..., n).
          of_keys: positions of the keys, integers (..., m).
          visible: booleans that broadcast to (..., n, m), or None: what the memory shows.

        Returns:
          Two tensors of booleans (..., n, m).
        """
        queries, keys = places[..., :, None], of_keys[..., None, :]
        hidden = (keys > queries) | (keys < self.first(queries))
        return hidden if visible is None else hidden | ~visible, keys == queries
