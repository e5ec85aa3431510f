"""Metrics with a state: they are reset before an eval, updated by batch, and computed once.

Which objects are such metrics, what they are given, and which numbers they come to. How ranks bring
their states together, `_loop.metrics` knows.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _nest
from trax_torch import layers as tl
from trax_torch.supervised.history import History

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_HALVES = (torch.float16, torch.bfloat16)
# What scikit-learn's functions call targets, which they take first.
_TARGETS_FIRST = ("y_true", "labels_true")


class EpochMetric:
    """A metric that is a function of all outputs and targets of an eval at once.

    For `EvalTask(metrics=)`, as `EpochMetric(sklearn.metrics.roc_auc_score)`. The function is
    called once an eval, with what came for all rows that were measured, on all ranks, joined along
    the first axis; rows are in the order of ranks, and of batches within each. `EvalTask` makes one
    of each function that calls its first argument y_true or labels_true.

    Args:
      function: takes (outputs, targets), or (outputs, targets, weights), as tensors on the CPU,
        float32 where they were in half precision. One whose first argument is called y_true or
        labels_true, as scikit-learn's are, is given (targets, outputs) as numpy arrays. It returns
        a number, a vector, or a dict of these. Outputs are the model's: for what wants classes of
        logits, say `lambda outputs, targets: f1_score(targets, outputs.argmax(1))`.
      name: what it is called in logs; the function's name by default.

    Example:
      >>> metric = EpochMetric(lambda outputs, targets: (outputs - targets).abs().max(), 'worst')
      >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
      >>> metric.update(torch.tensor([3.0]), torch.tensor([4.0]))
      >>> metric.compute()
      tensor(3.)

    Source: the name is PyTorch-Ignite's, `ignite.metrics.EpochMetric`.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None):
        if isinstance(function, nn.Module) or is_stateful(function):
            raise TypeError(
                f"EpochMetric takes a function; {type(function).__name__} goes into "
                f"EvalTask(metrics=) as it is."
            )
        if not callable(function) or inspect.isclass(function):
            raise TypeError(
                f"EpochMetric takes a function of all outputs and targets, such as "
                f"sklearn.metrics.roc_auc_score; got {function!r}."
            )
        required, first = _arguments(function)
        self.n_in = 3 if len(required) == 3 else 2
        self._is_targets_first = first in _TARGETS_FIRST
        if self._is_targets_first:
            self.n_in = 2
        self._function = function
        inner = getattr(function, "func", function)  # a partial's
        own = getattr(inner, "__name__", type(inner).__name__)
        self.name = name or ("EpochMetric" if own == "<lambda>" else own)
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def update(self, *items: Any) -> None:
        """Keeps a copy of a batch's outputs and targets, and weights if the function takes them."""
        for item in items:
            if not isinstance(item, torch.Tensor) or item.dim() == 0:
                raise ValueError(
                    f"{self.name} is of all outputs and targets joined along their first axis: "
                    f"tensors of rows; got {_form(item)}. Give an object with update, compute and "
                    f"reset for others."
                )
        self._batches.append(tuple([item.detach().to("cpu", copy=True) for item in items]))

    def compute(self) -> Any:
        """Returns what the function makes of all batches."""
        joined = [self._joined(parts) for parts in zip(*self._batches, strict=True)]
        try:
            if self._is_targets_first:
                outputs, targets = _nest.to_arrays(joined)
                return self._function(targets, outputs)
            return self._function(*joined)
        except Exception as error:
            error.add_note(
                f"{self.name} was given outputs and targets of all rows: "
                f"{', '.join(map(_form, joined))}. If it wants classes, give "
                f"EpochMetric(lambda outputs, targets: {self.name}(targets, outputs.argmax(1)))."
            )
            raise

    def _joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = sorted({str(tuple(part.shape)) for part in parts})
            raise ValueError(
                f"{self.name} joins batches along their first axis, and other axes must agree; got "
                f"{', '.join(shapes[:4])}. Have the data pad all batches to one length."
            )
        return torch.cat(list(parts))


