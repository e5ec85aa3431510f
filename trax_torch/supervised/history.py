"""What was measured, at which step."""

from typing import Any


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

    def get(self, mode: str, metric: str) -> list[tuple[int, Any]]:
        """Returns the `(step, value)` pairs in the order they came; [] if there are none."""
        return list(self._values.get(mode, {}).get(metric, []))

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

    def __str__(self) -> str:
        return str(self._values)
