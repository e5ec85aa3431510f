"""Which evals were the best so far, and so which checkpoints are kept for them."""

import math
from collections.abc import Callable

from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised import history as _history
from trax_torch.supervised._loop.settings import LoopConfig


class Best:
    """The lowest of one metric and the highest of another, over the whole history of a run.

    Args:
      config: says which metrics, and when they are kept.
      eval_tasks: what is measured.

    Raises:
      ValueError: if a metric is measured by no eval task, or by several.
    """

    def __init__(self, config: LoopConfig, eval_tasks: list[_tasks.EvalTask]):
        known = [name for task in eval_tasks for name in task.metric_names]
        self._at_checkpoints = config.best_at == "checkpoints"
        self._eval_tasks = eval_tasks
        self._wanted: list[_BestOf] = []
        low, high = config.checkpoint_low_metric, config.checkpoint_high_metric
        for word, metric, best_of in (("lowest", low, min), ("highest", high, max)):
            if metric is None:
                continue
            n_tasks = sum(task.measures(metric) for task in eval_tasks)
            if not n_tasks:
                raise ValueError(
                    f"The {word} of a metric can be kept if an eval task measures it; got "
                    f"{metric!r}, and they measure {known}. Name one of these, or add it to an "
                    f"EvalTask's metrics."
                )
            if n_tasks > 1:
                raise ValueError(
                    f"Several eval tasks measure {metric!r}, so its {word} is not one. Give them "
                    f"metric_names."
                )
            basename = _checkpoint.check_basename(f"{word}_{metric}".replace("/", "_"))
            self._wanted.append(_BestOf(basename, metric, best_of))

    def go_on(
        self, history: _history.History, kept: Callable[[str], _history.History | None]
    ) -> None:
        """Looks at what a run goes on from, which may have been measured after it was saved.

        Args:
          history: of the run.
          kept: returns what the checkpoint of a name holds, if that is of the run's step.
        """
        for each in self._wanted:
            each.go_on(history, kept)

    def names_at(self, step: int, history: _history.History, at_checkpoint: bool) -> list[str]:
        """Returns the names to save under if the last eval, at `step`, was the best so far.

        Args:
          step: the step.
          history: of the run so far; what was read of it before is not read again.
          at_checkpoint: whether a checkpoint is due at the step.
        """
        for each in self._wanted:
            _tasks.check_comes_to(each.metric, self._eval_tasks, history, step)
        if self._at_checkpoints and not at_checkpoint:
            return []
        return [each.basename for each in self._wanted if each.is_at(step, history)]


class _BestOf:
    """The best finite value of one metric, of as much of a history as was read."""

    def __init__(self, basename: str, metric: str, best_of: Callable[..., float]):
        self.basename = basename
        self.metric = metric
        self._name = f"metrics/{metric}"
        self._best_of = best_of
        self._history: _history.History | None = None

    def _begin(self, history: _history.History) -> None:
        self._history, self._n_read = history, 0
        self._best: float | None = None
        self._last: tuple[int, float] | None = None

    def _judge(self, value: float) -> None:
        if math.isfinite(value):
            self._best = value if self._best is None else self._best_of(self._best, value)

    def go_on(
        self, history: _history.History, kept: Callable[[str], _history.History | None]
    ) -> None:
        """Takes account of the run's end, whose evals its checkpoint does not hold."""
        if history is self._history:
            return
        self._begin(history)
        measured = kept(self.basename)
        if measured is not None:
            for _, value in measured.get("eval", self._name):
                self._judge(value)

    def is_at(self, step: int, history: _history.History) -> bool:
        """Tells whether the last value is of this step, and as good as any before."""
        if history is not self._history:  # the run was put elsewhere
            self._begin(history)
        for pair in history.get("eval", self._name, self._n_read):
            self._last = pair
            self._n_read += 1
            self._judge(pair[1])
        return self._best is not None and self._last == (step, self._best)
