"""Which evals were the best so far, and so which checkpoints are kept for them."""

import math
from typing import Any

from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised import history as _history


class Best:
    """The lowest of one metric and the highest of another, over the whole history of a run.

    Args:
      low: name of a metric whose lowest value counts, or None.
      high: name of one whose highest value counts, or None.
      eval_tasks: what is measured.

    Raises:
      ValueError: if a metric is measured by no eval task, or by several.
    """

    def __init__(self, low: str | None, high: str | None, eval_tasks: list[_tasks.EvalTask]):
        known = [name for task in eval_tasks for name in task.metric_names]
        self._wanted: list[tuple[str, str, Any]] = []  # (basename, metric, min or max)
        for word, metric, best_of in (("lowest", low, min), ("highest", high, max)):
            if metric is None:
                continue
            if metric not in known:
                raise ValueError(
                    f"The {word} of a metric can be kept if an eval task measures it; got "
                    f"{metric!r}, and they measure {known}."
                )
            if known.count(metric) > 1:
                raise ValueError(
                    f"Several eval tasks measure {metric!r}, so its {word} is not one. Give them "
                    f"metric_names."
                )
            basename = _checkpoint.check_basename(f"{word}_{metric}")
            self._wanted.append((basename, metric, best_of))

    def names_at(self, step: int, history: _history.History) -> list[str]:
        """Returns the names to save under if the last eval, at `step`, was the best so far."""
        names = []
        for basename, metric, best_of in self._wanted:
            values = history.get("eval", f"metrics/{metric}")
            numbers = [value for _, value in values if math.isfinite(value)]
            if numbers and values[-1] == (step, numbers[-1]) and numbers[-1] == best_of(numbers):
                names.append(basename)
        return names
