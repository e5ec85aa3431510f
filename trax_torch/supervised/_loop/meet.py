"""Decides how batches meet a model and a loss: once, on a sample batch, by their signatures.

Names decide: of the model's arguments, of the loss's, of the items of a batch. Where they leave it
open, nothing is guessed: the error shows what each of them takes, and the line to write.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop import outputs as _outputs
from trax_torch.supervised._loop import signatures
from trax_torch.supervised._loop.meeting import BATCH, ITEMS, OWN, Call, Meeting, by_name

# What targets, and weights, are called in batches and arguments.
_TARGETS = ("labels", "label", "targets", "target", "y", "y_true", "label_ids", "tgt", "truth")
_WEIGHTS = ("weights", "weight", "sample_weight", "sample_weights", "loss_mask", "loss_weights")
# What the one argument is called that takes a whole batch.
_WHOLE = ("batch", "data", "sample", "samples", "inputs", "features", "example", "examples")
# What a loss calls the tensor that it compares; what has another name may want all outputs.
_TENSORS = (
    *("input", "inputs", "logits", "logit", "pred", "preds", "prediction", "predictions"),
    *("y_pred", "y_hat", "scores"),
)


def meet(layer: tl.Layer, loss: tl.Layer, batch: Any) -> Meeting:
    """Returns how batches meet a model and its loss.

    Args:
      layer: the model.
      loss: the loss, as `_tasks` has it.
      batch: a sample batch.

    Raises:
      ValueError: if they do not fit, or several ways would do, with what each of them takes.
    """
    return meet_all(layer, [loss], batch, is_loss=True)[0]


def meet_all(
    layer: tl.Layer, losses: Sequence[tl.Layer], batch: Any, is_loss: bool = False
) -> list[Meeting]:
    """Returns how batches meet a model, which is called once, and each of several metrics.

    Args:
      layer: the model.
      losses: the metrics, which may leave items of a batch, or the loss, which may not.
      batch: a sample batch.
      is_loss: whether it is a loss.
    """
    table = [_Table(layer, loss, batch) for loss in losses]
    if isinstance(batch, tuple) and batch and _fits_names(_Table(layer, losses[0], batch[0])):
        inner = _Table(layer, losses[0], batch[0]).call(set())
        call = dataclasses.replace(inner, is_inner=True)
        return [each.with_inner(call, is_loss) for each in table]
    kinds = {each.kind for each in table}
    if isinstance(batch, tuple) and not _fits_names(table[0]):
        if OWN not in kinds:
            return [each.of_stack(layer.n_in) for each in table]
        own = next(each for each in table if each.kind == OWN).of_stack(layer.n_in)
        return [own if each.kind == OWN else each.beside(own) for each in table]
    if table[0].items is not None and not table[0].is_foreign:
        raise table[0].refusal(
            "A layer takes the items of a tuple, by their positions.", table[0].do
        )
    asked = [each.items_asked() for each in table]
    withheld = {name for items in asked for name in items} if kinds == {ITEMS} else set()
    call = table[0].call(withheld)
    return [each.by_name(call, items) for each, items in zip(table, asked, strict=True)]


def hooked(
    compute: Callable[[Any, Any], Any], layer: tl.Layer, loss: tl.Layer, batch: Any
) -> Meeting:
    """Returns the meeting of a loss that a user's own function computes of model and batch."""
    wanted = _outputs.Wanted(_outputs.LOSS, 1, "")
    call = Call(n_in=layer.n_in) if isinstance(batch, tuple) else Call(takes_batch=True)
    says = ("Loop.compute_loss(model, batch)", "the loss it returns")
    return Meeting(call, loss, OWN, (), None, wanted, False, False, *says, compute)


def _fits_names(table: "_Table") -> bool:
    """Tells whether the names in a batch are those of the model's arguments."""
    names = table.items or {}
    some = any(name in names for name in table.model.named)
    return table.is_foreign and some and all(name in names for name in table.model.required)


