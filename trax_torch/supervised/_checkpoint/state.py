"""What of a training run is saved, and how it is put back: the Loop's parts <-> plain data.

Putting back is all or nothing: everything is compared first, then everything is set.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _nest, optimizers
from trax_torch import layers as tl
from trax_torch._errors import MismatchError
from trax_torch.supervised import _logging, _tasks
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised._checkpoint.storage import pack, unpack

Tensors = dict[str, torch.Tensor]

_log = logging.getLogger("trax_torch")

_EXTRA = "_extra_state"  # what torch calls it in a state_dict
_BUFFER = "buffer."  # what buffers are called in the part 'state', which holds other things too


@dataclass(frozen=True)
class Members:
    """The parts of a run that remember something.

    Attributes:
      model: the model in training.
      tasks: the training tasks, and eval_tasks: the eval tasks; their data has a position.
      trainers: one for each training task, with its slots.
      schedulers: one for each training task: a torch scheduler, or None.
      accumulators: one for each training task: what happened since the last report.
      callbacks: those with `state_dict` and `load_state_dict` remember something, too.
    """

    model: tl.Layer
    tasks: list[_tasks.TrainTask]
    eval_tasks: list[_tasks.EvalTask]
    trainers: list[optimizers.Trainer]
    schedulers: list[Any]
    accumulators: list[_logging.Accumulators]
    callbacks: list[Any]
    waiting: dict[str, Any] = field(default_factory=dict)  # saved states of callbacks to come

    def take(self) -> tuple[storage.Parts, dict[str, Any]]:
        """Returns what all ranks share: tensors by part and name, and the rest as plain data."""
        parts = {
            part: {name: _distributed.whole(tensor) for name, tensor in tensors.items()}
            for part, tensors in self._tensors().items()
        }
        info = {
            "tasks": [
                _take_task(i, *each, parts)
                for i, each in enumerate(zip(self.trainers, self.schedulers, strict=True))
            ],
            "extra": {
                name: pack(module.get_extra_state(), f"extra.{name}", parts["state"])
                for name, module in _extra_of(self.model).items()
            },
            "callbacks": {
                name: pack(callback.state_dict(), f"callback.{name}", parts["state"])
                for name, callback in self._remembering()
            },
        }
        return parts, info

    def frozen(self) -> set[str]:
        """Returns the names of weights that are not trained."""
        return {n for n, t in self._tensors()["weights"].items() if not t.requires_grad}

    def take_own(self, rank: int) -> tuple[Tensors, dict[str, Any]]:
        """Returns what is this rank's own: where its data is, and its part of the statistics."""
        tensors: Tensors = {}

        def places(kind: str, tasks: Sequence[Any]) -> list[Any]:
            return [
                pack(task.stream.position(), f"rank{rank}.{kind}{i}", tensors)
                for i, task in enumerate(tasks)
            ]

        own = {
            "tasks": places("data", self.tasks),
            "evals": places("eval", self.eval_tasks),
            "tallies": [each.to_dict() for each in self.accumulators],
        }
        return tensors, own

    def put(
        self,
        parts: storage.Parts,
        info: dict[str, Any],
        ranks: list[dict[str, Any]],
        rank: int = 0,
        size: int = 1,
        exact_data: bool = True,
    ) -> None:
        """Puts everything where `take` and `take_own` found it.

        Args:
          parts: the tensors.
          info: what `take` gave.
          ranks: what `take_own` gave on each rank.
          rank: this process's number.
          size: how many ranks there are now.
          exact_data: False leaves the data where it is.

        Raises:
          MismatchError: if what was saved does not fit; nothing has changed then.
          ValueError: if the data cannot go to its place; no weight has changed then.
        """
        saved = {"tasks": info["tasks"], "evals": ranks[0]["evals"]}
        for kind, items in (("tasks", self.tasks), ("evals", self.eval_tasks)):
            if len(saved[kind]) != len(items):
                raise MismatchError(
                    f"The checkpoint was saved with {len(saved[kind])} {kind}; there are "
                    f"{len(items)} now. Give Loop the same tasks, or another output_dir."
                )
        pairs = list(zip(self.trainers, self.schedulers, info["tasks"], strict=True))
        mine = self._tensors()
        _compare("weights", mine["weights"], parts["weights"])
        _compare("buffers", mine["state"], _buffers_in(parts))
        for i, pair in enumerate(pairs):
            _compare_task(i, *pair[:2], parts, pair[2])
        if exact_data:
            self._seek(parts, ranks, rank, size)
        with torch.no_grad():
            for part, tensors in mine.items():
                for name, tensor in tensors.items():
                    tensor.copy_(_distributed.shard_like(parts[part][name], tensor))
        for i, pair in enumerate(pairs):
            _put_task(i, *pair[:2], parts, pair[2])
        for i, accumulators in enumerate(self.accumulators):
            if len(ranks) == size:
                accumulators.fill(ranks[rank]["tallies"][i])
            else:
                kept = [each["tallies"][i] for each in ranks]
                accumulators.fill(_logging.merged(kept, is_chief=rank == 0))
        modules = _extra_of(self.model)
        for name, kept in info["extra"].items():
            if name in modules:
                modules[name].set_extra_state(unpack(kept, parts["state"]))
        self.waiting.clear()
        for name, kept in info.get("callbacks", {}).items():
            self.waiting[name] = unpack(kept, parts["state"])
        self.fill_callbacks()

    def _seek(
        self, parts: storage.Parts, ranks: list[dict[str, Any]], rank: int, size: int
    ) -> None:
        """Has each stream go where it was on this rank."""
        streams: dict[str, list[Any]] = {
            "tasks": [task.stream for task in self.tasks],
            "evals": [task.stream for task in self.eval_tasks],
        }
        if len(ranks) != size:
            for kind in streams:
                for i, stream in enumerate(streams[kind]):
                    if not stream.fits_any_size:
                        raise MismatchError(
                            f"The checkpoint was saved by {len(ranks)} ranks; there are {size}, "
                            f"whose places in the data of {kind} {i} are not known. Share the data "
                            f"out with supervised.share_of, which keeps one place for all, or "
                            f"begin it anew: Loop(resume_data='restart')."
                        )
            _log.info("Saved by %d ranks, resumed by %d: bits will differ.", len(ranks), size)
        own = ranks[rank] if len(ranks) == size else ranks[0]
        for kind in streams:
            for stream, place in zip(streams[kind], own[kind], strict=True):
                stream.seek(unpack(place, parts["state"]))

    def fill_callbacks(self) -> None:
        """Gives callbacks their states of the checkpoint that `put` put; some come later."""
        for name, callback in self._remembering():
            if name in self.waiting:
                callback.load_state_dict(self.waiting.pop(name))

    def _remembering(self) -> list[tuple[str, Any]]:
        """Returns the callbacks with a state, by the names of their classes and a number."""
        counts: dict[str, int] = {}
        found = []
        for callback in self.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                kind = type(callback).__name__
                counts[kind] = counts.get(kind, -1) + 1
                found.append((f"{kind}{counts[kind]}", callback))
        return found

    def _tensors(self) -> storage.Parts:
        """Returns the weights and buffers of the model, and of losses, which may be trained too."""
        weights, buffers = weights_of(self.model), buffers_of(self.model)
        for i, task in enumerate(self.tasks):
            weights |= {f"loss{i}:{k}": v for k, v in weights_of(task.loss_layer).items()}
            buffers |= {f"loss{i}:{k}": v for k, v in buffers_of(task.loss_layer).items()}
        return {"weights": weights, "state": {_BUFFER + k: v for k, v in buffers.items()}}


