"""A task's batches -> {metric: its value for all of their rows}."""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from trax_torch import _distributed, _seeds, optimizers
from trax_torch import layers as tl
from trax_torch.layers._protocol import modes_kept
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop import meet as _meet
from trax_torch.supervised._loop.metrics import StatefulMetrics
from trax_torch.supervised._loop.moving import Mover


class Evaluator:
    """Measures a model on the batches of one eval task.

    Args:
      layer: the model; it is put in eval mode while it is measured, and back.
      task: what to measure, on what.
      world: the ranks that measure together, each on batches of its own.
      autocast: makes the context that the model computes in.
      running: returns what runs for a model: a compiled twin, say.
      like: a batch like those that are measured, where the task has no sample.
      counts: what batches count for in each metric, None where `Shares` knows; see `counting`.
    """

    def __init__(
        self,
        layer: tl.Layer,
        task: _tasks.EvalTask,
        world: _distributed.World,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        running: Callable[[tl.Layer], tl.Layer] = lambda model: model,
        like: Any = (),
        counts: Sequence[optimizers.Count | None] = (),
    ):
        self._task = task
        self._world = world
        self._device = device = world.device
        self._move = Mover(device)
        self._autocast = autocast
        self._keyed = _seeds.Keyed(device)
        sample = task.sample_batch
        seen = like if sample is None else sample
        self.meetings = _meet.meet_all(layer, task.metrics, seen)
        self._model = running(self.meetings[0].asked_model(layer))
        self._shares = []
        for met, count in itertools.zip_longest(self.meetings, counts):
            model = met.model(layer)
            self._shares.append(optimizers.Shares(model, met.loss, count))
            if sample is not None:
                _tasks.check_fits(model, met.loss, met.arranged(sample), is_loss=False)
            met.loss.to(device)
        self._stateful = StatefulMetrics(task, world)

    @property
    def says(self) -> str:
        """How batches meet the model, in a line; "" where it is Trax's way."""
        unusual = [met for met in self.meetings if met.says_call]
        calls = [met.says_call for met in unusual[:1]]
        return ", ".join([*calls, *(met.says_loss for met in unusual)])

    def means(self, seed: int) -> dict[str, float]:
        """Returns each metric for all rows that all ranks measure; `EvalTask` says how.

        Args:
          seed: of the random numbers that the model or a metric may draw.
        """
        names = self._task.metric_names
        measured = [self._model, *self._task.metrics]
        sums = torch.zeros(2, len(names), dtype=torch.float64, device=self._device)
        n_batches, error = 0, None
        try:
            with (
                modes_kept(*measured),
                torch.no_grad(),
                self._keyed(seed),
                self._autocast(),
                contextlib.closing(self._batches()) as batches,
            ):
                for layer in measured:
                    layer.eval()
                self._stateful.begin()
                for batch in batches:
                    sums = sums + self._measure(batch)
                    n_batches += 1
        except Exception as raised:
            self.meetings[0].explain(raised)
            error = raised
        numbers = [*sums.flatten().tolist(), n_batches, error is not None]
        *numbers, n_of_all, n_errors = self._world.sum(numbers)
        if n_errors:
            self._world.fail_together(error)
        if not n_of_all:
            raise ValueError(
                "An eval needs a batch; n_eval_batches is 0 on every rank, or their data is empty."
            )
        totals, weights = numbers[: len(names)], numbers[len(names) :]
        means = {
            name: total / weight if weight else math.nan
            for name, total, weight in zip(names, totals, weights, strict=True)
        }
        with self._keyed(seed):
            return self._stateful.put_into(means, n_batches)

    def _batches(self) -> Generator[Any, None, None]:
        """Yields the batches to measure.

        Where ranks hold parts of the model, all must run it equally often: those that have fewer
        batches run it on the sample, for the others' sake.
        """
        batches, sample = self._task.batches(), self._task.sample_batch
        if not any(map(_distributed.is_shard, self._model.parameters())):
            yield from batches
            return
        while True:
            with self._world.together():
                batch = next(batches, None)
                if batch is None and sample is None:
                    raise ValueError(
                        "Where ranks hold parts of weights, a rank that measures no batch needs a "
                        "sample_batch, to take part in those of others."
                    )
            (n_left,) = self._world.sum([batch is not None])
            if not n_left:
                return
            if batch is not None:
                yield batch
            elif sample is not None:
                with self._stateful.unheard():
                    self._measure(sample)

    def _measure(self, batch: Any) -> torch.Tensor:
        """Returns each metric times what the batch counts for in it, and what it counts for."""
        batch = self._move(batch)
        items = self.meetings[0].call.items(batch)
        outputs = self._model(items[0] if len(items) == 1 else items)
        values, weights = [], []
        for name, met, shares in zip(
            self._task.metric_names, self.meetings, self._shares, strict=True
        ):
            value = met.loss(met.inputs_of(outputs, batch))
            value = torch.as_tensor(value, device=self._device)
            if value.dim():
                raise ValueError(
                    f"A metric is one number; {name} gives shape {tuple(value.shape)}. Take a mean."
                )
            weight = torch.as_tensor(
                shares.share_of_mean(met.arranged(batch)), device=self._device
            ).double()
            # Where nothing counts, the value is 0 / 0.
            values.append(torch.where(weight == 0, 0.0, value.double() * weight))
            weights.append(weight)
        return torch.stack([torch.stack(values), torch.stack(weights)])