class _Table:
    """A model, a loss and a batch, and what becomes of them."""

    def __init__(self, layer: tl.Layer, loss: tl.Layer, batch: Any):
        self.layer = layer
        self.loss = loss
        self.batch = batch
        self.items = by_name(batch)
        self.is_foreign = isinstance(layer, tl.Wrapped)
        self.model = signatures.of_model(layer)
        self.arguments = signatures.arguments_of(loss)
        self.kind = _kind_of(loss, self.arguments)

    def refusal(self, why: str, do: str) -> ValueError:
        """Returns an error that shows what each of them takes and has."""
        return ValueError(f"{why} {self.signatures()} {do}")

    def signatures(self) -> str:
        """Returns what model and loss take, and what is in the batch."""
        asked = "its own loss" if self.kind == OWN else signatures.of_loss(self.loss).text
        if self.items is not None:
            came = f"{type(self.batch).__name__} of {', '.join(map(str, self.items))}"
        elif isinstance(self.batch, tuple):
            came = f"tuple of {len(self.batch)} items"
        else:
            came = type(self.batch).__name__
        return f"The model is {self.model.text}, the loss {asked}, the batch a {came}."

    # Tuples: items by their positions.

    def of_stack(self, n_in: int) -> Meeting:
        """Returns how a tuple is met, of which the model takes the first items."""
        if self.kind == BATCH:
            return self._meeting(Call(n_in=n_in), (), is_plain=False)
        if self.kind == OWN:
            n_in = self._n_in_with_own_loss(n_in)
            return self._meeting(Call(n_in=n_in), (), is_plain=True)
        n_out, n_asked = self.layer.n_out, self.loss.n_in
        n_left = len(self.batch) - n_in
        if self._compares_the_first and 0 < n_asked - 1 <= n_left:
            names = tuple(range(n_in, n_in + n_asked - 1))
            return self._meeting(Call(n_in=n_in), names, is_plain=False)
        if self._may_take_several and 0 < n_left < n_asked - 1:
            n_out = n_asked - n_left
        names = tuple(range(n_in, n_in + max(0, n_asked - n_out)))
        return self._meeting(Call(n_in=n_in), names, is_plain=True, n_out=n_out)

    def beside(self, own: Meeting) -> Meeting:
        """Returns how a tuple is met of which the model takes all, to compute its own loss."""
        n_asked = len(self.arguments) - 1
        if self.kind == BATCH or n_asked == 0:
            return self._meeting(own.call, (), is_plain=False)
        if self.kind == ITEMS and n_asked == 1 and own.labels is not None:
            return self._meeting(own.call, (own.labels,), is_plain=False)
        raise self.refusal(
            "The model takes all items of a batch; which the metric takes, nothing tells.",
            "Write metrics=[lambda outputs, batch: ...], or yield batches with names.",
        )

    @property
    def _compares_the_first(self) -> bool:
        """Whether a loss compares the first of several outputs with targets, by its arguments."""
        if not self.is_foreign or self.layer.n_out < max(2, self.loss.n_in):
            return False
        return not self._is_of_users or any(name in _TARGETS for name in self.arguments)

    @property
    def _is_of_users(self) -> bool:
        return not (signatures.is_of_torch(self.loss) or signatures.is_of_trax(self.loss))

    @property
    def _may_take_several(self) -> bool:
        """Whether a loss may want several outputs, where there are too few items for it."""
        is_said = not self.is_foreign or self.layer.n_out > 1
        return self._is_of_users and not is_said and not any(map(_is_weights, self.arguments))

    def _n_in_with_own_loss(self, n_in: int) -> int:
        """Returns how many items a model takes that computes the loss itself: all of them."""
        n = len(self.batch)
        more = self.model.positions[n_in:n]
        known = [is_targets(name) or "mask" in name or "length" in name for name in more]
        if self.is_foreign and len(more) == n - n_in and all(known) and any(map(is_targets, more)):
            return n
        if n != n_in:
            names = ", ".join(f'"{name}": ...' for name in self.model.named[:n]) or '"x": ...'
            raise self.refusal(
                f"A model that computes its own loss is given all {n} items of a batch, and this "
                f"one takes {n_in}, or others that are not known to be these.",
                f"Yield them by name, {{{names}}}, or give a loss of outputs and targets.",
            )
        return n_in

    def with_inner(self, call: Call, is_loss: bool) -> Meeting:
        """Returns how a tuple is met whose first item has names, which are the model's."""
        n_left = len(self.batch) - 1
        if self.kind == BATCH:
            return self._meeting(call, (), is_plain=False)
        n_asked = len(self.arguments) - 1 if self.kind == ITEMS else 0
        is_short = n_left < n_asked and not (self._is_of_users and n_left)
        if is_short or (is_loss and n_left > n_asked):
            raise self.refusal(
                f"The model takes the first item of a batch by its names, {', '.join(call.names)}, "
                f"and the loss {n_asked} of the {n_left} others.",
                "Put what the model needs, labels say, into the first item, and after it what the "
                "loss takes; or write loss=lambda outputs, batch: ...",
            )
        names = tuple(range(1, 1 + min(n_asked, n_left)))
        n_out = len(self.arguments) - len(names) if self.kind == ITEMS else 1
        return self._meeting(call, names, is_plain=False, n_out=n_out)

    # Batches with names, and other objects.

    def items_asked(self) -> tuple[str, ...]:
        """Returns the names of the items that the loss takes itself."""
        if self.kind != ITEMS:
            return ()
        n_out = self.layer.n_out if self.is_foreign else 1
        rest = self.arguments[n_out if len(self.arguments) > n_out else 1 :]
        held = self.items if self.items is not None else _attributes(self.batch)
        if not rest or all(name in held for name in rest):
            return tuple(rest)
        own = [name for name in rest if name in held]
        if self._is_of_users and own and rest[-len(own) :] == own:
            return tuple(own)  # those before are outputs
        targets = [name for name in held if is_targets(name)]
        if len(targets) > 1:  # what the model cannot do without is an input
            targets = [name for name in targets if name not in self.model.required]
        weights = [name for name in held if _is_weights(name)]
        found = targets[:1] if len(targets) == 1 else []
        if len(rest) == 2 and len(weights) == 1 and found:
            found = [*found, weights[0]]
        if not targets and self.items is not None:
            others = [name for name in held if name not in self.model.named]
            is_clear = len(others) == len(rest) and (self.model.named or not self.model.takes_more)
            found = others if is_clear else []
        if len(found) == len(rest):
            return tuple(found)
        keys = ", ".join(map(str, held)) or "nothing known"
        raise self.refusal(
            f"The loss takes {', '.join(rest)} of a batch, and which of {keys} that is, nothing "
            f"tells.",
            "Call the targets labels, or name the loss's arguments as the batch does; or write "
            "loss=lambda outputs, batch: ...",
        )

    def call(self, withheld: set[str]) -> Call:
        """Returns how the model is called with a batch that is no tuple.

        Args:
          withheld: the items that losses take; the model gets them too where it cannot do without.
        """
        if self.items is None:
            return Call(takes_batch=True)
        keys = [str(k) for k, item in self.items.items() if item is not None]
        if not self.model.named and self.model.takes_more:
            given = [k for k in keys if k not in withheld]
        else:
            given = [k for k in keys if k in self.model.named and self._is_given(k, withheld)]
        missing = [name for name in self.model.required if name not in given]
        if given and not missing:
            return Call(
                tuple(given),
                len(given),
                left=tuple(k for k in keys if k not in given),
                keys=frozenset(self.items) if hasattr(self.batch, "keys") else frozenset(),
                nones=tuple(k for k in self.items if k not in keys and k in self.model.named),
                takes=frozenset(self.model.named),
            )
        if not given and len(missing) == 1 and missing[0] in _WHOLE:
            return Call(takes_batch=True)
        why = f"The model needs {', '.join(missing)}, which is not in the batch."
        raise self.refusal(why if missing else "No argument has a name of the batch.", self.do)

    @property
    def do(self) -> str:
        """What to write where a batch with names does not fit the model."""
        names = list(self.items or ())
        items = ", ".join(f"batch[{name!r}]" for name in names[:4])
        return (
            f"Name the items as the model's arguments, or have the data yield tuples, inputs "
            f"first: ({items}); a model that takes a batch whole has def forward(self, batch)."
        )

    def _is_given(self, name: str, withheld: set[str]) -> bool:
        if name not in withheld or name in self.model.required:
            return True
        start = "decoder_input_ids"  # which encoder-decoders make of the labels
        return start in self.model.named and start not in (self.items or ())

    def by_name(self, call: Call, items: tuple[str, ...]) -> Meeting:
        """Returns the meeting for a call and what the loss takes itself."""
        n_out = len(self.arguments) - len(items) if self.kind == ITEMS else 1
        return self._meeting(call, items, is_plain=False, n_out=n_out)

    def _meeting(
        self, call: Call, names: tuple[Any, ...], is_plain: bool, n_out: int | None = None
    ) -> Meeting:
        labels = names[0] if names else None
        what = _outputs.RAW
        if self.kind == OWN:
            what = _outputs.LOSS
            arguments = call.names or self.model.positions[: call.n_in]
            found = [i for i, name in enumerate(arguments) if is_targets(name)]
            labels = (call.names or range(call.n_in))[found[0]] if len(found) == 1 else None
        elif self.kind == ITEMS and signatures.wants_tensor(self.loss, _TENSORS):
            what = _outputs.TENSOR
        loss = self.loss
        if self.kind == BATCH:
            if not self.is_foreign and self.layer.n_out > 1:
                raise self.refusal(
                    f"A layer's {self.layer.n_out} outputs are items of a stack, not one object.",
                    "Take them one by one, and targets after them: loss=lambda a, b, y: ...",
                )
            loss = _Flipped(loss) if self.arguments[0] == "batch" else loss
        return Meeting(
            call,
            loss,
            self.kind,
            names,
            labels,
            _outputs.Wanted(what, n_out or 1, self.signatures()),
            self.is_foreign,
            is_plain,
            self._says_call(call) if self._is_unusual(call, is_plain, n_out) else "",
            self._says_loss(names),
        )

    def _is_unusual(self, call: Call, is_plain: bool, n_out: int | None) -> bool:
        is_trax = is_plain and call.n_in == self.layer.n_in and n_out in (None, self.layer.n_out)
        return not is_trax or self.kind == OWN

    def _says_call(self, call: Call) -> str:
        if call.takes_batch:
            given = "batch"
        elif call.names:
            given = ", ".join(f"{name}=" for name in call.names)
        else:
            given = ", ".join(f"item {i}" for i in range(call.n_in))
        return f"{self.layer.name}({given})"

    def _says_loss(self, names: tuple[Any, ...]) -> str:
        if self.kind == OWN:
            return "its own loss"
        items = [name if isinstance(name, str) else f"item {name}" for name in names]
        given = ", ".join(["outputs", *items] if self.kind == ITEMS else ["outputs", "batch"])
        return f"{self.loss.name}({given})"


class _Flipped(tl.Layer):
    """A loss of (batch, outputs), as one of outputs and batch."""

    def __init__(self, loss: tl.Layer):
        super().__init__(n_in=2, name=loss.name)
        self._set_sublayers([loss])

    def forward(self, x: Any) -> Any:
        """Returns the loss."""
        outputs, batch = x
        return self.sublayers[0]((batch, outputs))


def _kind_of(loss: tl.Layer, arguments: Sequence[str]) -> str:
    if isinstance(loss, _tasks.OwnLoss):
        return OWN
    is_asked = not signatures.is_of_trax(loss) and not signatures.is_of_torch(loss)
    return BATCH if is_asked and len(arguments) == 2 and "batch" in arguments else ITEMS


def _attributes(batch: Any) -> dict[str, Any]:
    """Returns an object's attributes that are targets or weights."""
    found = {name: getattr(batch, name, None) for name in (*_TARGETS, *_WEIGHTS)}
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}


def is_targets(name: str) -> bool:
    """Tells whether an item of this name is what outputs are compared with."""
    return name in _TARGETS or name.endswith("_labels")


def _is_weights(name: str) -> bool:
    return "weight" in name or name in _WEIGHTS
