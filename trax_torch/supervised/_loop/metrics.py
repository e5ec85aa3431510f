"""Metrics with a state, brought together over ranks, and computed once from all batches.

What syncs by itself, as torchmetrics' do, is asked to, with a way of gathering that takes ranks
without batches. Of others, what their updates came with is gathered, and the chief's are updated
with all of it. What one rank computes, all record.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _distributed, _nest
from trax_torch._errors import CallError
from trax_torch.layers._protocol import modes_kept
from trax_torch.supervised import _checkpoint, _tasks


class StatefulMetrics:
    """The metrics with a state of an eval task.

    Args:
      task: the eval task.
      world: the ranks that measure together.
    """

    def __init__(self, task: _tasks.EvalTask, world: _distributed.World):
        pairs = zip(task.metric_names, task.metrics, strict=True)
        self._metrics = {n: m for n, m in pairs if isinstance(m, _tasks.StatefulMetric)}
        self._world = world

    def begin(self) -> None:
        """Forgets what was measured before."""
        for metric in self._metrics.values():
            metric.begin(self._world.size)

    @contextlib.contextmanager
    def unheard(self) -> Generator[None]:
        """Has the batches of its block not count."""
        for metric in self._metrics.values():
            metric.is_heard = False
        try:
            yield
        finally:
            for metric in self._metrics.values():
                metric.is_heard = True

    def put_into(self, means: dict[str, float], n_batches: int) -> dict[str, float]:
        """Returns an eval's values by name, with those that these metrics come to in their places.

        Args:
          means: of all metrics, in order.
          n_batches: how many this rank has measured.

        Raises:
          ValueError: if a metric comes to no numbers, or to one that has another's name.
        """
        if not self._metrics:
            return means
        found: dict[str, float] = {}
        for name, mean in means.items():
            metric = self._metrics.get(name)
            numbers = {name: mean} if metric is None else self._numbers(name, metric, n_batches)
            both = found.keys() & numbers.keys()
            if both:
                raise ValueError(
                    f"Two metrics come to a value called {min(both)!r}. Give metric_names."
                )
            found |= numbers
        return found

    def _numbers(
        self, name: str, metric: _tasks.StatefulMetric, n_batches: int
    ) -> dict[str, float]:
        """Returns what a metric comes to for all batches of all ranks."""
        world = self._world
        if world.size == 1:
            with modes_kept(metric):
                metric.eval()
                return _computed(name, metric)
        try:
            return self._of_ranks(name, metric, n_batches)
        except CallError:  # of ranks that are at different states, which all of them have
            raise ValueError(
                f"The states of {name} cannot be brought together: ranks have different numbers of "
                f"them. Measure it on one rank, or give a metric whose states are tensors, or "
                f"lists that dist_reduce_fx='cat' joins."
            ) from None

    def _of_ranks(
        self, name: str, metric: _tasks.StatefulMetric, n_batches: int
    ) -> dict[str, float]:
        first = next(rank for rank, n in enumerate(self._world.each(n_batches)) if n)
        error, text = None, b""
        try:
            if metric.kept is None:
                numbers = self._synced(name, metric, n_batches)
            else:
                first, numbers = 0, self._gathered(name, metric)
            text = json.dumps(numbers).encode()
        except CallError:
            raise
        except Exception as raised:
            error = raised
        # One without a batch may lack what an update gives, and its value is nobody's.
        self._world.fail_together(error if n_batches or self._world.rank == first else None)
        result: dict[str, float] = json.loads(self._world.gather(text)[first])
        return result

    def _synced(self, name: str, metric: _tasks.StatefulMetric, n_batches: int) -> dict[str, float]:
        gather = _Gather(self._world, name)
        with warnings.catch_warnings(), _syncing_by(metric, gather), modes_kept(metric):
            metric.eval()
            if not n_batches:
                warnings.filterwarnings("ignore", ".*was called before the ``update`` method")
            return _computed(name, metric)

    def _gathered(self, name: str, metric: _tasks.StatefulMetric) -> dict[str, float]:
        tensors: dict[str, torch.Tensor] = {}
        kept, metric.kept = metric.kept, None
        with self._world.together():
            packed = _checkpoint.pack(kept, "update", tensors)
            data = _checkpoint.to_bytes(tensors, packed)
        everyones = self._world.gather(data)
        if not self._world.is_chief:
            return {}
        with modes_kept(metric), torch.no_grad():
            metric.eval()
            for data in everyones:
                tensors, packed = _checkpoint.from_bytes(data)
                for items in _checkpoint.unpack(packed, tensors):
                    metric.update(_nest.to_tensors(items, self._world.device))
            return _computed(name, metric)


class _Gather:
    """Gathers a tensor of each rank, for torchmetrics; of any shapes and types.

    A rank without batches brings an empty tensor where others have lists: it gets the others' type
    and shape, so that joining changes nothing.
    """

    def __init__(self, world: _distributed.World, name: str):
        self._world = world
        self._name = name
        self._n = 0

    def __call__(self, tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        self._n += 1
        with self._world.call(f"state {self._n} of {self._name}"):
            data = _checkpoint.to_bytes({"x": tensor.detach().cpu().contiguous()}, None)
            everyones = [
                _checkpoint.from_bytes(each)[0]["x"].to(tensor.device)
                for each in self._world.gather(data)
            ]
        full = next((x for x in everyones if x.numel()), None)
        if full is None:
            return everyones
        return [
            x if x.numel() or x.dim() != 1 else full.new_empty(0, *full.shape[1:])
            for x in everyones
        ]


@contextlib.contextmanager
def _syncing_by(metric: _tasks.StatefulMetric, gather: Callable[..., Any]) -> Generator[None]:
    """Has metrics that were given no way of their own gather so, for a while."""
    asked: list[Any] = [
        module
        for module in metric.modules()
        if getattr(module, "dist_sync_fn", gather) is None
        and getattr(module, "process_group", None) is None
    ]
    try:
        for module in asked:
            module.dist_sync_fn = gather
        yield
    finally:
        for module in asked:
            module.dist_sync_fn = None


def _computed(name: str, metric: _tasks.StatefulMetric) -> dict[str, float]:
    with torch.no_grad():
        value = metric.metric.compute()
    return _tasks.numbers_of(name, value)
