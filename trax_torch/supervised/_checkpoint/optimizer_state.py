"""What of an optimizer is saved, and how it is put back: slots by the names of their weights."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _distributed, _nest, optimizers
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch._memory_order import in_order, order_of
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised._checkpoint.packing import pack, pieces_of, unpack

_log = logging.getLogger("trax_torch")

_STATE, _GROUPS = "state", "param_groups"  # what torch calls them in a state_dict


def settings_of(trainers: Sequence[optimizers.Trainer]) -> list[str]:
    """Returns the numbers that optimizers are set to, as text."""
    return [
        f"task {i}: {type(trainer.optimizer).__name__} {name}={value!r}"
        for i, trainer in enumerate(trainers)
        for group in trainer.optimizer.param_groups
        for name, value in group.items()
        if isinstance(value, (int, float, tuple))
    ]


def take_task(
    index: int,
    trainer: optimizers.Trainer,
    scheduler: Any,
    parts: storage.Parts,
) -> dict[str, Any]:
    """Puts a task's slots into `parts`, and returns the rest of what it remembers.

    What is taken is all of the optimizer's own `state_dict()`. Slots go by the names of their
    weights; what else it holds, as it is.

    Args:
      index: the task's number.
      trainer: has the optimizer.
      scheduler: its torch scheduler, or None.
      parts: the tensors of the checkpoint.

    Raises:
      CheckpointError: if something cannot be saved, with its place.
    """
    content = trainer.optimizer.state_dict()
    slots, rest = _apart(content, _by_number(trainer, content))
    place = parts.setdefault(f"opt_slots{index}", {})
    groups = trainer.groups()
    if trainer.rate_is_given:  # which is the schedule's to say
        for group, first in zip(groups, trainer.first_groups, strict=False):
            group["lr"] = first["lr"]

    def kept(nest: Any, name: str) -> Any:
        return pack(nest, name, place)

    return {
        "optimizer": type(trainer.optimizer).__name__,
        "params": [name for name, _ in _held_by(trainer)],
        "slots": [[name, kept(nest, name)] for name, nest in slots.items()],
        "rest": kept(rest, "optimizer"),
        "groups": kept(groups, "groups"),
        "first_groups": kept(trainer.first_groups, "first_groups"),
        "settings": _settings_of(trainer.optimizer),
        "n_skipped": trainer.n_skipped,
        "loss_scale": None if trainer.loss_scale is None else trainer.loss_scale.state_dict(),
        "scheduler": None if scheduler is None else kept(scheduler.state_dict(), "scheduler"),
    }


def check_task(index: int, trainer: optimizers.Trainer) -> None:
    """Raises CheckpointError, by name, if what an optimizer keeps could not be saved."""
    try:
        take_task(index, trainer, None, {})
    except Exception as error:  # of its own state_dict, too
        raise CheckpointError(
            f"What the optimizer of task {index} keeps, a {type(trainer.optimizer).__name__}, "
            f"cannot be saved. {error} Give the task another one, or leave output_dir out."
        ) from error


def compare_task(
    index: int, trainer: optimizers.Trainer, scheduler: Any, parts: Any, info: dict[str, Any]
) -> None:
    """Raises MismatchError if a task's slots do not fit its optimizer."""
    mine = type(trainer.optimizer).__name__
    if info["optimizer"] != mine:
        raise MismatchError(
            f"Task {index} was saved with the optimizer {info['optimizer']} and now has {mine}. "
            f"Give it the same one, or start in a new output_dir."
        )
    if (info["scheduler"] is None) != (scheduler is None):
        before, now = ("a", "no") if scheduler is None else ("no", "a")
        raise MismatchError(
            f"Task {index} was saved with {before} torch scheduler and has {now} one now. Give it "
            f"the same lr_schedule, or start in a new output_dir."
        )
    named, saved = dict(_named_of(trainer)), _slots_by_weight(index, parts, info)
    content = trainer.optimizer.state_dict()
    slots, _ = _apart(content, _by_number(trainer, content))
    for name in saved:
        if name not in named:
            raise MismatchError(f"Task {index} has slots of a weight that is not there: {name}.")
    hint = "Give it the settings it was saved with, or start in a new output_dir."
    for name in named:
        present = _forms(slots.get(name, {}))  # empty until the first step, or ever
        theirs = _forms(saved.get(name, {}))
        if present and theirs and present != theirs:  # torch makes slots at the first step
            raise MismatchError(
                f"Task {index} was saved with the slots {theirs} of {name}; its optimizer keeps "
                f"{present}. {hint}"
            )
    mine_now = _settings_of(trainer.optimizer)
    if info["settings"] != mine_now:
        raise MismatchError(
            f"Task {index} was saved with the optimizer's settings {info['settings']} and has "
            f"{mine_now}, which keep other slots. {hint}"
        )