def bare(model: tl.Layer) -> nn.Module:
    """Returns the module that `as_layer` wrapped, or the layer itself."""
    return model.module if isinstance(model, tl.Wrapped) else model


def weights_of(model: tl.Layer) -> Tensors:
    """Returns the trained tensors by the names that the user's module gives them."""
    return dict(bare(model).named_parameters())


def buffers_of(model: tl.Layer) -> Tensors:
    """Returns the persistent buffers by name."""
    everything = bare(model).state_dict(keep_vars=True)
    return {
        k: v
        for k, v in everything.items()
        if not isinstance(v, nn.Parameter) and k.rpartition(".")[2] != _EXTRA
    }


def _extra_of(model: tl.Layer) -> dict[str, nn.Module]:
    """Returns the modules that keep a state of their own besides tensors, by name."""
    kept = nn.Module.get_extra_state
    modules = bare(model).named_modules()
    return {name: m for name, m in modules if type(m).get_extra_state is not kept}


def forms_of(model: tl.Layer) -> list[str]:
    """Returns names, shapes and types of weights and buffers, as text."""
    tensors = weights_of(model) | buffers_of(model)
    return [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()]


def settings_of(trainers: Sequence[optimizers.Trainer]) -> list[str]:
    """Returns the numbers that optimizers are set to, as text."""
    return [
        f"task {i}: {type(trainer.optimizer).__name__} {name}={value!r}"
        for i, trainer in enumerate(trainers)
        for group in trainer.optimizer.param_groups
        for name, value in group.items()
        if isinstance(value, (int, float, tuple))
    ]


