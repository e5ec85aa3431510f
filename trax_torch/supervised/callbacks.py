"""Hooks into the training loop: what a callback may do, and the callbacks that ship.

A callback watches a run, stops it, or measures with other weights; it changes no step.
"""

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Container, Generator, Iterable
from typing import Any, Literal, NamedTuple

import torch

from trax_torch import _distributed, _nest
from trax_torch import layers as tl
from trax_torch._torch_private import foreach
from trax_torch.supervised import _logging, _tasks
from trax_torch.supervised._callback import TrainingStepCallback
from trax_torch.supervised._series_evaluation import SerializedModelEvaluation
from trax_torch.supervised.training import Loop

__all__ = [
    "EarlyStopping",
    "ExponentialMovingAverage",
    "Monitor",
    "ProfilerTrace",
    "SerializedModelEvaluation",
    "TrainingStepCallback",
]

_log = logging.getLogger("trax_torch")


class EarlyStopping(TrainingStepCallback):
    """Stops the run when a metric has not improved for some evals in a row.

    An eval improves on those before it if its value is better than their best by more than
    `min_delta`; a value that is not finite never does. Of several evals at one step the last one
    counts. All of this is read from `loop.history`, once, so a resumed run counts on where it was.

    A run that was stopped, and is run again, goes on to its next eval, and stops there unless that
    one improves. Resumed from a checkpoint that was saved before the evals that stopped it, as
    'model' is, it takes no step: those evals come first.

    Args:
      loop: the `Loop` that calls.
      metric: name of a metric that an eval task measures; '<metric>/<key>' where it comes to
        several numbers.
      patience: how many evals in a row may pass without a better one; at least 1.
      mode: 'min' where lower is better, 'max' where higher is.
      min_delta: a value better by no more than this is no improvement; 0 or more.

    Raises:
      ValueError: if no eval task measures the metric, or several do, or a setting is out of range.

    Example:
      >>> import functools
      >>> patient = functools.partial(EarlyStopping, metric='L2Loss', patience=5)
      >>> # Loop(..., callbacks=[patient])
    """

    def __init__(
        self,
        loop: Loop,
        metric: str,
        *,
        patience: int,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ):
        super().__init__(loop)
        known = [name for task in loop.eval_tasks for name in task.metric_names]
        if sum(task.measures(metric) for task in loop.eval_tasks) != 1:
            raise ValueError(
                f"EarlyStopping follows a metric that one eval task measures; got {metric!r}, and "
                f"they measure {known}. Give EvalTask metric_names, each its own."
            )
        if patience < 1:
            raise ValueError(f"patience is a number of evals, at least 1; got {patience}.")
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max'; got {mode!r}.")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta is a finite number, at least 0; got {min_delta}.")
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._sign = 1 if mode == "min" else -1
        self._history: Any = None  # that the rest was read from

    def on_evals_end(self, step: int) -> None:
        """Stops the run if patience is at its end."""
        if self._loop.history is not self._history:  # the run was put elsewhere
            self._history, self._n_read = self._loop.history, 0
            self._before = self._now = _Streak(math.inf, None, 0)
            self._last_step: int | None = None
        for at, value in self._history.get("eval", f"metrics/{self._metric}", self._n_read):
            self._n_read += 1
            if at != self._last_step:
                self._before, self._last_step = self._now, at
            self._now = self._after(self._before, at, value)
        if step != self._last_step:  # the eval failed
            _tasks.check_comes_to(self._metric, self._loop.eval_tasks, self._history, step)
            return
        best, best_step, n_since = self._now
        if n_since >= self._patience:
            which = "none" if best_step is None else f"{self._sign * best:g}, at step {best_step}"
            self._loop.stop(
                f"{self._metric} has not improved for {n_since} evals; its best is {which}."
            )

    def _after(self, before: "_Streak", step: int, value: float) -> "_Streak":
        signed = self._sign * value
        if math.isfinite(value) and signed < before.best - self._min_delta:
            return _Streak(signed, step, 0)
        return before._replace(n_since=before.n_since + 1)


class _Streak(NamedTuple):
    """The best value so far, times 1 or -1, its step, and how many evals came since."""

    best: float
    best_step: int | None
    n_since: int


