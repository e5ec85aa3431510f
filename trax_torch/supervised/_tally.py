"""What happened since the last report: sums that stay on the device until someone asks."""

import time
from typing import Any

import torch


class Tally:
    """Sums of a task's training statistics over steps, and the time they took."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins a new span."""
        self.n_steps = 0
        self.learning_rate = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._earlier_seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Counts time from now, on top of what an interrupted run had counted."""
        self._start = time.perf_counter()

    def add(self, stats: dict[str, torch.Tensor], learning_rate: float) -> None:
        """Adds one step's statistics, scalars by name; in float64, and without waiting for them."""
        for name, value in stats.items():
            if name in self._sums:
                self._sums[name].add_(value)
            else:
                self._sums[name] = value.double()
        self.n_steps += 1
        self.learning_rate = learning_rate

    def means(self) -> dict[str, float]:
        """Returns the mean of each statistic over the span's steps."""
        return {name: float(total) / self.n_steps for name, total in self._sums.items()}

    def seconds(self) -> float:
        """Returns how long the span has lasted."""
        return self._earlier_seconds + time.perf_counter() - self._start

    def to_dict(self) -> dict[str, Any]:
        """Returns the span so far as plain data."""
        return {
            "n_steps": self.n_steps,
            "learning_rate": self.learning_rate,
            "sums": {name: float(total) for name, total in self._sums.items()},
            "seconds": self.seconds(),
        }

    def fill(self, kept: dict[str, Any], device: torch.device) -> None:
        """Takes up the span that `to_dict` gave."""
        self.n_steps = kept["n_steps"]
        self.learning_rate = kept["learning_rate"]
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device)
            for name, total in kept["sums"].items()
        }
        self._earlier_seconds = kept["seconds"]
        self.start_clock()