def _buffers_in(parts: storage.Parts) -> Tensors:
    return {k: v for k, v in parts["state"].items() if k.startswith(_BUFFER)}


def _take_task(
    index: int,
    trainer: optimizers.Trainer,
    scheduler: Any,
    parts: storage.Parts,
) -> dict[str, Any]:
    """Puts a task's slots into `parts`, and returns the rest of what it remembers."""
    optimizer, slots = trainer.optimizer, {}
    numbers: dict[str, Any] = {}
    for name, p in _named_of(trainer):
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor):
                slots[f"{name}.{key}"] = _distributed.whole(value)
            else:
                numbers[f"{name}.{key}"] = pack(value, "slot", parts["state"])
    parts[f"opt_slots{index}"] = slots
    kept, groups = None, trainer.groups()
    if scheduler is not None:
        kept = pack(scheduler.state_dict(), f"scheduler{index}", parts["state"])
    changed = scheduler is not None or trainer.has_changed_groups
    kept_groups = pack(groups, f"groups{index}", parts["state"]) if changed else None
    return {
        "optimizer": type(optimizer).__name__,
        "numbers": numbers,
        "settings": _settings_of(optimizer),
        "n_skipped": trainer.n_skipped,
        "scheduler": kept,
        "groups": kept_groups,
    }


