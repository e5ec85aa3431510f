"""What a model returned, and which of it a loss is given.

Models of others return tensors, tuples, dicts and objects of their own. Which part a loss wants,
`meeting` decides once; this room finds that part.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch

from trax_torch import _nest
from trax_torch import layers as tl

_log = logging.getLogger("trax_torch")

# What is wanted of outputs: all, as one item; the tensor that is compared; the model's own loss.
RAW, TENSOR, LOSS = "raw", "tensor", "loss"

# What models call how many items the loss of a whole batch is a mean over, as transformers' do.
N_ITEMS = "num_items_in_batch"

# Names of the tensor that losses compare with targets, the likeliest first.
_NAMES = (
    *("logits", "prediction", "predictions", "preds", "pred", "y_pred", "y_hat"),
    *("outputs", "output", "out", "scores", "reconstruction"),
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which part of a model's outputs is wanted, and what to say where there is none.

    Attributes:
      what: RAW, TENSOR or LOSS.
      n: how many outputs; of several, the model must return a tuple of so many.
      says: the signatures of model and loss, for messages.
      told: whether it was told that it is the first of several outputs.
    """

    what: str
    n: int
    says: str
    told: list[bool] = dataclasses.field(default_factory=list)

    def of(self, outputs: Any) -> Any:
        """Returns what of the outputs goes on the stack.

        Raises:
          ValueError: if it is not there, or nothing tells which part it is.
        """
        if isinstance(outputs, torch.Tensor) and self.n == 1:
            if self.what == LOSS and outputs.dim():
                raise self._no_loss(outputs)
            return outputs
        if self.n > 1:
            if isinstance(outputs, (tuple, list)) and len(outputs) == self.n:
                return tuple(outputs)
            raise ValueError(
                f"The loss takes {self.n} outputs of the model, which returned "
                f"{described(outputs)}. {self.says} Return a tuple of {self.n}, or write "
                f"loss=lambda outputs, batch: ..."
            )
        if isinstance(outputs, (tuple, list)) and len(outputs) == 1 and self.what != LOSS:
            return self.of(outputs[0])
        if self.what == LOSS:
            return self._loss(outputs)
        if self.what == TENSOR:
            return self._tensor(outputs)
        return (outputs,) if isinstance(outputs, (tuple, list)) else outputs

    def _tensor(self, outputs: Any) -> torch.Tensor:
        named = _named(outputs)
        if named is not None:
            found = [named[name] for name in _NAMES if isinstance(named.get(name), torch.Tensor)]
            tensors = [x for x in named.values() if isinstance(x, torch.Tensor) and x.dim()]
            if found or len(tensors) == 1:
                return (found or tensors)[0]
        elif isinstance(outputs, (tuple, list)):
            first = outputs[0] if outputs else None
            if isinstance(first, torch.Tensor) and first.dim():
                if sum(isinstance(x, torch.Tensor) and x.dim() > 0 for x in outputs) > 1:
                    self._tell(outputs)
                return first
        raise ValueError(
            f"The loss compares one tensor with the targets, and nothing tells which of what the "
            f"model returned: {described(outputs)}. {self.says} Write loss=lambda outputs, batch: "
            f"..., which is given all of it."
        )

    def _tell(self, outputs: Any) -> None:
        """Says once that a loss is given the first of several outputs."""
        if not self.told and not torch.compiler.is_compiling():
            self.told.append(True)
            _log.warning(
                "The model returns %s, and the loss is given the first of them. %s To say it, "
                "write loss=lambda outputs, batch: ...",
                described(outputs),
                self.says,
            )

    def _loss(self, outputs: Any) -> torch.Tensor:
        named = _named(outputs)
        loss = None if named is None else named.get("loss")
        if loss is None and named is None and isinstance(outputs, (tuple, list)):
            scalars = [x for x in outputs if isinstance(x, torch.Tensor) and not x.dim()]
            loss = scalars[0] if len(scalars) == 1 else None
        if isinstance(loss, torch.Tensor) and not loss.dim():
            return loss
        raise self._no_loss(outputs)

    def _no_loss(self, outputs: Any) -> ValueError:
        return ValueError(
            f"The model is to compute its own loss, one number, which it returns as it is, or as "
            f"'loss' among others; it returned {described(outputs)}. {self.says} Give it what it "
            f"computes the loss from, labels say; or a loss, loss=nn.CrossEntropyLoss() or "
            f"loss=lambda outputs, batch: ..."
        )