class ExponentialMovingAverage(TrainingStepCallback):
    """Keeps an average of the weights over the steps, and measures the model with it.

    With w[k] the weights after the k-th step since the average began, it is

        average[1] = w[1];  average[k] = d * average[k - 1] + (1 - d) * w[k],
        where d = min(decay, k / (9 + k)),

    so that at first it follows the weights closely. A step that was skipped counts as one at which
    the weights stood still; one that raised, and is taken again, counts once. The model's weights
    that are trained are averaged, in float32 or better; frozen weights and buffers, such as the
    statistics of BatchNorm, are the training model's own, also in evals.

    For the time of evals the averages stand in the weights' place, in the very same tensors, so in
    an `eval_model` too; then the weights are back, bit for bit, also if an eval fails. (A second
    copy of them is held until then.) To decode or export with the averages, there is `applied`;
    `loop.callbacks` holds what `Loop` built.

    Checkpoints hold the weights in training, and the averages in this callback's state: so do
    those of the best metrics, which the averages reached, and those that are asked for while the
    averages are applied, which are saved when the weights are back. A run resumed from a checkpoint
    without averages begins them at its next step. A weight that is thawed later is averaged, as
    if it had stood still, from the next step on that begins.

    Args:
      loop: the `Loop` that calls.
      decay: how much of the average a step leaves, from 0 to below 1; it looks back over
        1 / (1 - decay) steps or so.

    Raises:
      ValueError: if `decay` is out of range; or, while the averages are applied, if a step begins
        or a checkpoint is loaded.

    Example:
      >>> import functools
      >>> averaged = functools.partial(ExponentialMovingAverage, decay=0.99)
      >>> # loop = Loop(..., callbacks=[averaged]); loop.run(1000); (ema,) = loop.callbacks
      >>> # with ema.applied() as model: model.save_to_file('averaged.safetensors')

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's
      `tf.train.ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, loop: Loop, *, decay: float = 0.999):
        super().__init__(loop)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is a number from 0 to below 1; got {decay}.")
        self._decay = decay
        self._n_steps = 0
        self._averages: dict[str, torch.Tensor] = {}  # none until the first step
        self._find_weights()
        self._kept: list[torch.Tensor] | None = None  # the weights, while the averages are applied
        self._evals = contextlib.ExitStack()

    def call_at(self, step: int) -> bool:
        """Begins averages of weights that were thawed; no callback is told of the step yet."""
        self._take_in_thawed()
        return True

    def on_step_begin(self, step: int) -> None:
        """Refuses to train averages."""
        self._refuse_while_applied(f"Step {step}")

    def on_step_end(self, step: int) -> None:
        """Averages the weights in."""
        self._n_steps += 1
        weights = [_at_least_float32(w) for w in self._weights.values()]
        if not self._averages:
            self._averages = dict(zip(self._weights, map(torch.clone, weights), strict=True))
            return
        decay = min(self._decay, self._n_steps / (9 + self._n_steps))
        foreach.lerp_(_local(self._averages.values()), _local(weights), 1 - decay)

    def on_evals_begin(self, step: int) -> None:
        """Puts the averages in the weights' place."""
        self._evals.enter_context(self.applied())

    def on_evals_end(self, step: int) -> None:
        """Puts the weights back."""
        self._evals.close()

    @contextlib.contextmanager
    def applied(self) -> Generator[Any]:
        """Returns a context in which the model, which it gives, has averaged weights.

        Before the first step there are none, and nothing changes. A checkpoint of the Loop that is
        asked for inside is saved at the end, and holds the weights in training; to have the
        averages, save the model.
        """
        if self._kept is not None or not self._averages:
            yield self._loop.model
            return
        with self._loop.saves_later():
            self._take_in_thawed()
            self._kept = [w.detach().clone() for w in self._weights.values()]
            try:
                self._put(list(self._averages.values()))
                yield self._loop.model
            finally:
                self._put(self._kept)
                self._kept = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages by name, and how many steps they are over."""
        self._take_in_thawed()
        return {"n_steps": self._n_steps, "averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the averages that `state_dict` gave."""
        self._refuse_while_applied("Loading a checkpoint")
        averages = state["averages"]
        self._n_steps = state["n_steps"]
        self._find_weights(averages)
        self._averages = {
            name: _at_least_float32(w).clone() for name, w in self._weights.items() if averages
        }
        for name in self._averages.keys() & averages.keys():
            average = self._averages[name]
            average.copy_(_distributed.shard_like(averages[name], average))

    def _find_weights(self, averages: Container[str] = ()) -> None:
        """Finds the weights that are averaged, which are trained or have an average, and others."""
        named = dict(self._loop.model.named_parameters())  # tied weights come once
        self._weights = {k: w for k, w in named.items() if w.requires_grad or k in averages}
        self._frozen = {k: w for k, w in named.items() if k not in self._weights}

    def _take_in_thawed(self) -> None:
        """Begins the averages of weights that were frozen, and are no longer, with their values."""
        for name in [name for name, w in self._frozen.items() if w.requires_grad]:
            w = self._weights[name] = self._frozen.pop(name)
            if self._averages:
                self._averages[name] = _at_least_float32(w).clone()

    def _refuse_while_applied(self, what: str) -> None:
        if self._kept is not None:
            raise ValueError(
                f"{what} needs the weights in training, and their averages are in their place. "
                f"Leave `with applied()`, then do it again."
            )

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            foreach.copy_(_local(self._weights.values()), _local(values))