class StatefulMetric(tl.Layer):
    """A metric with a state as a layer, which takes a batch in and gives 0.

    Args:
      metric: has `reset`, `update` and `compute`.
      n_in: how many items `update` takes: outputs, targets, weights; by default as it says.
      name: what it is called; by default its own name, or its class's.

    Attributes:
      metric: the metric.
      kept: what updates are to come with, if the metric is not updated yet; else None.
      is_heard: whether batches count.
    """

    def __init__(self, metric: Any, n_in: int | None = None, name: str | None = None):
        own = metric.name if isinstance(metric, EpochMetric) else type(metric).__name__
        super().__init__(n_items(metric) if n_in is None else n_in, name=name or own)
        self.metric = metric
        self.kept: list[tuple[Any, ...]] | None = None
        self.is_heard = True
        self._judges_batches = _judges_batches(metric)
        self._were_probabilities: set[bool] = set()
        self._is_merged_unseen = isinstance(getattr(metric, "compute_groups", None), dict)

    @property
    def syncs_itself(self) -> bool:
        """Whether the metric brings states of ranks together by itself, as torchmetrics' do."""
        if not isinstance(self.metric, nn.Module):
            return False
        return any(hasattr(module, "dist_sync_fn") for module in self.metric.modules())

    def begin(self, n_ranks: int) -> None:
        """Forgets what was measured before."""
        self.metric.reset()
        self._were_probabilities.clear()
        self.kept = None if n_ranks == 1 or self.syncs_itself else []

    def forward(self, x: Any) -> torch.Tensor:
        """Takes a batch in: outputs and targets, in float32 where they are in half precision."""
        items = (x,) if self._n_in == 1 else tuple(x)
        items = _nest.map_leaves(_whole_precision, items)
        if self.is_heard and self.kept is not None:
            self.kept.append(_nest.map_leaves(_copied, items))
        elif self.is_heard:
            self.update(items)
        return torch.zeros(())

    def update(self, items: tuple[Any, ...]) -> None:
        """Updates the metric, in full precision whatever the model computes in."""
        if self._judges_batches and items[0].is_floating_point():
            self._judge(items[0])
        tensors = (x for x in _nest.leaves(items) if isinstance(x, torch.Tensor))
        device = next((x.device.type for x in tensors), "cpu")
        try:
            with torch.autocast(device, enabled=False):
                self.metric.update(*items)
        except Exception as error:
            error.add_note(f"{self.name}.update was given {', '.join(map(_form, items))}.")
            raise
        if self._is_merged_unseen:
            self._is_merged_unseen = False
            self._look_at_merged()

    def _look_at_merged(self) -> None:
        """Warns where a torchmetrics collection took metrics that count otherwise for one."""
        collection: Any = self.metric
        for group in collection.compute_groups.values():
            if len({_counts_by(getattr(collection, name)) for name in group}) > 1:
                warnings.warn(
                    f"{self.name} counts {' and '.join(group)} as one metric: the first batch came "
                    f"out alike for them, and torchmetrics takes them for one from then on, though "
                    f"their settings differ. Make it with compute_groups=False.",
                    stacklevel=2,
                )

    def _judge(self, outputs: torch.Tensor) -> None:
        """Warns where some batches look like probabilities, and others do not."""
        self._were_probabilities.add(bool(((outputs >= 0) & (outputs <= 1)).all()))
        if len(self._were_probabilities) == 2:
            self._judges_batches = False
            warnings.warn(
                f"{self.name} is given outputs that lie within [0, 1] in some batches, and not in "
                f"others. torchmetrics decides for each batch by itself whether it is of logits, "
                f"so the value depends on how rows are cut into batches. Give it probabilities: "
                f"let the model end in a sigmoid or softmax.",
                stacklevel=2,
            )


def _counts_by(metric: Any) -> str:
    """Returns the settings of a metric of torchmetrics by which rows are counted otherwise."""
    names = ("threshold", "thresholds", "ignore_index", "top_k", "n_gram")
    return str([getattr(metric, name, None) for name in names])


def _judges_batches(metric: Any) -> bool:
    """Tells whether a metric of torchmetrics is another one of logits and of probabilities."""
    modules = metric.modules() if isinstance(metric, nn.Module) else ()
    return any(
        type(m).__module__.startswith("torchmetrics.classification.")
        and (type(m).__name__.startswith(("Binary", "Multilabel")) or hasattr(m, "thresholds"))
        for m in modules
    )


def is_stateful(metric: Any) -> bool:
    """Tells whether an object is a metric with a state."""
    if inspect.isclass(metric):
        return False
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def as_stateful(metric: Any) -> StatefulMetric | None:
    """Returns a metric with a state as a layer; None for what is none."""
    if isinstance(metric, StatefulMetric):
        return metric
    if isinstance(metric, tl.Wrapped) and is_stateful(metric.module):
        return StatefulMetric(metric.module, metric.n_in, metric.name)
    is_function = inspect.isroutine(metric) or isinstance(metric, functools.partial)
    if is_function and _arguments(metric)[1] in _TARGETS_FIRST:  # no mean over batches is its value
        return StatefulMetric(EpochMetric(metric))
    return StatefulMetric(metric) if is_stateful(metric) else None


