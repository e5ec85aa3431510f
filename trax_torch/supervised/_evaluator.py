"""A task's batches -> {metric: mean over batches}."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from trax_torch import _nest, _seeds, _world
from trax_torch import layers as tl
from trax_torch.layers import _stack
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
        world: _world.World,
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
        flags = [(m, m.training) for layer in measured for m in layer.modules()]
        for layer in measured:
            layer.eval()
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        error = None
        try:
            with torch.no_grad(), self._keyed(seed), self._autocast():
                batch: Any = self._task.sample_batch
                for _ in range(n_batches):
                    batch = self._task.next_batch()
                    sums = sums + self._measure(batch)
                for _ in range(self._n_passes(n_batches) - n_batches):
                    self._measure(batch)  # others measure still, and need this rank's weights
        except Exception as raised:
            error = raised
        finally:
            for module, flag in flags:
                module.training = flag
        *totals, count, n_errors = self._world.sum([*sums.tolist(), n_batches, error is not None])
        if n_errors:
            self._world.fail_together(error)
        if not count:
            raise ValueError("An eval needs a batch; n_eval_batches is 0 on every rank.")
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def _n_passes(self, n_batches: int) -> int:
        """Returns how often the model must run: where ranks hold parts of it, as often on each."""
        if not any(map(_world.is_shard, self._model.parameters())):
            return n_batches
        return int(max(self._world.each(n_batches)))

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
