"""A task's batches -> {metric: mean over batches}."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from trax_torch import _distributed, _nest, _seeds
from trax_torch import layers as tl
from trax_torch.layers._protocol import modes_kept
from trax_torch.layers._protocol import stack as _stack
from trax_torch.supervised import _tasks


class Evaluator:
    """Measures a model on the batches of one eval task.

    Args:
      model: the model; it is put in eval mode while it is measured, and back.
      task: what to measure, on what.
      world: the ranks that measure together, each on batches of its own.
      autocast: makes the context that the model computes in.
    """

    def __init__(
        self,
        model: tl.Layer,
        task: _tasks.EvalTask,
        world: _distributed.World,
        autocast: Callable[[], Any] = contextlib.nullcontext,
    ):
        self._model = model
        self._task = task
        self._world = world
        self._device = device = world.device
        self._autocast = autocast
        self._keyed = _seeds.Keyed(device)
        for metric in task.metrics:
            if task.sample_batch is not None:
                _tasks.check_fits(model, metric, task.sample_batch, is_loss=False)
            metric.to(device)

    def means(self, seed: int) -> dict[str, float]:
        """Returns the mean of each metric over the task's next batches, of all ranks together.

        Args:
          seed: of the random numbers that the model or a metric may draw.
        """
        n_batches, names = self._task.n_eval_batches, self._task.metric_names
        measured = [self._model, *self._task.metrics]
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        error = None
        try:
            with (
                modes_kept(*measured),
                torch.no_grad(),
                self._keyed(seed),
                self._autocast(),
            ):
                for layer in measured:
                    layer.eval()
                for batch in self._batches():
                    sums = sums + self._measure(batch)
        except Exception as raised:
            error = raised
        *totals, count, n_errors = self._world.sum([*sums.tolist(), n_batches, error is not None])
        if n_errors:
            self._world.fail_together(error)
        if not count:
            raise ValueError("An eval needs a batch; n_eval_batches is 0 on every rank.")
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        """Yields the batches to measure.

        Where ranks hold parts of the model, all must run it equally often: those that have fewer
        batches run it on the sample, for the others' sake.
        """
        task, n_batches = self._task, self._task.n_eval_batches
        if not any(map(_distributed.is_shard, self._model.parameters())):
            for _ in range(n_batches):
                yield task.next_batch()
            return
        sample: Any = task.sample_batch
        with self._world.together():
            mine = [task.next_batch() for _ in range(n_batches)]
            if sample is None:
                raise ValueError(
                    "With strategy='fsdp' a rank that measures no batch needs a sample_batch, to "
                    "take part in those of others."
                )
        most = int(max(self._world.each(n_batches)))
        yield from mine
        for _ in range(most - n_batches):
            with torch.no_grad():
                self._measure(sample)

    def _measure(self, batch: tuple[Any, ...]) -> torch.Tensor:
        stack = _nest.to_tensors(batch, self._device)
        outputs = self._model(_stack.take(stack, self._model.n_in))
        stack = _stack.put(outputs, stack, self._model.n_in)
        values = []
        for name, metric in zip(self._task.metric_names, self._task.metrics, strict=True):
            value = torch.as_tensor(metric(_stack.take(stack, metric.n_in)), device=self._device)
            if value.dim():
                raise ValueError(
                    f"A metric is one number; {name} gives shape {tuple(value.shape)}. Take a mean."
                )
            values.append(value.double())
        return torch.stack(values)