def put_task(
    index: int,
    trainer: optimizers.Trainer,
    scheduler: Any,
    parts: storage.Parts,
    orders: dict[int, list[int]],
    info: dict[str, Any],
) -> None:
    """Sets a task's slots and scheduler; `compare_task` comes first.

    Slots lie in memory as they did, or as their weights do now where these lie otherwise than when
    they were saved: fused kernels walk both in the order of memory.

    Args:
      index, trainer, scheduler, parts: as for `take_task`.
      orders: how weights, by id, lay in memory when they were saved.
      info: what that returned.

    Raises:
      MismatchError: if the optimizer does not take back what it gave.
    """
    optimizer, place = trainer.optimizer, parts[f"opt_slots{index}"]
    trainer.is_whole, trainer.n_skipped = True, info.get("n_skipped", 0)
    if trainer.loss_scale is not None and info.get("loss_scale"):
        trainer.loss_scale.load_state_dict(info["loss_scale"])
    if scheduler is not None:
        tensors = parts["state"] if _is_of_version_1(info) else place
        scheduler.load_state_dict(unpack(info["scheduler"], tensors))
    content = optimizer.state_dict()
    numbers = {name: number for number, name in _by_number(trainer, content).items()}
    params, saved = dict(_held_by(trainer)), _slots_by_weight(index, parts, info)
    for name in saved.keys() - params.keys():
        _log.info("Task %d: the slots of %s are dropped: it is not trained now.", index, name)
    given = {} if _is_of_version_1(info) else unpack(info["rest"], place)
    if _STATE in content:
        others = given.get(_STATE, {})
        given[_STATE] = others | {
            numbers[name]: _like_weight(slots, params[name], orders)
            for name, slots in saved.items()
            if name in params
        }
    given = _in_parts(given, content, params, {n: name for name, n in numbers.items()})
    groups = _groups_to_be(trainer, parts, index, info)
    if _GROUPS in content:
        pairs = zip(content[_GROUPS], groups, strict=True)
        given[_GROUPS] = [{**now, **to_be} for now, to_be in pairs]
    optimizer.load_state_dict(given)
    for group, to_be in zip(optimizer.param_groups, groups, strict=True):
        group.update(to_be)
    present = optimizer.state_dict()
    _mend(given, present)
    lost = _first_lost({k: v for k, v in given.items() if k != _GROUPS}, optimizer.state_dict())
    if lost:
        raise MismatchError(
            f"Task {index}: {type(optimizer).__name__} was given what its state_dict() had held, "
            f"and its load_state_dict() did not take {lost} back, so the run would go on as "
            f"another. Start in a new output_dir, or take another optimizer."
        )


def free_parts(trainer: optimizers.Trainer) -> None:
    """Frees the memory of slots of which ranks have parts, before others take their places.

    An optimizer that loads its slots in a way of its own keeps them: it may write into them.
    """
    own = type(trainer.optimizer).load_state_dict
    if not own.__module__.startswith(("torch.", "trax_torch.")):
        return
    for slots in trainer.optimizer.state.values():
        for slot in slots.values() if isinstance(slots, dict) else ():
            if isinstance(slot, torch.Tensor) and _distributed.is_shard(slot):
                _distributed.local(slot).untyped_storage().resize_(0)


def _held_by(trainer: optimizers.Trainer) -> list[tuple[str, torch.Tensor]]:
    """Returns the parameters that an optimizer holds, by name, in its order."""
    names = {id(p): name for name, p in _named_of(trainer)}
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    return [(names[id(p)], p) for p in held]


def _by_number(trainer: optimizers.Trainer, content: dict[str, Any]) -> dict[int, str]:
    """Returns the names of weights by the numbers that a state_dict gives them."""
    numbers = [number for group in content.get(_GROUPS, ()) for number in group["params"]]
    held = _held_by(trainer)
    if len(numbers) != len(held):  # of a wrapper, which has another way
        return {}
    return {number: name for number, (name, _) in zip(numbers, held, strict=True)}


