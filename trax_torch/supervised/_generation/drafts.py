"""What drafts are made of: a row's own text, or a small model."""

import contextlib
import math
from collections.abc import Generator, Sequence

import torch

from trax_torch.supervised._generation.ragged import RaggedRun
from trax_torch.supervised._generation.sampling import Sampler

_N_READ = 64  # tokens that a small model reads at once of those made without it
_N_GRAMS = 12, 8, 5, 3, 2  # what is looked for, in tokens; the longest that is found counts


class NoiseAhead:
    """The noise of each row's next tokens; drawn when first asked for, in order, and used once.

    Args:
      sampler: draws it.
      n_symbols: size of the vocabulary.
      device: where.
    """

    def __init__(self, sampler: Sampler, n_symbols: int, device: torch.device):
        self._sampler, self._n_symbols, self._device = sampler, n_symbols, device
        self._drawn: list[list[torch.Tensor]] = [[] for _ in range(sampler.batch_size)]

    def at(self, place: int, rows: Sequence[int]) -> torch.Tensor | None:
        """Returns the noise of the tokens `place` after the next ones; zeros for other rows.

        Returns:
          float32 (batch, n_symbols); None at temperature 0.
        """
        if not self._sampler.temperature:
            return None
        noise = torch.zeros(len(self._drawn), self._n_symbols, device=self._device)
        for row in rows:
            noise[row] = self._of_row(row, place + 1)[place]
        return noise

    def first(self, counts: Sequence[int]) -> torch.Tensor | None:
        """Returns the noise of each row's next tokens, so many of them, and zeros then.

        Returns:
          float32 (batch, n, n_symbols), where n is the largest of the counts; None at temperature
          0.
        """
        if not self._sampler.temperature:
            return None
        if min(counts) == max(counts) == 1:
            return torch.stack([self._of_row(row, 1)[0] for row in range(len(counts))])[:, None]
        noise = torch.zeros(len(counts), max(counts), self._n_symbols, device=self._device)
        for row, n in enumerate(counts):
            if n:
                torch.stack(self._of_row(row, n)[:n], out=noise[row, :n])
        return noise

    def _of_row(self, row: int, n: int) -> list[torch.Tensor]:
        """Returns what is drawn of a row, n tokens' noise at least."""
        drawn = self._drawn[row]
        while len(drawn) < n:
            drawn.append(self._sampler.noise_of(row, self._n_symbols, self._device))
        return drawn

    def use(self, counts: Sequence[int]) -> None:
        """Forgets the noise of the tokens that were made, so many in each row."""
        for drawn, n in zip(self._drawn, counts, strict=True):
            del drawn[:n]


class TextDrafts:
    """Drafts that say again what followed a row's last tokens when they stood there before.

    Args:
      texts: each row's tokens so far, lists that whoever makes tokens appends to.
    """

    cost = 0.0  # of a token, in steps of the model

    def __init__(self, texts: list[list[int]]):
        self._texts = texts
        self._n_known = [0] * len(texts)
        # Where a row's runs of tokens were followed last.
        self._followed: list[dict[tuple[int, ...], int]] = [{} for _ in texts]

    def propose(self, rows: Sequence[int], n: int, noise: NoiseAhead) -> list[list[int]]:
        """Returns up to n tokens for each row; none for rows that are not asked for.

        Args:
          rows: those that are.
          n: at least 1.
          noise: what the next tokens will be chosen with.
        """
        drafts: list[list[int]] = [[] for _ in self._texts]
        for row in rows:
            drafts[row] = self._in_row(row, n)
        return drafts

    def cost_of_reading(self, rows: Sequence[int]) -> float:
        """Returns what it takes to read what was made without drafts: nothing."""
        return 0.0

    def _in_row(self, row: int, n: int) -> list[int]:
        text, followed = self._texts[row], self._followed[row]
        for at in range(self._n_known[row], len(text)):
            for size in _N_GRAMS:
                if size <= at:
                    followed[tuple(text[at - size : at])] = at
        self._n_known[row] = len(text)
        for size in _N_GRAMS:
            start = followed.get(tuple(text[-size:])) if size <= len(text) else None
            if start is not None:
                period = len(text) - start  # beyond its end, the text goes on as it did
                return [text[start + i % period] for i in range(n)]
        return []


