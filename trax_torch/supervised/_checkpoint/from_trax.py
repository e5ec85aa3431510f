"""A run goes on from a checkpoint of Trax's own: weights, slots, history and step.

The tensors of a layer may lie in another layout than in Trax (`torch.nn.Linear` keeps its weight
transposed), so slots are brought into PyTorch's the way the weights are: by the layer itself.
"""

from typing import Any

import torch

from trax_torch import _distributed
from trax_torch import layers as tl
from trax_torch._errors import MismatchError
from trax_torch.interop import trax_checkpoint
from trax_torch.supervised._checkpoint import state

# For each optimizer of ours, by class: Trax's name, and our names of the slots of full size.
_RULES = {
    "SGD": ("SGD", ()),
    "BoundMomentum": ("Momentum", ("momentum_buffer",)),
    "BoundRMSProp": ("RMSProp", ("avg_sq_grad",)),
    "BoundAdam": ("Adam", ("exp_avg", "exp_avg_sq")),
    "BoundAdafactor": ("Adafactor", ()),
    "BoundSM3": ("SM3", ()),
}


def load_from_trax(members: state.Members, path: str) -> tuple[int, dict[str, Any]]:
    """Sets weights, state and slots from a Trax checkpoint; all or nothing.

    The data's place is not in Trax's files, so data goes on from where it is.

    Args:
      members: the parts of the run.
      path: the `.pkl.gz` file.

    Returns:
      `(step, history)`, the history as `History.to_dict` gives it.

    Raises:
      CheckpointError: if the file is damaged, or belongs to another model or optimizer.
    """
    checkpoint = trax_checkpoint.read(path)
    n_saved, n_tasks = len(checkpoint.slots_per_task), len(members.trainers)
    if n_saved != n_tasks:
        raise MismatchError(
            f"{path} has the slots of {n_saved} tasks; there are {n_tasks} now. Give Loop the "
            f"tasks it was trained with, or load the weights alone: model.init_from_file."
        )
    step = checkpoint.step or 0
    slots = [_slots_of(members, i, checkpoint, step) for i in range(n_tasks)]
    trax_checkpoint.load_into(members.model, checkpoint)
    for trainer, by_parameter in zip(members.trainers, slots, strict=True):
        for p, mine in by_parameter:
            _set_slots(trainer.optimizer.state[p], mine)
    return step, {"_values": checkpoint.history}


def _slots_of(
    members: state.Members, task: int, checkpoint: trax_checkpoint.TraxCheckpoint, step: int
) -> list[tuple[Any, dict[str, Any]]]:
    """Returns `(parameter, slots by our names)`, checked against the optimizer's own."""
    trainer = members.trainers[task]
    ours = type(trainer.optimizer).__name__
    if ours not in _RULES or (ours == "SGD" and trainer.optimizer.defaults["momentum"]):
        raise MismatchError(
            f"Slots that Trax saved cannot go on in {ours}. Give the task one of trax_torch's own "
            f"optimizers, or load the weights alone: model.init_from_file({checkpoint.path!r})."
        )
    name, _ = _RULES[ours]
    by_weight = trax_checkpoint.slots_by_weight(checkpoint, task, name)
    if not any(by_weight):
        return []
    own = tl.flatten_weights_and_state(members.model.weights, ())[0]
    if len(own) != len(by_weight):
        raise MismatchError(
            f"{checkpoint.path} has {len(by_weight)} weights; the model has {len(own)}. Build the "
            f"model with the arguments it had in Trax."
        )
    flat = [torch.empty(w.shape, device="meta") for w in own]
    tree = tl.unflatten_weights_and_state(flat, (), (members.model.weights, ()))[0]
    views = members.model._named("weights", tree)
    params = dict(members.model.named_parameters())
    result = []
    for (weight_name, view), weight, theirs in zip(views.items(), flat, by_weight, strict=True):
        p = params[weight_name]
        # Older positional tables have an axis of size 1 more.
        theirs = tuple(t[0] if t.shape == (1, *weight.shape) else t for t in theirs)
        mine = _translate(ours, theirs, weight, view, trainer.optimizer.state[p], step)
        result.append((p, mine))
    return result


def _translate(
    ours: str,
    theirs: tuple[torch.Tensor, ...],
    weight: torch.Tensor,
    view: torch.Tensor,
    present: dict[str, Any],
    step: int,
) -> dict[str, Any]:
    """Returns one weight's slots by our names, in PyTorch's layout."""
    if view.dim() != weight.dim():  # a bias that Trax keeps with axes of size 1
        if ours in ("BoundAdafactor", "BoundSM3"):
            raise MismatchError(
                f"{ours}'s slots of a weight of shape {tuple(weight.shape)} cannot go on. Load the "
                f"weights alone: model.init_from_file."
            )
        items, axes = [t.reshape(view.shape) for t in theirs], []
    else:
        axes = _axes_of(weight, view)
        items = [t.permute(axes) if t.shape == weight.shape else t for t in theirs]
    if ours == "BoundAdafactor":
        return _adafactor(items, axes, present, step)
    if ours == "BoundSM3":
        return _sm3(items, axes, present)
    mine: dict[str, Any] = dict(zip(_RULES[ours][1], items, strict=True))
    if ours == "BoundAdam":
        mine["step"] = torch.tensor(1.0 + step)  # its count is one ahead, as its rule is
    return mine


def _adafactor(
    items: list[torch.Tensor], axes: list[int], present: dict[str, Any], step: int
) -> dict[str, Any]:
    mine: dict[str, Any] = {"step": step}
    if "v" in present:
        mine["v"], *rest = items
    else:
        rows, columns, *rest = items
        # Trax's rows lack the last axis and its columns the last but one; so do ours, of our axes.
        last, before = len(axes) - 1, len(axes) - 2
        if axes[-2:] == [last, before]:
            rows, columns = columns, rows
        elif axes[-2:] != [before, last]:
            raise MismatchError(
                "Adafactor's slots of a convolution cannot go on: Trax factors them over other "
                "axes. Load the weights alone: model.init_from_file."
            )
        mine["v_row"], mine["v_col"] = rows, columns
    if rest:
        (mine["m"],) = rest
    return mine


def _sm3(items: list[torch.Tensor], axes: list[int], present: dict[str, Any]) -> dict[str, Any]:
    mine: dict[str, Any] = {}
    if "m" in present:
        mine["m"], *items = items
    for kind, start in (("v1", 0), ("v2", len(axes))):
        for i, axis in enumerate(axes):
            if f"{kind}_{i}" in present:
                mine[f"{kind}_{i}"] = items[start + axis]
    return mine


def _axes_of(weight: torch.Tensor, view: torch.Tensor) -> list[int]:
    """Returns which axis of Trax's weight each axis of PyTorch's is, told by the strides."""
    strides = list(weight.stride())
    axes: list[int] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        fits = [
            i
            for i, s in enumerate(strides)
            if i not in axes and weight.shape[i] == size and (s == stride or size == 1)
        ]
        if not fits:
            raise MismatchError(
                f"Slots of a weight of shape {tuple(weight.shape)} cannot go on: the layer keeps "
                f"it in another form than Trax. Load the weights alone: model.init_from_file."
            )
        axes.append(fits[0])
    return axes


@torch.no_grad()
def _set_slots(present: dict[str, Any], mine: dict[str, Any]) -> None:
    for key, value in mine.items():
        if isinstance(present.get(key), torch.Tensor):
            _distributed.fill_(present[key], value)
        else:
            present[key] = value
