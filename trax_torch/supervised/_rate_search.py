"""Which learning rate: a run's own steps at higher and higher rates, and then all is put back."""

import math
from dataclasses import dataclass
from typing import Any

from trax_torch import _pictures, _seeds
from trax_torch.data import _streams
from trax_torch.optimizers import NonFiniteError
from trax_torch.supervised import _loop

_KEEPS = 0.9  # of the mean of losses so far, at each step


@dataclass(frozen=True)
class RateSearch:
    """What losses came of which learning rates; `find_learning_rate` makes it.

    Attributes:
      rates: the rate of each step, rising.
      losses: the loss of each step, before its update.
      diverged: whether the search ended since the loss rose, or was not finite.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool

    @property
    def smoothed(self) -> list[float]:
        """The means of losses so far, of which a step keeps nine tenths."""
        found, mean = [], 0.0
        for i, loss in enumerate(self.losses, 1):
            mean = _KEEPS * mean + (1 - _KEEPS) * loss
            found.append(mean / (1 - _KEEPS**i))
        return found

    @property
    def suggestion(self) -> float | None:
        """The rate about which the smoothed loss falls most steeply, before its lowest.

        The slope at a step is that of the line through a sixth of all steps around it; the first
        tenth, whose means are of few losses, is left out. None if the loss never falls.
        """
        means, n = self.smoothed, len(self.rates)
        k = max(1, n // 12)  # steps on either side
        last = means.index(min(means)) if means else 0
        slopes = {
            i: sum(x * means[i + x] for x in range(-k, k + 1))
            for i in range(max(k, n // 10), min(last, n - 1 - k) + 1)
        }
        steepest = min(slopes, key=slopes.__getitem__, default=None)
        return None if steepest is None or slopes[steepest] >= 0 else self.rates[steepest]

    def plot(self) -> Any:
        """Returns a picture of the loss by the rate, as a `matplotlib.figure.Figure`.

        Raises:
          ImportError: if there is no matplotlib; says how to install it.
        """
        figure, (panel,) = _pictures.figure(1, "RateSearch.plot", size=(7, 3.2))
        panel.plot(self.rates, self.losses, color="#b8c4d0", label="loss of a step")
        panel.plot(self.rates, self.smoothed, color=_pictures.COLORS[0], label="smoothed")
        if self.suggestion is not None:
            text = f"steepest fall: {self.suggestion:.2g}"
            panel.axvline(self.suggestion, color=_pictures.COLORS[1], linestyle="--", label=text)
        panel.set_xscale("log")
        _pictures.label(panel, "learning rate", "loss", legend=True)
        return figure

    def __repr__(self) -> str:
        if not self.rates:
            return "RateSearch of no step: the first loss was not finite"
        end = " where the loss rose" if self.diverged else ""
        found = "none, it never fell" if self.suggestion is None else f"{self.suggestion:.2g}"
        return (
            f"RateSearch of {len(self.rates)} steps, rates {self.rates[0]:.2g} to "
            f"{self.rates[-1]:.2g}{end}; steepest fall of the loss: {found}"
        )


def find_learning_rate(
    loop: Any,
    low: float = 1e-6,
    high: float = 1.0,
    n_steps: int = 100,
    *,
    labeled_data: Any = None,
    stop_at: float = 4.0,
) -> RateSearch:
    """Trains a Loop's first task for some steps at rising rates, and puts everything back.

    Rates rise from `low` to `high` by the same factor at each step. Weights, buffers, the
    optimizer's slots and numbers, the place in the data and all generators are after it as they
    were, to the last bit; no callback, logger or checkpoint hears of it. All parameter groups get
    the same rate. It keeps a copy of the weights and slots meanwhile.

    Args:
      loop: a `Loop` of one process.
      low: the first rate.
      high: the last one.
      n_steps: how many steps; at least 2.
      labeled_data: to train on instead of the task's, which is not touched then. It is needed
        where that is an iterator without a state, which cannot go back.
      stop_at: ends the search when the smoothed loss is so many times the lowest so far, after the
        first tenth of all steps.

    Returns:
      A `RateSearch`, which has `rates`, `losses`, `suggestion` and `plot()`.

    Raises:
      ValueError: if a number is out of its range, the data cannot go back, or several ranks train.

    Source: Smith 2015, arXiv:1506.01186, section 3.3.
    """
    _check(low, high, n_steps, stop_at)
    stream = None
    if labeled_data is not None:
        stream = _streams.BatchStream(labeled_data, "find_learning_rate's labeled_data")
    rates: list[float] = []
    losses: list[float] = []
    lowest, mean = math.inf, 0.0
    with _loop.rehearsal(loop, moves_data=stream is None) as take:
        for i in range(n_steps):
            rate = low * (high / low) ** (i / (n_steps - 1))
            batch = loop.tasks[0].next_batch() if stream is None else stream.next()
            try:
                loss = take(batch, _seeds.derive(loop.random_seed, "rate search", i), rate)
            except NonFiniteError:
                return RateSearch(tuple(rates), tuple(losses), True)
            if not math.isfinite(loss):
                return RateSearch(tuple(rates), tuple(losses), True)
            rates.append(rate)
            losses.append(loss)
            mean = _KEEPS * mean + (1 - _KEEPS) * loss
            smoothed = mean / (1 - _KEEPS ** (i + 1))
            if i < n_steps // 10:  # means of few losses rise and fall by chance
                continue
            lowest = min(lowest, smoothed)
            if lowest > 0 and smoothed > stop_at * lowest:
                return RateSearch(tuple(rates), tuple(losses), True)
    return RateSearch(tuple(rates), tuple(losses), False)


def _check(low: float, high: float, n_steps: int, stop_at: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"Rates rise from low to high, 0 < low < high; got low={low} and high={high}."
        )
    if n_steps < 2:
        raise ValueError(f"A search takes 2 steps or more; got n_steps={n_steps}.")
    if not stop_at > 1:
        raise ValueError(f"stop_at is a multiple of the lowest loss, above 1; got {stop_at}.")
