"""Accumulators: sums since the last report, which stay on the device until someone asks."""

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import Any

import torch

from trax_torch import _distributed


class Accumulators:
    """Sums of a task's training statistics over steps, and the time they took."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins a new span."""
        self.n_steps = 0
        self.learning_rate: float | None = 0.0
        self.seconds_waited = 0.0
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}
        self._earlier_seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Counts time from now, on top of what was counted before `stop_clock`."""
        self._start: float | None = time.perf_counter()

    def stop_clock(self) -> None:
        """Counts the time until now, and none from here to the next `start_clock`."""
        self._earlier_seconds = self.seconds()
        self._start = None

    def add(
        self, stats: dict[str, Any], learning_rate: float | None, seconds_waited: float
    ) -> None:
        """Adds one step.

        Args:
          stats: the step's statistics by name: floats, or scalars that are not waited for. A step
            that was skipped has none; where `is_good` is among them, it tells.
          learning_rate: the step's rate; None where the optimizer finds one by itself.
          seconds_waited: how long the step waited for its batch.
        """
        is_good = stats.pop("is_good", 1)
        for name, value in stats.items():
            if isinstance(value, torch.Tensor):
                value = value.double()  # float32 would lose small values beside a long sum
            if isinstance(is_good, torch.Tensor):
                value = torch.where(is_good, value, 0.0)
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + is_good
        self.n_steps += 1
        self.learning_rate = learning_rate
        self.seconds_waited += seconds_waited

    def means(self, world: _distributed.World) -> dict[str, float]:
        """Returns the mean of each statistic over the span's good steps that had it.

        Args:
          world: the ranks that train together; each knows a share of the loss.
        """
        sums = {name: float(total) for name, total in self._sums.items()}
        if "loss" in sums:
            (sums["loss"],) = world.sum([sums["loss"]])
        counts = {name: int(count) for name, count in self._counts.items()}
        return {name: sums[name] / n for name, n in counts.items() if n}

    def seconds(self) -> float:
        """Returns how long the span has lasted."""
        running = 0.0 if self._start is None else time.perf_counter() - self._start
        return self._earlier_seconds + running

    def to_dict(self) -> dict[str, Any]:
        """Returns the span so far as plain data."""
        return {
            "n_steps": self.n_steps,
            "learning_rate": self.learning_rate,
            "sums": {name: float(total) for name, total in self._sums.items()},
            "counts": {name: int(count) for name, count in self._counts.items()},
            "seconds": self.seconds(),
            "seconds_waited": self.seconds_waited,
        }

    def fill(self, kept: dict[str, Any]) -> None:
        """Takes up the span that `to_dict` gave."""
        self.n_steps = kept["n_steps"]
        self.learning_rate = kept["learning_rate"]
        self._sums = dict(kept["sums"])
        self._counts = dict(kept["counts"])
        self.seconds_waited = kept.get("seconds_waited", 0.0)
        self._earlier_seconds = kept["seconds"]
        self._start = None


def merged(kept: Sequence[dict[str, Any]], is_chief: bool) -> dict[str, Any]:
    """Returns the spans of several ranks as one; the chief's share of the loss is all of it."""
    sums = dict(kept[0]["sums"])
    if "loss" in sums:
        sums["loss"] = sum(each["sums"]["loss"] for each in kept) if is_chief else 0.0
    return {**kept[0], "sums": sums}


@contextlib.contextmanager
def clocks_running(accumulators: Sequence[Accumulators]) -> Generator[None]:
    """Counts time while its block runs."""
    for each in accumulators:
        each.start_clock()
    try:
        yield
    finally:
        for each in accumulators:
            each.stop_clock()
