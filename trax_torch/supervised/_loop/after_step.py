"""What follows a step: a checkpoint, a report with evals, and the best so far; and when it is due.

It goes by `Loop`'s public methods, so that what a subclass makes of them counts in a run, too.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from trax_torch import _signals
from trax_torch.supervised import _checkpoint, _logging, _tasks
from trax_torch.supervised._loop.ambient import float32_precision
from trax_torch.supervised._loop.best import Best
from trax_torch.supervised._loop.callback_list import CallbackList
from trax_torch.supervised._loop.hparams import hparams_of
from trax_torch.supervised._loop.saves import Saves
from trax_torch.supervised._loop.settings import LoopConfig
from trax_torch.supervised._loop.steps import Stepper


@dataclass(frozen=True)
class AfterStep:
    """Does what is due after a step.

    Attributes:
      loop: the `Loop`, which saves, measures and logs.
      config: its settings.
      state: where it is.
      events: what is due when.
      best: judges evals.
      stepper: took the steps.
      callbacks: have values of their own.
      reports: tell of training.
      console: prints lines.
      saves: makes checkpoints when none is half told of a report.
      saver: knows what was saved.
    """

    loop: Any
    config: LoopConfig
    state: _checkpoint.RunState
    events: _tasks.Events
    best: Best
    stepper: Stepper
    callbacks: CallbackList
    reports: _logging.Reports
    console: _logging.Console
    saves: Saves
    saver: _checkpoint.Checkpointer

    def due_at(self, step: int) -> _tasks.Due:
        """Returns what is due after a step."""
        names = [] if self.config.output_dir is None else self.events.names_at(step)
        evals = bool(self.events.eval_at(step))
        return _tasks.Due(evals or self.events.log_at(step), evals, names)

    def _due_still(self) -> _tasks.Due:
        """Returns what is due after the last step, without what was reported of it already."""
        step, (_, evals, names) = self.state.step, self.due_at(self.state.step)
        evals = evals and step != self.state.reported_step
        return _tasks.Due(evals or (self.events.log_at(step) and self._has_news()), evals, names)

    def _has_news(self) -> bool:
        """Tells whether there were steps that were not logged."""
        return any(each.n_steps for each in self.stepper.accumulators)

    def _first_reported(self, n_steps: int) -> int:
        """Returns the first step that a run of so many steps may report."""
        step = self.state.step
        again = self._due_still().training or (not n_steps and self._end_is_due())
        return step if again else step + 1

    def _end_is_due(self) -> bool:
        return self.config.save_at_end and self.state.step not in (0, self.state.reported_step)

    def save(self, names: list[str], blocking: bool | None = None) -> None:
        """Saves the run as it is now under names, one after another.

        Args:
          names: the names.
          blocking: whether to wait for it; by default as the settings say.
        """
        if not names:
            return
        if blocking is None:
            blocking = not self.config.background_saves
        how = {} if blocking else {"blocking": False}
        with self.saves.gathered():
            for name in names:
                self.loop.save_checkpoint(name, **how)

    def report(self, evals: bool, at_checkpoint: bool, is_end: bool = False) -> None:
        """Logs training since the last time, runs evals if due, and saves the best so far.

        Args:
          evals: whether evals are due.
          at_checkpoint: whether a checkpoint is.
          is_end: whether it is the end of a run that has them run: no scheduler is told of them,
            for in a run that goes on there are none.
        """
        self.stepper.check_together()
        with self.saves, self._told_of_values():
            if self._has_news():
                self._log_training(self.loop.log_summary)
            if evals:
                self.loop.run_evals(self.reports.eval_writers())
                if not is_end:
                    self.stepper.follow_metrics(self.loop.eval_tasks)
                self.state.reported_step = self.state.step
            for each in self.stepper.accumulators:
                each.clear()
        if evals and self.config.output_dir is not None:
            self.save(self.best.names_at(self.state.step, self.state.history, at_checkpoint))

    def _log_training(self, log_summary: Callable[..., None]) -> None:
        self.stepper.check_finite()
        self.reports.begin(self.state.step, self.loop.model)
        more = self.callbacks.values() | self.stepper.counts()
        self.reports.log_training(self.state.step, self.stepper.accumulators, more, log_summary)

    @contextlib.contextmanager
    def told_of_evals(self) -> Generator[None]:
        """Tells callbacks when the evals of its block begin and end, and what they find."""
        precision = float32_precision(self.config)
        with precision, self._told_of_values(), self.callbacks.evals(self.state.step):
            yield

    @contextlib.contextmanager
    def _told_of_values(self) -> Generator[None]:
        """Tells loggers and then callbacks what is logged in its block, when it ends."""
        with self.reports.gathered(self.state.step) as values:
            yield
        if values is not None:
            self.callbacks.logged(self.state.step, values)

    def catch_up(self, n_steps: int) -> None:
        """Does what was due at the step that the run goes on from, if a crash kept it from that.

        Args:
          n_steps: how many the run takes.
        """
        first = self._first_reported(n_steps)
        self.reports.begin_run(first, lambda: hparams_of(self.loop, self.config))
        self.saver.check_not_overtaken()
        self.saver.check_can_save()
        self.best.go_on(self.state.history, self.saver.history_beside)
        if self.saver.saved_step == self.state.step:
            self.save(self.saver.missing(self.due_at(self.state.step).names), blocking=True)
        due = self._due_still()
        if due.training:  # a checkpoint is saved before the report of its step
            self.report(due.evals, "model" in due.names)

    def end(self, has_stepped: bool, signum: int | None) -> None:
        """Saves and reports the last step, where it was not due.

        What a signal ends goes on elsewhere as if nothing had been: training is told of, and that
        is not recorded.

        Args:
          has_stepped: whether the run has taken a step.
          signum: of the signal that ends the run, or None.
        """
        if signum is not None:
            self._save_last(blocking=True)
            if self._has_news():
                with self.saves:
                    self._log_training(self.reports.unrecorded(self.state.step))
            return
        if has_stepped and self.config.save_at_end:
            self._save_last()
        if self._end_is_due():
            self.report(evals=True, at_checkpoint=True, is_end=True)

    def _save_last(self, blocking: bool | None = None) -> None:
        if self.config.output_dir is not None and self.saver.saved_step != self.state.step:
            self.save(["model"], blocking)

    def leave(self, signum: int) -> None:
        """Saves what was done, and ends the process, or what was typed."""
        self._save_last(blocking=True)
        self.saver.wait()  # a save that failed is an error, not an orderly end
        self.console.say_step(self.state.step, f"Stopped by signal {signum}.")
        raise _signals.end_by(signum)