def _compare_task(
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
    for name in saved:
        if name not in named:
            raise MismatchError(f"Task {index} has slots of a weight that is not there: {name}.")
    hint = "Give it the settings it was saved with, or start in a new output_dir."
    for name, p in named.items():
        present = _forms(trainer.optimizer.state.get(p, {}))  # empty until the first step, or ever
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


def _put_task(
    index: int,
    trainer: optimizers.Trainer,
    scheduler: Any,
    parts: storage.Parts,
    info: dict[str, Any],
) -> None:
    """Sets a task's slots and scheduler; `_compare_task` comes first."""
    optimizer = trainer.optimizer
    trainer.is_whole, trainer.n_skipped = True, info.get("n_skipped", 0)
    content = optimizer.state_dict()
    names = {id(p): name for name, p in _named_of(trainer)}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    order = {names[id(p)]: i for i, p in enumerate(params)}
    saved = _slots_by_weight(index, parts, info)
    for name in saved.keys() - order.keys():
        _log.info("Task %d: the slots of %s are dropped: it is not trained now.", index, name)
    content["state"] = {
        order[name]: _shards(slots, params[order[name]], optimizer)
        for name, slots in saved.items()
        if name in order
    }
    if scheduler is not None:
        scheduler.load_state_dict(unpack(info["scheduler"], parts["state"]))
    if info["groups"] is not None:  # else the numbers are those the optimizer was made with
        groups = unpack(info["groups"], parts["state"])
        for group, kept_group in zip(content["param_groups"], groups, strict=True):
            group.update(kept_group)
    optimizer.load_state_dict(content)


def _shards(
    slots: dict[str, Any], p: torch.Tensor, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Returns a weight's slots in parts, as the weight, or the slot that is there, is."""
    if not _distributed.is_shard(p):
        return slots
    present = optimizer.state.get(p, {})

    def in_parts(name: str, slot: Any) -> Any:
        if not isinstance(slot, torch.Tensor):
            return slot
        return _distributed.shard_like(
            slot, present.get(name, p if slot.shape == p.shape else slot)
        )

    return {name: in_parts(name, slot) for name, slot in slots.items()}


def share_weights(model: tl.Layer, eval_model: tl.Layer) -> None:
    """Lets `eval_model` use the very tensors of `model`.

    Raises:
      ValueError: if the two have not the same weights by name and shape.
    """
    own = {id(p) for p in model.parameters()}
    if all(id(p) in own for p in eval_model.parameters()) and eval_model.is_initialized:
        return
    source, target = bare(model), bare(eval_model)
    for kind, tensors in (("weights", weights_of(model)), ("buffers", buffers_of(model))):
        theirs = weights_of(eval_model) if kind == "weights" else buffers_of(eval_model)
        try:
            _compare(kind, theirs, tensors)
        except MismatchError as error:
            raise ValueError(f"eval_model must be built like model. {error}") from error
    _share(source, target, "_parameters")
    share_buffers(model, eval_model)


def share_buffers(model: tl.Layer, eval_model: tl.Layer) -> None:
    """Lets `eval_model` use the very buffers of `model`, also those that it has renewed."""
    _share(bare(model), bare(eval_model), "_buffers")


def _share(source: nn.Module, target: nn.Module, store: str) -> None:
    twins = dict(source.named_modules(remove_duplicate=False))
    for name, module in target.named_modules(remove_duplicate=False):
        mine, shared = getattr(module, store), getattr(twins.get(name), store, {})
        mine.update({k: v for k, v in shared.items() if k in mine})


def put_named(model: tl.Layer, kind: str, mapping: Any) -> None:
    """Sets weights or buffers from a mapping of all their names; all or nothing."""
    mine = weights_of(model) if kind == "weights" else buffers_of(model)
    given = {name: _nest.to_tensor(value) for name, value in mapping.items()}
    _compare(kind, mine, given)
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(given[name])


def _slots_by_weight(
    index: int, parts: storage.Parts, info: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns a task's saved slots, tensors and numbers, by weight and slot."""
    saved: dict[str, dict[str, Any]] = {}
    numbers = {k: unpack(v, parts["state"]) for k, v in info["numbers"].items()}
    for key, slot in {**parts[f"opt_slots{index}"], **numbers}.items():
        name, _, what = key.rpartition(".")
        saved.setdefault(name, {})[what] = slot
    return saved


def _forms(slots: dict[str, Any]) -> dict[str, Any]:
    """What slots are, without their values: shapes of tensors, or that they are numbers."""
    return {
        k: list(v.shape) if isinstance(v, torch.Tensor) else "number"
        for k, v in sorted(slots.items())
    }


def _settings_of(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """The settings of torch's optimizers that decide which slots there are."""
    words = ("amsgrad", "momentum", "centered")
    return {k: bool(optimizer.defaults[k]) for k in words if k in optimizer.defaults}


def _named_of(trainer: optimizers.Trainer) -> list[tuple[str, nn.Parameter]]:
    """The parameters of model and loss, by name."""
    return list(trainer.model_with_loss.named_parameters())


def _compare(kind: str, mine: Tensors, saved: Tensors) -> None:
    differences = [f"{name} is missing" for name in mine if name not in saved]
    differences += [f"{name} is not in the model" for name in saved if name not in mine]
    differences += [
        f"{name} is {tuple(saved[name].shape)} of {saved[name].dtype}, and {tuple(t.shape)} of "
        f"{t.dtype} in the model"
        for name, t in mine.items()
        if name in saved and (saved[name].shape != t.shape or saved[name].dtype != t.dtype)
    ]
    if differences:
        raise MismatchError(
            f"The {kind} are another model's: {'; '.join(differences[:3])} ({len(differences)} "
            f"differences in all). Build the model like the one they came from."
        )