@contextlib.contextmanager
def inside(run: RaggedRun, is_entered: bool) -> Generator[None, None, None]:
    """Enters a run, unless it is."""
    if is_entered:
        yield
        return
    with contextlib.closing(run), run:
        yield


class ModelDrafts:
    """Drafts of a small model, which chooses with the noise that the tokens will be chosen with.

    Args:
      run: the small model's, which has read the prompt.
      texts: as for `TextDrafts`.
      sampler: chooses the tokens.
      cost: of a step of it, in steps of the model.
      cost_of_many: of a step of it that reads more tokens than its steps have otherwise.
      is_entered: whether the run is entered by who calls, and stays so.
    """

    def __init__(
        self,
        run: RaggedRun,
        texts: list[list[int]],
        sampler: Sampler,
        cost: float,
        cost_of_many: float,
        is_entered: bool,
    ):
        self.cost, self._cost_of_many = cost, cost_of_many
        self._run, self._texts, self._sampler, self._is_entered = run, texts, sampler, is_entered
        self._starts = [len(text) for text in texts]
        # What each row has read since its prompt, drafts included, and how much of it is sure.
        self._read: list[list[int]] = [[] for _ in texts]
        self._n_sure = [0] * len(texts)

    def propose(self, rows: Sequence[int], n: int, noise: NoiseAhead) -> list[list[int]]:
        """Returns up to n tokens for each row; see `TextDrafts.propose`."""
        with inside(self._run, self._is_entered):
            return self._propose(rows, n, noise)

    def cost_of_reading(self, rows: Sequence[int]) -> float:
        """Returns what it takes to read what was made without drafts, in steps of the model."""
        n = max(len(self._texts[r]) - self._starts[r] - len(self._read[r]) for r in rows)
        return 0.0 if n <= self._run.n_compiled else self._cost_of_many * math.ceil(n / _N_READ)

    def _propose(self, rows: Sequence[int], n: int, noise: NoiseAhead) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in self._texts]
        unread = self._take_back(rows)
        room = min(self._run.room(row) - len(unread[row]) + 1 for row in rows)
        n = int(min(n, room))
        if n < 1:
            return drafts
        logits = self._read_all(unread)
        is_asked = [int(row in rows) for row in range(len(drafts))]
        for place in range(n):
            tokens = self._sampler.choose(logits, noise.at(place, rows))
            listed = tokens.tolist()
            for row in rows:
                drafts[row].append(listed[row])
            if place + 1 < n:
                logits = self._run.look(tokens[:, None])[:, 0]
                self._run.keep(is_asked)
        for row in rows:
            self._read[row] += drafts[row][:-1]
        return drafts

    def _take_back(self, rows: Sequence[int]) -> list[list[int]]:
        """Takes back what turned out otherwise; returns what each row has not read, 1 at least."""
        unread: list[list[int]] = [[] for _ in self._texts]
        n_back = [0] * len(self._texts)
        for row in rows:
            text, start, read = self._texts[row], self._starts[row], self._read[row]
            n, most = self._n_sure[row], min(len(read), len(text) - start - 1)
            while n < most and read[n] == text[start + n]:
                n += 1
            n_back[row] = len(read) - n
            del read[n:]
            self._n_sure[row] = n
            unread[row] = text[start + n :]
        self._run.go_back(n_back)
        return unread

    def _read_all(self, unread: list[list[int]]) -> torch.Tensor:
        """Reads on; returns the logits after each row's last token, (batch, vocab)."""
        last = None
        for begin in range(0, max(map(len, unread)), _N_READ):
            parts = [tokens[begin : begin + _N_READ] for tokens in unread]
            n = max(map(len, parts))
            padded = torch.tensor([p + [0] * (n - len(p)) for p in parts], device=self._run.device)
            logits = self._run.look(padded)
            counts = [len(p) for p in parts]
            self._run.keep(counts)
            ends = torch.tensor(counts, device=logits.device)
            found = logits[torch.arange(len(ends), device=ends.device), (ends - 1).clamp(min=0)]
            last = found if last is None else torch.where((ends > 0)[:, None], found, last)
        for read, tokens in zip(self._read, unread, strict=True):
            read += tokens
        assert last is not None
        return last