class Monitor(TrainingStepCallback):
    """Logs how fast training goes, and learning rates where there are several.

    To the values that `Loop` logs with training's, it adds

    - `items per second`: an item is a row of a batch;
    - `tokens per second`, if an input of the model is integers (batch, length): each of its
      positions is a token, padding too, since it is computed like the rest;
    - `learning_rate_group<i>`, for optimizers whose parameter groups have rates of their own (a
      function of the step gives all groups the same), as they were when the last step began; with
      several tasks, `learning_rate_task<j>_group<i>`.

    Counts come from shapes, so that no step waits for the device. They are of all tasks together,
    each task's log shows the same, and the batches of other processes are taken to be alike. Time
    is that of `steps per second`: steps, data and saves, not evals.

    Args:
      loop: the `Loop` that calls.
    """

    def __init__(self, loop: Loop):
        super().__init__(loop)
        self._n_in = tl.as_layer(loop.model).n_in
        self._counts = {"items": 0, "tokens": 0}
        self._is_told = False  # whether a report told of them; the next step begins anew
        several = len(loop.tasks) > 1
        self._groups = {
            f"learning_rate{f'_task{j}' * several}_group{i}": (optimizer, i)
            for j, (task, optimizer) in enumerate(zip(loop.tasks, loop.optimizers, strict=True))
            for i in range(len(optimizer.param_groups))
            if len(optimizer.param_groups) > 1 and task.learning_rate(1) is None
        }
        self._rates: dict[str, float] = {}

    def on_step_begin(self, step: int) -> None:
        """Looks at rates before a scheduler changes them for the next step."""
        for name, (optimizer, i) in self._groups.items():
            self._rates[name] = float(optimizer.param_groups[i]["lr"])

    def on_step_end(self, step: int) -> None:
        """Counts what was in the batch."""
        if self._is_told:
            self._counts, self._is_told = {"items": 0, "tokens": 0}, False
        batch = self._loop.batch
        named = _nest.items_by_name(batch)
        if named is not None:  # what is counted is one of its items: tokens, if they are called so
            batch = (named.get("input_ids", next(iter(named.values()), None)),)
        inputs = batch[: self._n_in] if isinstance(batch, tuple) else batch
        self._counts["items"] += next((len(x) for x in _nest.leaves(inputs) if _is_batch(x)), 0)
        self._counts["tokens"] += sum(x.numel() for x in _nest.leaves(inputs) if _is_tokens(x))

    def training_values(self) -> dict[str, float]:
        """Returns what was counted since the last report, a second, and the rates."""
        self._is_told = True
        seconds = max(self._loop.seconds, 1e-9)
        speeds = {
            f"{what} {_logging.PER_SECOND}": n * self._loop.n_devices / seconds
            for what, n in self._counts.items()
            if n
        }
        return speeds | self._rates

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts since the last report, whose seconds `Loop` keeps."""
        return {"counts": dict(self._counts), "is_told": self._is_told, "rates": dict(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the counts that `state_dict` gave."""
        self._counts, self._is_told = dict(state["counts"]), state["is_told"]
        self._rates = {k: rate for k, rate in state["rates"].items() if k in self._groups}


