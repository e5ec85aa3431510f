"""A callback that measures how far into the future a model of series sees."""

import os
from collections.abc import Callable, Container, Sequence
from typing import Any, cast

import numpy as np
import torch

from trax_torch import _nest
from trax_torch.supervised import _logging, decoding
from trax_torch.supervised._callback import TrainingStepCallback


class SerializedModelEvaluation(TrainingStepCallback):
    """Measures what a model predicts of series that are written in symbols, step after step.

    A series has observations and actions, of which each is some symbols, and the model reads them
    in turn. It is shown the first `context` of both, and predicts the observation after them,
    symbol by symbol; then it is shown the true action, and predicts the next observation from its
    own, and so on. The error at a horizon of h is that of the h-th observation it predicts so:
    the squared difference, summed over the series and divided by the number that is not 0.

    Args:
      loop: the `Loop` that calls; None if `model` and `eval_task` are given, and `evaluate` called.
      model: has `observation_serializer` and `action_serializer`, each with
        `serialize(values) -> symbols (n, representation_length)`, `deserialize(symbols)` and
        `representation_length`; `make_predict_model()`, a language model of the symbols; and
        `seq_model_weights`, its weights in training. By default the loop's.
      eval_at: every how many steps, from the first one on; or the steps; or a function of a step.
      eval_task: gives batches (observations, actions, _, mask), of shapes (batch, length, ...) and
        (batch, length); by default the loop's only one.
      context_lengths: how many observations the model is shown.
      horizon_lengths: how many it predicts.
      n_steps: on how many batches to measure.
      accelerate_model: lets decoding compile its steps where that pays.

    Raises:
      TypeError: if `eval_at` is none of these.
      ValueError: if the loop has not one eval task, and none is given; or if a series is too short.

    Source: Trax `supervised/callbacks.py::SerializedModelEvaluation`.
    """

    def __init__(
        self,
        loop: Any,
        model: Any = None,
        eval_at: int | Container[int] | Callable[[int], bool] = 1000,
        eval_task: Any = None,
        context_lengths: Sequence[int] = (1,),
        horizon_lengths: Sequence[int] = (1,),
        n_steps: int = 1,
        accelerate_model: bool = True,
    ):
        super().__init__(loop)
        model = loop.model if model is None else model
        self._observations = model.observation_serializer
        self._actions = model.action_serializer
        self._predict_model = model.make_predict_model()
        self._is_due = _predicate(eval_at)
        if eval_task is None and len(loop.eval_tasks) != 1:
            raise ValueError(
                f"Without an eval_task the loop's only one is measured on; it has "
                f"{len(loop.eval_tasks)}. Give functools.partial(..., eval_task=...)."
            )
        self._eval_task = loop.eval_tasks[0] if eval_task is None else eval_task
        self._contexts, self._horizons = sorted(context_lengths), sorted(horizon_lengths)
        self._n_steps, self._accelerates = n_steps, accelerate_model
        self._predict_model.init(torch.zeros(1, 1, dtype=torch.int64))

    @property
    def predict_model(self) -> Any:
        """What predicts."""
        return self._predict_model

    def call_at(self, step: int) -> bool:
        """Tells whether to measure after a step."""
        return self._is_due(step)

    def on_step_end(self, step: int) -> None:
        """Measures, and logs 'pred_error/context_<c>/horizon_<h>' in the mode 'srl_eval'."""
        values = self.evaluate(self._loop.eval_model.seq_model_weights)
        writer = None
        if self._loop.output_dir is not None:
            folder = os.path.join(self._loop.output_dir, "srl_eval")
            writer = _logging.EventFile(folder, _ignored)
            writer.begin(step)
        self._loop.log_summary(values, writer, "", "srl_eval")

    def evaluate(self, weights: Any) -> dict[str, float]:
        """Returns the errors by 'pred_error/context_<c>/horizon_<h>' for these weights."""
        self._predict_model.weights = weights
        errors: dict[tuple[int, int], list[Any]] = {}
        for _ in range(self._n_steps):
            batch = _nest.to_arrays(self._eval_task.next_batch())
            for key, error in self._errors(batch).items():
                errors.setdefault(key, []).append(error)
        return {
            f"pred_error/context_{context}/horizon_{horizon}": float(
                np.sum(found) / (np.count_nonzero(found) + 1e-6)
            )
            for (context, horizon), found in errors.items()
        }

    def _errors(self, batch: Any) -> dict[tuple[int, int], Any]:
        """Returns squared differences, masked, by context and horizon."""
        seen, done, _, mask = batch
        needed = self._contexts[-1] + self._horizons[-1]
        if seen.shape[1] < needed:
            raise ValueError(
                f"The longest context and horizon need {needed} observations; a series has "
                f"{seen.shape[1]}. Give longer series, or shorter context_lengths."
            )
        symbols_seen = _symbols(self._observations, seen)
        symbols_done = _symbols(self._actions, done)
        errors = {}
        for context in self._contexts:
            shown = [(symbols_seen[:, i], symbols_done[:, i]) for i in range(context)]
            past = np.concatenate([part for pair in shown for part in pair], axis=1)
            for horizon in range(1, self._horizons[-1] + 1):
                now = context + horizon - 1
                guess = self._next(past)
                if horizon in self._horizons:
                    value = self._observations.deserialize(guess)
                    errors[context, horizon] = (value - seen[:, now]) ** 2 * mask[:, now]
                if now < symbols_done.shape[1]:
                    past = np.concatenate([past, guess, symbols_done[:, now]], axis=1)
        return errors

    def _next(self, past: Any) -> Any:
        """Returns the symbols of the observation that the model expects after others."""
        guess = decoding.autoregressive_sample(
            self._predict_model,
            inputs=past,
            batch_size=len(past),
            eos_id=-1,
            max_length=self._observations.representation_length,
            accelerate=self._accelerates,
        )
        return np.asarray(guess)


def _symbols(serializer: Any, values: Any) -> Any:
    """Returns values (batch, length, ...) as symbols (batch, length, representation_length)."""
    flat = np.reshape(values, (-1, *values.shape[2:]))
    symbols = np.asarray(serializer.serialize(flat))
    return symbols.reshape(*values.shape[:2], serializer.representation_length)


def _predicate(at: Any) -> Callable[[int], bool]:
    if isinstance(at, int):
        return lambda step: step % at == 1 % at
    if isinstance(at, Container):
        return lambda step: step in at
    if callable(at):
        return cast(Callable[[int], bool], at)
    raise TypeError(
        f"eval_at is every how many steps to measure, the steps, or a function of a step; got "
        f"{at!r}."
    )


def _ignored(error: OSError) -> None:
    """Lets the run go on where TensorBoard's files cannot be written; the history has the rest."""
