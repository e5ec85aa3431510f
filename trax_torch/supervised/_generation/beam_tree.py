"""What became of the beams of a search, as a tree in text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch import _tables


@dataclass
class _Node:
    """A beam at some time: its score then, in nats, and which hypothesis it became."""

    score: float | None = None
    rank: str = ""
    children: dict[int, "_Node"] = field(default_factory=dict)


class BeamTree:
    """Keeps what a `beam_search(..., tree=tree)` looked at, and prints it.

    A line is a beam that lived: its last token, and the sum of its tokens' log-probabilities, in
    nats. Where a hypothesis ends, its place among the results and its score, which the length
    penalty has changed, follow. A beam that nothing grew from has no lines below it.

    Args:
      symbols: a function from a token to what to write for it, such as `tokenizer.decode`; by
        default its number.

    Example:
      >>> from trax_torch import models
      >>> from trax_torch.supervised import decoding
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> tree = BeamTree()
      >>> _ = decoding.beam_search(model, n_beams=2, max_length=3, tree=tree)
      >>> print(tree)                                                  # doctest: +SKIP
      row 0
      |- 5  -1.49
      |  |- 5  -2.95
      |  |  `- 6  -4.42  1st: -3.31
      |  `- 1  -3.01  2nd: -2.58
      `- 6  -1.52
    """

    def __init__(self, symbols: Callable[[int], str] = str):
        self._symbols = symbols
        self._rows: list[_Node] = []
        self._paths: list[list[tuple[int, ...]]] = []  # of each row's living beams

    def begin(self, batch: int) -> None:
        """Forgets what was; a search of so many rows begins."""
        self._rows = [_Node() for _ in range(batch)]
        self._paths = [[()] for _ in range(batch)]

    def add(self, tokens: torch.Tensor, parents: torch.Tensor, scores: torch.Tensor) -> None:
        """Notes the beams that live after a step.

        Args:
          tokens: the last of each, integers (batch, beams).
          parents: which beam before each grew from, likewise.
          scores: their sums of log-probabilities; -inf for those that do not count.
        """
        step = zip(tokens.tolist(), parents.tolist(), scores.tolist(), strict=True)
        for row, (new, grown_from, sums) in enumerate(step):
            before = self._paths[row]
            self._paths[row] = [(*before[p], t) for t, p in zip(new, grown_from, strict=True)]
            for path, score in zip(self._paths[row], sums, strict=True):
                if score > float("-inf"):
                    self._at(row, path).score = score

    def finish(self, sequences: torch.Tensor, scores: torch.Tensor, ends: Sequence[int]) -> None:
        """Notes the hypotheses that were found.

        Args:
          sequences: integers (batch, beams, length), padded after an end symbol.
          scores: (batch, beams), -inf for those that are missing.
          ends: end symbols.
        """
        for row, (several, values) in enumerate(
            zip(sequences.tolist(), scores.tolist(), strict=True)
        ):
            for rank, (tokens, score) in enumerate(zip(several, values, strict=True), 1):
                last = next((i for i, t in enumerate(tokens) if t in ends), len(tokens) - 1)
                if score > float("-inf"):
                    node = self._at(row, tuple(tokens[: last + 1]))
                    found = f"{_ordinal(rank)}: {score:.2f}"  # groups may find the same
                    node.rank = f"{node.rank}, {found}" if node.rank else found

    def _at(self, row: int, path: tuple[int, ...]) -> _Node:
        node = self._rows[row]
        for token in path:
            node = node.children.setdefault(token, _Node())
        return node

    def __str__(self) -> str:
        if not self._rows:
            return "BeamTree of no search yet: beam_search(..., tree=tree) fills it"
        lines: list[str] = []
        for i, root in enumerate(self._rows):
            lines += [f"row {i}", *self._lines(root, "")]
        return "\n".join(lines)

    __repr__ = __str__

    def row(self, index: int) -> _tables.Text:
        """Returns the tree of one row of the batch."""
        return _tables.Text("\n".join(self._lines(self._rows[index], "")))

    def _lines(self, node: _Node, before: str) -> list[str]:
        lines = []
        for i, (token, child) in enumerate(node.children.items(), 1):
            is_last = i == len(node.children)
            score = "" if child.score is None else f"{child.score:.2f}"
            told: list[Any] = [self._symbols(token), score, child.rank]
            lines.append(f"{before}{'`- ' if is_last else '|- '}{'  '.join(filter(None, told))}")
            lines += self._lines(child, before + ("   " if is_last else "|  "))
        return lines


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n not in (11, 12, 13) else "th"
    return f"{n}{ending}"
