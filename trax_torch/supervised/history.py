"""What was measured, at which step."""

import csv
import os
from collections.abc import Sequence
from typing import Any

from trax_torch import _extras, _pictures, _tables


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

    def plot(self, names: Sequence[str] | None = None) -> Any:
        """Returns a picture of what was measured: a panel for each metric, a line for each mode.

        Args:
          names: of metrics, as in `metrics_for_mode`, such as 'training/gradients_l2'; by default
            all metrics, 'metrics/...', and the learning rate.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows, and `savefig(path)` writes.

        Raises:
          ImportError: if there is no matplotlib; says how to install it.
          ValueError: if a name was never recorded, or nothing was.

        Example: `loop.history.plot().savefig("curves.png")`.
        """
        known = sorted({name for metrics in self._values.values() for name in metrics})
        asked = [name for name in known if _is_shown(name)] if names is None else list(names)
        unknown = [name for name in asked if name not in known]
        if unknown or not asked:
            what = f"no {unknown[0]!r}" if unknown else "nothing to show"
            there = f"There are {', '.join(known)}." if known else "Run the loop first."
            raise ValueError(f"The history has {what} yet. {there}")
        n_columns = 1 if len(asked) < 3 else 2
        figure, panels = _pictures.figure(len(asked), "History.plot", n_columns, (6, 2.6))
        for name, panel in zip(asked, panels, strict=True):
            modes = [mode for mode in ("train", *self.modes) if self.get(mode, name)]
            for mode in dict.fromkeys(modes):
                steps, values = zip(*self.get(mode, name), strict=True)
                color = _pictures.COLORS[sorted({"train", *self.modes}, reverse=True).index(mode)]
                dots = "o" if len(steps) < 20 else None
                panel.plot(steps, values, color=color, label=mode, marker=dots, markersize=3)
            title = name.replace("metrics/", "").replace("training/", "").replace("_", " ")
            _pictures.label(panel, x="step", title=title, legend=True)
        return figure

    def to_dataframe(self) -> Any:
        """Returns a `pandas.DataFrame`: a row for each step, a column for each mode and metric.

        Columns are called 'train/metrics/L2Loss', as in files of loggers. What was not measured at
        a step is NaN; of what was measured twice, the last counts.

        Raises:
          ImportError: if there is no pandas; says how to install it.
        """
        pandas = _extras.needed("pandas", "History.to_dataframe", "plot")
        columns = self._columns()
        made = pandas.DataFrame({n: pandas.Series(v, dtype=float) for n, v in columns.items()})
        return made.sort_index().rename_axis("step")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table of `to_dataframe`, without pandas; what was not measured is empty.

        Numbers are written so that reading them gives the very same.

        Example:
          >>> import pathlib, tempfile
          >>> history, path = History(), pathlib.Path(tempfile.mkdtemp(), 'history.csv')
          >>> history.append('train', 'loss', 1, 0.5)
          >>> history.append('eval', 'loss', 2, 0.25)
          >>> history.to_csv(path)
          >>> print(path.read_text())
          step,eval/loss,train/loss
          1,,0.5
          2,0.25,
          <BLANKLINE>
        """
        columns = self._columns()
        steps = sorted({step for column in columns.values() for step in column})
        rows = [[step, *(column.get(step, "") for column in columns.values())] for step in steps]
        with open(os.path.expanduser(path), "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([["step", *columns], *rows])

    def _columns(self) -> dict[str, dict[int, Any]]:
        """Returns by 'mode/metric' the values by step."""
        return {
            f"{mode}/{metric}": dict(self.get(mode, metric))
            for mode in self.modes
            for metric in self.metrics_for_mode(mode)
        }

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


def _is_shown(name: str) -> bool:
    """Tells whether a picture shows a metric that nobody asked for by name."""
    return "metrics/" in name or name.endswith("training/learning_rate")


def _in_short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, (int, float)) else str(value)