def check_apart(metrics: Sequence[tl.Layer]) -> None:
    """Raises ValueError if one object is to be updated twice with each batch."""
    objects = [each.metric for each in metrics if isinstance(each, StatefulMetric)]
    if len({id(each) for each in objects}) < len(objects):
        raise ValueError(
            "A metric with a state is given twice, and would be updated twice with each batch. "
            "Give each its own object."
        )


def n_items(metric: Any) -> int:
    """Returns how many items `update` takes: those that it cannot do without.

    Where it takes any, as a torchmetrics collection or wrapper does, those in it say; else two,
    outputs and targets.
    """
    if isinstance(metric, EpochMetric):
        return metric.n_in
    required, _ = _arguments(metric.update)
    if required:
        return len(required)
    inner = metric.children() if isinstance(metric, nn.Module) else ()
    return max((n_items(child) for child in inner if is_stateful(child)), default=2)


def numbers_of(name: str, value: Any) -> dict[str, float]:
    """Returns what a metric came to as numbers by name.

    A number has the name itself; those of a dict have '<name>/<key>', and those of a vector or a
    list '<name>/<index>'.

    Raises:
      ValueError: if it is something else, a matrix, say.

    Example:
      >>> numbers_of('it', {'a': torch.tensor(0.5), 'b': [1, 2]})
      {'it/a': 0.5, 'it/b/0': 1.0, 'it/b/1': 2.0}
    """
    if isinstance(value, torch.Tensor):
        value = _nest.to_arrays(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        return {name: float(value)}
    is_vector = isinstance(value, np.ndarray) and value.ndim == 1
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, (list, tuple)) or is_vector:
        parts = list(enumerate(value))
    else:
        parts = []
    found: dict[str, float] = {}
    is_sequence = not isinstance(value, Mapping)
    for key, part in parts:
        numbers = numbers_of(f"{name}/{key}", part)
        if is_sequence and len(numbers) > 1:
            found = {}
            break
        found |= numbers
    if not found:
        raise ValueError(
            f"A metric is a number, a vector of numbers, or a dict of these; {name} computes "
            f"{_form(value)}. Compute numbers of it: an object of your own with update, compute "
            f"and reset can hold it."
        )
    return found


def is_of(name: str, value_name: str) -> bool:
    """Tells whether a value's name is of a metric: its own, or one of several that it came to."""
    return value_name == name or value_name.startswith(f"{name}/")


def check_comes_to(value_name: str, eval_tasks: Sequence[Any], history: History, step: int) -> None:
    """Raises ValueError if a metric came to other numbers than one that is followed.

    Args:
      value_name: the number's name, such as 'report/f1'.
      eval_tasks: one of which measures it, as far as its name tells.
      history: what was measured, the evals of a step last.
      step: the step.
    """
    recorded = history.metrics_for_mode("eval")
    if f"metrics/{value_name}" in recorded:
        return
    names = [name for task in eval_tasks for name in task.metric_names]
    prefixes = tuple(f"metrics/{name}/" for name in names if is_of(name, value_name))
    came = [
        name.removeprefix("metrics/")
        for name in recorded
        if name.startswith(prefixes) and history.get("eval", name)[-1][0] == step
    ]
    if came:
        raise ValueError(
            f"{value_name!r} is not among what was measured at step {step}: {', '.join(came)}. "
            f"Follow one of these."
        )


def _arguments(function: Callable[..., Any]) -> tuple[list[str], str]:
    """Returns the names of required positional arguments, and the name of the first one."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return [], ""
    plain = [p for p in parameters if p.kind in _POSITIONAL]
    return [p.name for p in plain if p.default is p.empty], plain[0].name if plain else ""


def _whole_precision(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in _HALVES else x


def _copied(x: Any) -> Any:
    return x.detach().to("cpu", copy=True) if isinstance(x, torch.Tensor) else x


def _form(x: Any) -> str:
    """Returns a value's kind in words."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    if isinstance(x, (dict, list, tuple)):
        return f"a {type(x).__name__} of {', '.join(_form(y) for y in list(_items(x))[:4])}"
    return type(x).__name__


def _items(x: Any) -> Any:
    return x.values() if isinstance(x, dict) else x
