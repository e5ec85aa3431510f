"""What was measured, at which step."""

from typing import Any

from trax_torch import _tables


class History:
    """A record of metrics: for each mode and metric, the values and the steps they belong to.

    Example:
      >>> history = History()
      >>> history.append('train', 'metrics/accuracy', 1, 0.04)
      >>> history.append('train', 'metrics/accuracy', 1000, 0.31)
      >>> history.get('train', 'metrics/accuracy')
      [(1, 0.04), (1000, 0.31)]

    Source: Trax `supervised/history.py::History`.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[tuple[int, Any]]]] = {}

    def append(self, mode: str, metric: str, step: int, value: Any) -> None:
        """Records that `metric` had `value`, a number, at `step` in `mode`."""
        if hasattr(value, "item"):  # numpy's and torch's numbers, as Python's
            value = value.item()
        self._values.setdefault(mode, {}).setdefault(metric, []).append((step, value))

    def get(self, mode: str, metric: str, start: int = 0) -> list[tuple[int, Any]]:
        """Returns the `(step, value)` pairs in the order they came; [] if there are none.

        Args:
          mode: the mode.
          metric: the metric.
          start: how many of them to leave out, from the first one on: who has seen these already
            need not go through all of a long run again.
        """
        return self._values.get(mode, {}).get(metric, [])[start:]

    @property
    def modes(self) -> list[str]:
        """The modes recorded so far, sorted."""
        return sorted(self._values)

    def metrics_for_mode(self, mode: str) -> list[str]:
        """Returns the metrics recorded in `mode`, sorted."""
        return sorted(self._values.get(mode, {}))

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain data: `{'_values': {mode: {metric: [(step, value)]}}}`."""
        return {
            "_values": {
                mode: {metric: list(pairs) for metric, pairs in metrics.items()}
                for mode, metrics in self._values.items()
            }
        }

    @classmethod
    def from_dict(cls, json_object: dict[str, Any]) -> "History":
        """Returns the history that `to_dict` gave, also after a way through JSON."""
        history = cls()
        for mode, metrics in json_object["_values"].items():
            for metric, pairs in metrics.items():
                for step, value in pairs:
                    history.append(mode, metric, int(step), value)
        return history

    def lengths(self) -> dict[str, dict[str, int]]:
        """Returns how many values there are, by mode and metric."""
        return {
            mode: {metric: len(pairs) for metric, pairs in metrics.items()}
            for mode, metrics in self._values.items()
        }

    def between(
        self, begin: dict[str, dict[str, int]], end: dict[str, dict[str, int]]
    ) -> dict[str, dict[str, list[tuple[int, Any]]]]:
        """Returns what was recorded after there were `begin` values, until there were `end`.

        Args:
          begin: what `lengths` gave at one time.
          end: what it gave later.

        Returns:
          `{mode: {metric: [(step, value)]}}`, without metrics that have nothing new.
        """
        news: dict[str, dict[str, list[tuple[int, Any]]]] = {}
        for mode, lengths in end.items():
            for metric, n in lengths.items():
                first = begin.get(mode, {}).get(metric, 0)
                if n > first:
                    pairs = self._values[mode][metric][first:n]
                    news.setdefault(mode, {})[metric] = pairs
        return news

    def __repr__(self) -> str:
        rows = [
            (mode, metric, f"{len(pairs):,}", f"{pairs[-1][0]:,}", _in_short(pairs[-1][1]))
            for mode, metrics in sorted(self._values.items())
            for metric, pairs in sorted(metrics.items())
            if pairs
        ]
        if not rows:
            return "History of nothing yet"
        return _tables.table(("mode", "metric", "values", "last step", "value"), rows, (2, 3, 4))


def _in_short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, (int, float)) else str(value)
