"""All or nothing, where parts of a run that others wrote take up their states one after another."""

import contextlib
import copy
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _distributed, _nest, optimizers
from trax_torch._errors import CheckpointError, RestoreError

Back = Callable[[], Any]


class Rollback:
    """A block in which parts take up states: left by an error, all have what they had before.

    Example:
      >>> numbers = []
      >>> with contextlib.suppress(RestoreError), Rollback() as rollback:
      ...     rollback.put("a list", numbers.append, 1, numbers.clear)
      ...     rollback.put("a number", int, "x", lambda: None)
      >>> numbers
      []
    """

    def __enter__(self) -> "Rollback":
        self._backs: list[tuple[str, Back]] = []
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if error is None:
            return
        for what, back in reversed(self._backs):
            try:
                back()
            except Exception as failure:  # one that cannot go back keeps no other from it
                error.add_note(f"{what} could not be put back, and is to be built anew: {failure}")

    def put(self, what: str, take_up: Callable[[Any], Any], state: Any, back: Back) -> None:
        """Has a part take up a state.

        Args:
          what: how messages call it.
          take_up: sets a state, such as a `load_state_dict`; it may fail half way.
          state: the state.
          back: sets what was there before.

        Raises:
          RestoreError: if it does not take it up.
        """
        self._backs.append((what, back))
        with explained(what):
            take_up(state)


@contextlib.contextmanager
def explained(what: str) -> Generator[None]:
    """Turns errors of a part, or of what is said of it, into RestoreErrors that name it."""
    try:
        yield
    except CheckpointError as error:  # which may quote what the checkpoint says
        error.args = (printable(str(error)),)
        raise
    except Exception as error:
        text = (
            f"{what} does not take up what the checkpoint holds of it, so nothing was loaded. "
            f"{type(error).__name__}: {error}"
        )
        raise RestoreError(printable(text)) from error


def printable(text: str) -> str:
    """Returns a text in which what would steer a terminal is written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def back_to_state(part: Any) -> Back:
    """Returns what puts a part with `state_dict` and `load_state_dict` back as it is now."""
    before, names = copy.deepcopy(part.state_dict()), set(getattr(part, "__dict__", ()))

    def back() -> None:
        part.load_state_dict(before)
        for name in getattr(part, "__dict__", {}).keys() - names:
            delattr(part, name)

    return back


def back_to_task(trainer: optimizers.Trainer, scheduler: Any) -> Back:
    """Returns what gives an optimizer, and its scheduler if any, the slots and numbers of now.

    Slots are held, for they may take up half of the memory; so are those of an optimizer that the
    optimizer wraps. Where loading is not torch's own, and may write into them, they are copied.
    """
    outer, numbers = trainer.optimizer, (trainer.is_whole, trainer.n_skipped)
    inner = [x for x in vars(outer).values() if isinstance(x, torch.optim.Optimizer)]
    before = [
        (
            each,
            dict(vars(each)),
            {p: copy.copy(slots) for p, slots in each.state.items()},
            [dict(group) for group in each.param_groups],
            _values_in(each.state) if not _loads_as_torch(each) else [],
        )
        for each in (outer, *inner)
    ]
    scale = None if trainer.loss_scale is None else trainer.loss_scale.state_dict()
    schedule_back = (lambda: None) if scheduler is None else back_to_state(scheduler)

    def back() -> None:
        trainer.is_whole, trainer.n_skipped = numbers
        if trainer.loss_scale is not None and scale is not None:
            trainer.loss_scale.load_state_dict(scale)
        schedule_back()
        for each, attributes, slots, groups, values in before:
            vars(each).clear()
            vars(each).update(attributes)
            each.state.clear()
            each.state.update(slots)
            for group, kept in zip(each.param_groups, groups, strict=True):
                group.clear()
                group.update(kept)
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)

    return back


def _loads_as_torch(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict


def _values_in(nest: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the tensors in a nest that have memory, with copies of them."""
    leaves = [x for x in _nest.leaves(list(nest.values())) if isinstance(x, torch.Tensor)]
    return [(x, x.detach().clone()) for x in leaves if not _distributed.is_freed(x)]
