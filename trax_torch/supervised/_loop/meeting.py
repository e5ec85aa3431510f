"""How a batch meets a model: how the model is called with it, and how the loss is asked.

Both are data, a `Meeting`, which `meet` decides once. It arranges each batch as a plain stack, the
model's inputs and then what the loss takes of the batch, and everything after that is Trax's. Where
the batch is a tuple and the model a layer, that is the batch itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from trax_torch import _nest
from trax_torch import layers as tl
from trax_torch.layers._protocol import stack as _stack
from trax_torch.supervised._loop import outputs as _outputs

OWN, ITEMS, BATCH = "own", "items", "batch"  # what a loss is given: the model's own; items; all


@dataclasses.dataclass(frozen=True)
class Call:
    """How a model is called with a batch.

    Attributes:
      names: the items that it is given by name; () where they are positions.
      n_in: how many items it takes.
      takes_batch: whether it takes the batch as one object.
      left: the names of items that it is not given, in order.
      keys: of the sample batch, if it was a mapping.
      nones: names that the model takes, which were None in the sample.
      takes: all names that the model takes.
      is_inner: whether the names are those of a tuple's first item.
    """

    names: tuple[str, ...] = ()
    n_in: int = 1
    takes_batch: bool = False
    left: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    nones: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()
    is_inner: bool = False

    def items(self, batch: Any) -> tuple[Any, ...]:
        """Returns what the model takes of a batch.

        Raises:
          ValueError: if it has not all that the sample had, or more that the model takes.
        """
        if self.takes_batch:
            return (batch,)
        if not self.names:
            return tuple(batch[: self.n_in])
        batch = batch[0] if self.is_inner else batch
        if self.nones or (self.keys and batch.keys() != self.keys):
            self._check_no_more(batch)
        return picked(batch, self.names)

    def _check_no_more(self, batch: Any) -> None:
        named = by_name(batch) or {}
        new = (k for k in named if k in self.nones or (self.keys and k not in self.keys))
        more = [k for k in new if k in self.takes and named[k] is not None]
        if more:
            raise ValueError(
                f"The model takes {', '.join(more)}, which a batch has, but the sample batch did "
                f"not have. Yield batches that are alike, or give a sample_batch with all of it."
            )


@dataclasses.dataclass(frozen=True)
class Meeting:
    """How batches meet a model and a loss (or a metric).

    Attributes:
      call: how the model is called.
      loss: the loss as a layer of outputs and what it takes of the batch.
      kind: what the loss is: OWN, the model's own; ITEMS, of outputs and items; BATCH, of outputs
        and the whole batch.
      names: which items the loss takes: names, or positions in a tuple; () for OWN and BATCH.
      labels: the name or position of the labels that the loss counts by, if that is known; of the
        model's own loss, those that the model is given.
      wanted: what of the model's outputs the loss is given.
      is_foreign: whether the model is a module of others, which may return what it will.
      is_plain: whether a batch is a stack as it is.
      says_call: how the model is called, in words; "" where all is Trax's way.
      says_loss: how the loss is asked.
      compute: computes the loss from model and batch instead, if it is given.
    """

    call: Call
    loss: tl.Layer
    kind: str
    names: tuple[Any, ...]
    labels: Any
    wanted: _outputs.Wanted
    is_foreign: bool
    is_plain: bool
    says_call: str
    says_loss: str
    compute: Callable[[Any, Any], Any] | None = None

    def arranged(self, batch: Any) -> tuple[Any, ...]:
        """Returns a batch as a stack: what the model takes of it, then what the loss takes."""
        if self.is_plain:
            stack: tuple[Any, ...] = batch
            return stack
        if self.compute is not None:
            return (batch,)
        return (*self.call.items(batch), *self._of_loss(batch))

    def model(self, layer: tl.Layer) -> tl.Layer:
        """Returns what runs for a model on arranged batches, and gives what the loss wants."""
        if self.compute is not None:
            return _outputs.Computed(layer, self.loss, self.compute)
        return self._met(layer, self.wanted)

    def asked_model(self, layer: tl.Layer) -> tl.Layer:
        """Returns what runs for a model on arranged batches, and gives all that it returns."""
        return self._met(layer, None)

    def _met(self, layer: tl.Layer, wanted: _outputs.Wanted | None) -> tl.Layer:
        if not isinstance(layer, tl.Wrapped):
            return layer
        call = self.call
        return _outputs.Met(layer.module, call.n_in, call.names, wanted, layer.name)

    def inputs_of(self, outputs: Any, batch: Any) -> Any:
        """Returns what the loss takes, packed, of all that the model returned and a batch."""
        rest = batch[self.call.n_in :] if self.is_plain else self._of_loss(batch)
        if self.is_foreign:
            outputs = self.wanted.of(outputs)
        return _stack.take(_stack.put(outputs, rest, 0), self.loss.n_in)

    @property
    def says(self) -> str:
        """How it is, in a line; "" where it is Trax's way."""
        if not self.says_call:
            return ""
        unused = [name for name in self.call.left if name not in self.names and self.kind != BATCH]
        rest = f"; not used: {', '.join(unused)}" if unused else ""
        return f"{self.says_call}, {self.says_loss}{rest}"

    def refusal(self, error: ValueError, batch: Any) -> ValueError:
        """Returns an error about the number of items in a tuple with what else may be done."""
        if not self.is_foreign:
            return error
        more = ""
        if len(batch) > self.call.n_in + max(0, self.loss.n_in - self.wanted.n):
            more = (
                " Items for optional arguments, a mask say, are given by name: yield dicts, "
                "{'x': ..., 'mask': ..., 'labels': ...}; or say how many the model takes: "
                "layers.as_layer(model, n_in=2)."
            )
        return ValueError(f"{error} {self.wanted.says}{more}")

    def explain(self, error: Exception) -> None:
        """Has an error tell how model and loss met the batch, where that may be its cause."""
        if self.says_call or self.wanted.what != _outputs.TENSOR:
            how = f"{self.says}. " if self.says else ""
            error.add_note(f"How the batch met the model: {how}{self.wanted.says}")

    def _of_loss(self, batch: Any) -> tuple[Any, ...]:
        if self.kind == BATCH:
            return (batch,)
        return picked(batch, self.names)


def picked(batch: Any, names: Sequence[Any]) -> tuple[Any, ...]:
    """Returns items of a batch by name, or by position.

    Raises:
      ValueError: if there is one that the sample batch had, but this one has not.
    """
    try:
        if isinstance(batch, tuple) and not (names and isinstance(names[0], str)):
            return tuple([batch[i] for i in names])
        if hasattr(batch, "keys"):
            return tuple([batch[name] for name in names])
        return tuple([getattr(batch, name) for name in names])
    except (KeyError, IndexError, AttributeError):
        named = by_name(batch)
        came = list(named) if named is not None else type(batch).__name__
        raise ValueError(
            f"The sample batch had {list(names)}, and batches need them all; one came with {came}. "
            f"Yield batches that are alike."
        ) from None


def by_name(batch: Any) -> dict[str, Any] | None:
    """Returns the items of a batch that has names for them, else None."""
    if isinstance(batch, tuple):
        names = getattr(batch, "_fields", None)
        return None if names is None else dict(zip(names, batch, strict=True))
    return _nest.items_by_name(batch)