def _apart(content: dict[str, Any], names: dict[int, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the slots in a state_dict, by weight, and all the rest but the groups."""
    rest = {key: value for key, value in content.items() if key not in (_STATE, _GROUPS)}
    slots = {}
    if _STATE in content:
        slots = {names[k]: v for k, v in content[_STATE].items() if k in names}
        rest[_STATE] = {k: v for k, v in content[_STATE].items() if k not in names}
    return slots, rest


def _groups_to_be(
    trainer: optimizers.Trainer, parts: storage.Parts, index: int, info: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns the numbers of groups: those of now, but for what the run had changed of them.

    So a number that was changed in the program counts, and one that a callback or scheduler
    changed is what it had become.
    """
    first: list[dict[str, Any]] = _nest.map_leaves(_own, trainer.first_groups)
    if _is_of_version_1(info):
        kept = info["groups"] and unpack(info["groups"], parts["state"])
        return [now | then for now, then in zip(first, kept or [{}] * len(first), strict=True)]
    place = parts[f"opt_slots{index}"]
    saved = [unpack(info[key], place) for key in ("first_groups", "groups")]
    for now, before, then in zip(first, *saved, strict=True):
        for key, value in then.items():
            if key not in before or not _is_equal(value, before[key]):
                old = now.get(key)
                on_device = isinstance(value, torch.Tensor) and isinstance(old, torch.Tensor)
                now[key] = value.to(old.device) if on_device else value
    return first


def _own(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


def _like_weight(slots: Any, p: torch.Tensor, orders: dict[int, list[int]]) -> Any:
    """Returns slots that lie in memory as they should beside a weight."""
    order = order_of(p)
    if _distributed.is_shard(p) or orders.get(id(p)) == order:
        return slots

    def laid(slot: Any) -> Any:
        fits = type(slot) is torch.Tensor and slot.shape == p.shape
        return in_order(slot, order) if fits else slot

    return _nest.map_leaves(laid, slots)


def _in_parts(given: Any, present: Any, p: Any = None, names: Any = None) -> Any:
    """Returns a nest in which tensors are cut into parts as those at the same places are.

    Args:
      given: the nest, of whole tensors.
      present: another, where slots may not have been made yet.
      p: the weight that slots are of, or weights by name.
      names: of weights, by number, where p is that.
    """
    if isinstance(given, dict):
        below = present if isinstance(present, dict) else {}
        return {
            key: _in_parts(
                value,
                below.get(key),
                p.get(names.get(key)) if isinstance(p, dict) and names and key in names else p,
                names,
            )
            for key, value in given.items()
        }
    if not isinstance(given, torch.Tensor):
        return given
    if present is None and isinstance(p, torch.Tensor) and p.shape == given.shape:
        present = p
    return _distributed.shard_like(given, present)


def _mend(given: Any, present: Any) -> None:
    """Has leaves as they were given, where loading made another type or order in memory of them.

    torch's own `load_state_dict` gives slots the type of their weights.
    """
    for key, value in _items(given):
        if not isinstance(present, (dict, list)) or key not in dict(_items(present)):
            continue
        mine = present[key]
        if isinstance(value, (dict, list)):
            _mend(value, mine)
        elif not isinstance(value, torch.Tensor):
            if type(mine) is not torch.Tensor and not _is_equal(value, mine):
                present[key] = value
        elif _is_laid_otherwise(value, mine):
            present[key] = in_order(value.to(mine.device, copy=True), order_of(value))


def _is_laid_otherwise(given: torch.Tensor, present: Any) -> bool:
    """Tells whether two plain tensors of one shape are of other types or orders in memory."""
    if not type(given) is type(present) is torch.Tensor or given.shape != present.shape:
        return False
    return given.dtype != present.dtype or order_of(given) != order_of(present)


def _first_lost(given: Any, present: Any, place: str = "") -> str:
    """Returns the place of the first leaf that is not as it was given; '' if there is none."""
    if isinstance(given, (dict, list, tuple)) and type(given) is type(present):
        theirs = dict(_items(present))
        for key, value in _items(given):
            name = f"{place}.{key}".removeprefix(".")
            lost = name if key not in theirs else _first_lost(value, theirs[key], name)
            if lost:
                return lost
        return ""
    return "" if _is_equal(given, present) else place


def _items(nest: Any) -> Iterable[tuple[Any, Any]]:
    return nest.items() if isinstance(nest, dict) else enumerate(nest)


def _is_equal(a: Any, b: Any) -> bool:
    """Tells whether two leaves, or nests, are the same; tensors to the last bit."""
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        if isinstance(a, (dict, list, tuple)) and type(a) is type(b) and len(a) == len(b):
            return not _first_lost(a, b, "here")
        if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
            return False
        return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b or a is b)
    mine, theirs = pieces_of(_distributed.local(a)), pieces_of(_distributed.local(b))
    return mine.keys() == theirs.keys() and all(
        x.dtype == theirs[name].dtype
        and x.shape == theirs[name].shape
        # on b's device, and as bytes, so that what is no number is equal to itself
        and torch.equal(_bytes(x.to(theirs[name].device)), _bytes(theirs[name]))
        for name, x in mine.items()
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _is_of_version_1(info: dict[str, Any]) -> bool:
    return "slots" not in info


def _slots_by_weight(
    index: int, parts: storage.Parts, info: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns a task's saved slots by weight."""
    if not _is_of_version_1(info):
        return {name: unpack(nest, parts[f"opt_slots{index}"]) for name, nest in info["slots"]}
    saved: dict[str, dict[str, Any]] = {}
    numbers = {k: unpack(v, parts["state"]) for k, v in info["numbers"].items()}
    for key, slot in {**parts[f"opt_slots{index}"], **numbers}.items():
        name, _, what = key.rpartition(".")
        saved.setdefault(name, {})[what] = slot
    return saved


def _forms(slots: dict[Any, Any]) -> dict[Any, Any]:
    """What slots are, without their values: shapes of tensors, or that they are numbers."""
    return {
        k: list(v.shape) if isinstance(v, torch.Tensor) else "number"
        for k, v in sorted(slots.items(), key=lambda item: repr(item[0]))
    }


def _settings_of(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """The settings of torch's optimizers that decide which slots there are."""
    words = ("amsgrad", "momentum", "centered")
    return {k: bool(optimizer.defaults[k]) for k in words if k in optimizer.defaults}


def _named_of(trainer: optimizers.Trainer) -> list[tuple[str, nn.Parameter]]:
    """The parameters of model and loss, by name."""
    return list(trainer.model_with_loss.named_parameters())