def described(outputs: Any) -> str:
    """Returns in a few words what a model returned.

    Example:
      >>> described({"logits": torch.ones(2, 3), "hidden": None})
      'dict(logits: (2, 3), hidden: NoneType)'
    """
    named = _named(outputs)
    if named is not None:
        words = ", ".join(f"{name}: {described(x)}" for name, x in named.items())
        return f"{type(outputs).__name__}({words})"
    if isinstance(outputs, (tuple, list)):
        return f"{type(outputs).__name__}({', '.join(map(described, outputs))})"
    return str(tuple(outputs.shape)) if hasattr(outputs, "shape") else type(outputs).__name__


def _named(outputs: Any) -> dict[Any, Any] | None:
    """Returns what outputs hold by name, if they do."""
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        named: Any = outputs
        return dict(zip(named._fields, named, strict=True))
    return _nest.items_by_name(outputs)


class Met(tl.Wrapped):
    """A module of others as it is called with batches, and gives what a loss wants of its outputs.

    It has the module's own weights, no copies. Whoever cuts batches may tell it by `tell` what the
    whole of a batch counts for, which the module then is given as `num_items_in_batch`.

    Args:
      module: the module.
      n_in: how many items of an arranged batch it takes.
      names: the arguments that they are given as; () for positions.
      wanted: which of its outputs go on; None for all, as they came.
      name: what it prints as.

    Attributes:
      is_told: whether `tell` is called before each step.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        n_in: int,
        names: tuple[str, ...],
        wanted: Wanted | None,
        name: str,
    ):
        super().__init__(module, n_in, 1 if wanted is None else wanted.n, name)
        self._names = names
        self._wanted = wanted
        self._told: dict[str, torch.Tensor] = {}
        self.is_told = False
        self._passes_tensors = wanted is None or (wanted.n == 1 and wanted.what != LOSS)

    @property
    def key(self) -> tuple[Any, ...]:
        """What two of them have in common that compute the same."""
        wanted = None if self._wanted is None else (self._wanted.what, self._wanted.n)
        own = id(self) if self.is_told else None
        return id(self.module), self._n_in, self._names, wanted, own

    def tell(self, n_items: torch.Tensor | None) -> None:
        """Has the module be given how many items its loss is a mean over; None for no more."""
        self._told = {} if n_items is None else {N_ITEMS: n_items}

    def forward(self, x: Any) -> Any:
        """Returns what is wanted of the module's outputs."""
        if self._names:
            items = (x,) if self._n_in == 1 else x
            outputs = self.module(**dict(zip(self._names, items, strict=True)), **self._told)
        elif self._n_in == 1:
            outputs = self.module(x, **self._told)
        else:
            outputs = self.module(*x, **self._told)
        if self._passes_tensors and type(outputs) is torch.Tensor:  # most often, and quicker
            return outputs
        return outputs if self._wanted is None else self._wanted.of(outputs)


class Computed(tl.Layer):
    """The loss of a batch as a user's own function computes it from the model and the batch.

    Args:
      layer: the model.
      loss: the task's loss, whose weights are trained, too.
      compute: a function of the module that runs and a batch.
    """

    def __init__(self, layer: tl.Layer, loss: tl.Layer, compute: Callable[[Any, Any], Any]):
        super().__init__(name=layer.name)
        self._set_sublayers([layer, loss])
        self._compute = compute

    def forward(self, x: Any) -> torch.Tensor:
        """Returns the loss of a batch.

        Raises:
          ValueError: if what was computed is no scalar.
        """
        layer: Any = self.sublayers[0]
        model = layer.module if isinstance(layer, tl.Wrapped) else layer
        loss = self._compute(model, x)
        if not isinstance(loss, torch.Tensor) or loss.dim():
            raise ValueError(
                f"compute_loss(model, batch) returns the loss of a batch, a tensor of no axes; "
                f"got {described(loss)}. Take a mean."
            )
        return loss
