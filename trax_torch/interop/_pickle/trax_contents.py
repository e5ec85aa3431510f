"""What a pickle of Trax's says -> tensors, numbers, signatures.

A pickle can say more than it has bytes, by naming one part many times. So every visit is counted
here, and the budget pays for every tensor.
"""

from typing import Any

import torch

from trax_torch._errors import CheckpointError, UnsafeCheckpointError
from trax_torch.interop._pickle.gzip_stream import Budget
from trax_torch.interop._pickle.machine import Parsed
from trax_torch.interop._pickle.records import Array, History, Signature
from trax_torch.shapes import ShapeDtype

_MAX_DEPTH = 8  # of optimizer slots; SM3's, the deepest, have 4


class Contents:
    """The dict that a pickle holds.

    Args:
      parsed: a pickle's contents; a dict, or CheckpointError is raised.
      budget: pays for tensors.
    """

    def __init__(self, parsed: Parsed, budget: Budget):
        if not isinstance(parsed.value, dict) or "flat_weights" not in parsed.value:
            raise CheckpointError("it is a pickle without 'flat_weights', so none of Trax's")
        self._fields: dict[str, Any] = parsed.value
        self._visits_left = parsed.n_opcodes
        self._budget = budget

    def has(self, key: str) -> bool:
        """Tells whether there is such an item, other than None."""
        return self._fields.get(key) is not None

    def is_elsewhere(self, key: str) -> bool:
        """Tells whether arrays lie in files of their own: their compression level stands here."""
        return type(self._fields.get(key)) is int

    def step(self) -> int | None:
        """Returns the training step; None in a file of weights."""
        if not self.has("step"):
            return None
        step = self._scalar(self._fields["step"], "step")
        if not isinstance(step, int) or step < 0:
            raise CheckpointError("its step is no number of steps")
        return step

    def version(self) -> str:
        """Returns the format's date; '' in a file of weights."""
        version = self._fields.get("version_timestamp", "")
        if not isinstance(version, str) or len(version) > 64:
            raise CheckpointError("its version_timestamp is no date")
        return version

    def tensors(self, key: str) -> tuple[torch.Tensor, ...]:
        """Returns a flat list of arrays; () if there is none."""
        items = self._sequence(self._fields.get(key) or (), key)
        return tuple(self._tensor(item, key) for item in items)

    def slots_per_task(self) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Returns each task's optimizer slots, flat, where they lie in the pickle."""
        if self.has("slots"):  # before there were several tasks
            return (tuple(self._leaves(self._fields["slots"], 0)),)
        tasks = self._sequence(self._fields.get("slots_per_task") or (), "slots_per_task")
        return tuple(tuple(self._leaves(slots, 0)) for slots in tasks)

    def opt_params(self) -> dict[str, float] | None:
        """Returns the optimizer's parameters, which the older format has."""
        if not self.has("opt_params"):
            return None
        items = self._items(self._fields["opt_params"], "opt_params")
        return {name: float(self._scalar(value, "opt_params")) for name, value in items}

    def history(self) -> dict[str, dict[str, list[tuple[int, Any]]]]:
        """Returns {mode: {metric: [(step, value)]}}; what is no single number stays a tensor."""
        history = self._fields.get("history")
        if history is None:
            return {}
        fields = dict(
            self._items(history.fields if isinstance(history, History) else history, "history")
        )
        return {
            mode: {
                metric: [self._entry(entry) for entry in self._sequence(entries, "history")]
                for metric, entries in self._items(metrics, "history")
            }
            for mode, metrics in self._items(fields.get("_values", {}), "history")
        }

    def input_signature(self) -> ShapeDtype | tuple[ShapeDtype, ...] | None:
        """Returns the signature of one input bare, of several as a tuple; None if there is none."""
        signature = self._fields.get("input_signature")
        if signature is None:
            return None
        if isinstance(signature, Signature):
            signature = (signature,)
        items = []
        for item in self._sequence(signature, "input_signature"):
            if not isinstance(item, Signature):
                raise CheckpointError("its input_signature holds something else than ShapeDtypes")
            items.append(ShapeDtype(item.shape, item.dtype))
        return items[0] if len(items) == 1 else tuple(items)

    def _visit(self) -> None:
        self._visits_left -= 1
        if self._visits_left < 0:
            raise UnsafeCheckpointError("it holds the same parts over and over")

    def _sequence(self, value: Any, key: str) -> list[Any] | tuple[Any, ...]:
        self._visit()
        if not isinstance(value, (list, tuple)):
            raise CheckpointError(f"its {key} is not of the form that Trax writes")
        return value

    def _items(self, value: Any, key: str) -> list[tuple[str, Any]]:
        self._visit()
        if not isinstance(value, dict):
            raise CheckpointError(f"its {key} is not of the form that Trax writes")
        return list(value.items())

    def _tensor(self, value: Any, key: str) -> torch.Tensor:
        self._visit()
        if isinstance(value, Array):
            return value.take(self._budget)
        if isinstance(value, (bool, int, float)):
            return torch.tensor(value)
        raise CheckpointError(f"its {key} holds something else than arrays")

    def _value(self, value: Any, key: str) -> Any:
        if isinstance(value, (bool, int, float)):
            self._visit()
            return value
        tensor = self._tensor(value, key)
        return tensor.item() if tensor.dim() == 0 else tensor

    def _scalar(self, value: Any, key: str) -> Any:
        number = self._value(value, key)
        if isinstance(number, torch.Tensor):
            raise CheckpointError(f"its {key} has an array where a number is needed")
        return number

    def _entry(self, entry: Any) -> tuple[int, Any]:
        pair = self._sequence(entry, "history")
        if len(pair) != 2 or type(pair[0]) is not int:
            raise CheckpointError("its history holds something else than (step, value)")
        return pair[0], self._value(pair[1], "history")

    def _leaves(self, slots: Any, depth: int) -> list[torch.Tensor]:
        if slots is None:
            self._visit()
            return []
        if not isinstance(slots, (list, tuple)):
            return [self._tensor(slots, "slots")]
        self._visit()
        if depth == _MAX_DEPTH:
            raise UnsafeCheckpointError("it nests slots too deep")
        return [leaf for item in slots for leaf in self._leaves(item, depth + 1)]