class ProfilerTrace(TrainingStepCallback):
    """Writes a trace of some steps: what ran when, on the CPU and the device.

    The file, `steps_<first>_to_<last>.pt.trace.json.gz`, opens in Perfetto (ui.perfetto.dev),
    chrome://tracing, and TensorBoard's profiler. Each step is marked `ProfilerStep#<step>`, from
    its wait for data to its end; saves and evals between the steps are there, too. Recording
    makes these steps slower, and changes no number.

    A run that ends between them, also by an error, writes the steps it began; another run that
    comes to the rest writes those to a file of their own. The file is whole or not there; one that
    cannot be written is logged as a warning, and the run goes on. In a run of many processes the
    chief alone records itself.

    Args:
      loop: the `Loop` that calls.
      first_step: the first step to record, 1 or more; a few steps from the start, most costs that
        come once are over.
      n_steps: how many to record, at least 1; a few will do, for traces grow large.
      folder: where the file goes; by default `profile` in the Loop's `output_dir`.

    Raises:
      ValueError: if a number is out of range, or there is no folder.

    Example:
      >>> import functools
      >>> trace = functools.partial(ProfilerTrace, first_step=10, n_steps=3)
      >>> # Loop(..., output_dir='run', callbacks=[trace])
    """

    def __init__(self, loop: Loop, *, first_step: int, n_steps: int, folder: str | None = None):
        super().__init__(loop)
        if first_step < 1 or n_steps < 1:
            raise ValueError(
                f"ProfilerTrace records n_steps, at least 1, from first_step on, at least 1; got "
                f"first_step={first_step}, n_steps={n_steps}."
            )
        if folder is None and loop.output_dir is not None:
            folder = os.path.join(loop.output_dir, "profile")
        if folder is None:
            raise ValueError(
                "ProfilerTrace writes to a folder; got none, and the Loop has no output_dir. Give "
                "either."
            )
        self._folder = folder
        self._steps = range(first_step, first_step + n_steps)
        self._profile: Any = None  # while it records
        self._begun: list[int] = []
        self._mark = contextlib.ExitStack()  # of the step under way

    def call_at(self, step: int) -> bool:
        """Tells whether the step is to be recorded."""
        return step in self._steps and bool(self._loop.is_chief)

    def on_step_begin(self, step: int) -> None:
        """Begins to record, at the first step, and marks each."""
        if self._profile is None:
            profile = torch.profiler.profile(acc_events=True)  # torch 2.11 asks for it
            profile.start()
            self._profile, self._begun = profile, []
        self._begun.append(step)
        self._mark.enter_context(torch.profiler.record_function(f"ProfilerStep#{step}"))

    def on_step_end(self, step: int) -> None:
        """Writes the trace, after the last step."""
        self._mark.close()
        if step == self._steps[-1]:
            self._write()

    def on_run_end(self, step: int) -> None:
        """Writes the trace of a run that ended before it was whole."""
        self._mark.close()
        if self._profile is not None:
            self._write()

    def _write(self) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        name = f"steps_{self._begun[0]}_to_{self._begun[-1]}.pt.trace.json.gz"
        try:
            os.makedirs(self._folder, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as unfinished:
                path = os.path.join(unfinished, name)
                profile.export_chrome_trace(path)
                os.replace(path, os.path.join(self._folder, name))
        except OSError as error:
            _log.warning("No trace was written to %s: %s. The run goes on.", self._folder, error)


def _local(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Returns this rank's parts of tensors, or the tensors."""
    return [_distributed.local(x) for x in tensors]


def _at_least_float32(w: torch.Tensor) -> torch.Tensor:
    """Returns a weight as what averages are kept in; itself, if it is that already."""
    return w.detach().to(torch.promote_types(w.dtype, torch.float32))


def _is_batch(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() > 0


def _is_tokens(x: Any) -> bool:
    """Tells whether a leaf is a tensor of integers (batch, length)."""
    if not isinstance(x, torch.Tensor) or x.dim() != 2:
        return False
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
