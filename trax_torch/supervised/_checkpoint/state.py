"""What of a training run is saved, and how it is put back: the Loop's parts <-> plain data.

Putting back is all or nothing: everything is compared first, then everything is set.
"""

import contextlib
import copy
import functools
import logging
import os
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _nest, optimizers
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch._memory_order import order_of
from trax_torch.supervised import _logging, _tasks
from trax_torch.supervised._checkpoint import (
    alike,
    changes,
    optimizer_state,
    schema,
    shards,
    storage,
)
from trax_torch.supervised._checkpoint.packing import check_storable, pack, unpack
from trax_torch.supervised._checkpoint.rollback import (
    Rollback,
    back_to_state,
    back_to_task,
    explained,
)
from trax_torch.supervised._checkpoint.unfilled import Unfilled

Tensors = dict[str, torch.Tensor]

_log = logging.getLogger("trax_torch")

_OF_A_LOSS = re.compile(r"loss\d+:")  # what tensors of losses begin with

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
      unfilled: tensors that had no first numbers when the run was built.
    """

    model: tl.Layer
    tasks: list[_tasks.TrainTask]
    eval_tasks: list[_tasks.EvalTask]
    trainers: list[optimizers.Trainer]
    schedulers: list[Any]
    accumulators: list[_logging.Accumulators]
    callbacks: list[Any]
    unfilled: list[Unfilled] = field(default_factory=list)
    waiting: dict[str, Any] = field(default_factory=dict)  # saved states of callbacks to come
    asked: list[dict[str, Any]] = field(init=False)  # of each training task, before it begins

    def __post_init__(self) -> None:
        of_each = zip(self.tasks, self.trainers, self.schedulers, strict=True)
        object.__setattr__(self, "asked", [changes.asked_of_task(*each) for each in of_each])

    def take(self) -> tuple[storage.Parts, dict[str, Any]]:
        """Returns what all ranks share: tensors by part and name, and the rest as plain data.

        Tensors of which each rank holds a part are among them as they are.
        """
        parts = self._tensors()
        info = {
            "tasks": [
                optimizer_state.take_task(i, *each, parts) | {"asked": self.asked[i]}
                for i, each in enumerate(zip(self.trainers, self.schedulers, strict=True))
            ],
            "tied": _tied_of(self.model),
            "evals": changes.asked_of_evals(self.eval_tasks),
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

    def check(self) -> None:
        """Raises CheckpointError, by name, if a weight, a buffer or an optimizer cannot be saved.

        No rank waits for another.
        """
        for part, tensors in self._tensors().items():
            for name, tensor in tensors.items():
                check_storable(tensor, f"{name.removeprefix(_BUFFER)} of the {part}")
        for i, trainer in enumerate(self.trainers):
            optimizer_state.check_task(i, trainer)

    @property
    def is_cut(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return any(map(_distributed.is_shard, self._tensors()["weights"].values()))

    def like(self) -> shards.Like:
        """Returns what tells of which saved tensors each rank is to have a part, and how."""
        if not self.is_cut:
            return shards.like_nothing
        named = [dict(each.model_with_loss.named_parameters()) for each in self.trainers]
        return alike.like(self._tensors(), named)

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
        step: int,
        world: _distributed.World,
        exact_data: bool = True,
        data_may_be_ahead: bool = False,
    ) -> list[str]:
        """Puts everything where `take` and `take_own` found it; all of it, or nothing.

        What is compared comes first; then the parts that others wrote, which may refuse on some
        rank, and are put back then on all; the tensors, which are known to fit, come last.

        Args:
          parts: the tensors.
          info: what `take` gave.
          ranks: what `take_own` gave on each rank.
          step: how many steps were taken by then.
          world: the ranks that train together.
          exact_data: False leaves the data where it is.
          data_may_be_ahead: True leaves data where it is that has gone further than it was when the
            run was saved, and cannot go back.

        Returns:
          Lines that tell what goes on otherwise than it was saved.

        Raises:
          MismatchError: if what was saved does not fit.
          RestoreError: if a part does not take up what was saved, or the data cannot go to its
            place. Nothing has changed then, but that an iterator that was drawn from cannot go
            back.
        """
        rank, size = world.rank, world.size
        with Rollback() as rollback:
            with world.together(CheckpointError):
                lines = self._compare(parts, info, rank, exact_data)
                evals, n_evals = changes.asked_of_evals(self.eval_tasks), len(ranks[0]["evals"])
                pairs, more = changes.compare_evals(info.get("evals"), n_evals, evals)
                streams = (
                    self._places(parts, ranks, step, rank, size, dict(pairs)) if exact_data else []
                )
                waiting = self._put_others(parts, info, rollback)
                for what, stream, place in streams:  # last, for an iterator does not go back
                    if data_may_be_ahead and stream.has_passed(place):
                        lines.append(
                            f"{what} has given {stream.n_taken} batches, and {place['n_taken']} "
                            f"when this was saved; it goes on with those that come next."
                        )
                        continue
                    before = stream.position() if stream.n_taken else {"n_taken": 0}
                    back = functools.partial(stream.seek, copy.deepcopy(before))
                    rollback.put(what, stream.seek, place, back)
            for trainer in self.trainers:
                trainer.is_whole = False
            with torch.no_grad():
                for part, tensors in self._tensors().items():
                    for name, tensor in tensors.items():
                        _distributed.fill_(tensor, parts[part][name])
            for trainer in self.trainers:
                trainer.is_whole = True
        for i, accumulators in enumerate(self.accumulators):
            if len(ranks) == size:
                accumulators.fill(ranks[rank]["tallies"][i])
            else:
                kept = [each["tallies"][i] for each in ranks]
                accumulators.fill(_logging.merged(kept, is_chief=rank == 0))
        self.waiting.clear()
        self.waiting.update(waiting)
        return lines + more

    def _compare(
        self, parts: storage.Parts, info: dict[str, Any], rank: int, exact_data: bool
    ) -> list[str]:
        """Raises CheckpointError if what was saved does not fit; tells what is otherwise."""
        if len(info["tasks"]) != len(self.tasks):
            raise MismatchError(
                f"The checkpoint was saved with {len(info['tasks'])} tasks; there are "
                f"{len(self.tasks)} now. Give Loop the same tasks, or another output_dir."
            )
        for part in ("weights", "state", *(f"opt_slots{i}" for i in range(len(self.tasks)))):
            if part not in parts:
                raise CheckpointError(f"The checkpoint lists no file of its {part}.")
        mine = self._tensors()
        _compare("weights", mine["weights"], parts["weights"])
        _compare("buffers", mine["state"], _buffers_in(parts))
        for i, pair in enumerate(zip(self.trainers, self.schedulers, strict=True)):
            with explained(f"The optimizer of task {i}"):
                optimizer_state.compare_task(i, *pair, parts, info["tasks"][i])
        saved = [task.get("asked", {}) for task in info["tasks"]]  # version 1 knew of none
        own = {} if rank == 0 else {"batch_size": None}  # saved is the chief's alone
        return changes.compare_tasks(saved, [asked | own for asked in self.asked], exact_data)

    def _put_others(
        self, parts: storage.Parts, info: dict[str, Any], rollback: Rollback
    ) -> dict[str, Any]:
        """Has schedulers, optimizers, modules and callbacks take up their states.

        Returns:
          The states of callbacks that are not there.
        """
        weights = self._tensors()["weights"]
        orders = {
            id(tensor): order_of(parts["weights"][name])
            for name, tensor in weights.items()
            if not _distributed.is_shard(tensor)
        }
        for i, (trainer, scheduler) in enumerate(zip(self.trainers, self.schedulers, strict=True)):
            back = back_to_task(trainer, scheduler)
            put_task = functools.partial(
                optimizer_state.put_task, i, trainer, scheduler, parts, orders
            )
            what = f"The optimizer of task {i}, or its scheduler,"
            rollback.put(what, put_task, info["tasks"][i], back)
        modules = _extra_of(self.model)
        for name, kept in info["extra"].items():
            if name in modules:
                what = f"The extra state of {name or 'the model'}"
                with explained(what):
                    state = unpack(kept, parts["state"])
                before = copy.deepcopy(modules[name].get_extra_state())
                put = modules[name].set_extra_state
                rollback.put(what, put, state, functools.partial(put, before))
        waiting = {}
        for name, kept in info.get("callbacks", {}).items():
            with explained(f"The callback {name}"):
                waiting[name] = unpack(kept, parts["state"])
        self._fill(waiting, rollback)
        return waiting

    def _places(
        self,
        parts: storage.Parts,
        ranks: list[dict[str, Any]],
        step: int,
        rank: int,
        size: int,
        evals_saved: dict[int, int],
    ) -> list[tuple[str, Any, Any]]:
        """Returns each stream of data, what to call it, and where it was on this rank."""
        own = ranks[rank] if len(ranks) == size else ranks[0]
        tasks = zip(self.tasks, own["tasks"], strict=True)
        found: list[Any] = [(f"task {i}", *pair) for i, pair in enumerate(tasks)]
        found += [
            (f"eval {i}", self.eval_tasks[i], own["evals"][j]) for i, j in evals_saved.items()
        ]
        streams = []
        for name, task, place in found:
            if len(ranks) != size and not task.stream.fits_any_size:
                raise MismatchError(
                    f"The checkpoint was saved by {len(ranks)} ranks; there are {size}, whose "
                    f"places in the data of {name} are not known. Share the data out with "
                    f"supervised.share_of, which keeps one place for all, or begin it anew: "
                    f"Loop(resume_data='restart')."
                )
            with explained(f"The data of {name}"):
                position = unpack(place, parts["state"])
            schema.check_place(f"the data of {name}", position, step)
            streams.append((f"The data of {name}", task.stream, position))
        if len(ranks) != size:
            _log.info("Saved by %d ranks, resumed by %d: bits will differ.", len(ranks), size)
        return streams

    def fill_callbacks(self) -> None:
        """Gives callbacks their states of the checkpoint that `put` put; some come later."""
        with Rollback() as rollback:
            self._fill(self.waiting, rollback)

    def _fill(self, waiting: dict[str, Any], rollback: Rollback) -> None:
        """Gives callbacks their states, and takes these out of `waiting`."""
        for name, callback in self._remembering():
            if name in waiting:
                what, back = f"The callback {name}", back_to_state(callback)
                rollback.put(what, callback.load_state_dict, waiting.pop(name), back)

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


def _tied_of(model: tl.Layer) -> dict[str, str]:
    """Returns further names of weights that have several, each with the one it is saved under."""
    names = {id(p): name for name, p in weights_of(model).items()}
    everywhere = bare(model).named_parameters(remove_duplicate=False)
    return {name: names[id(p)] for name, p in everywhere if name != names[id(p)]}


@contextlib.contextmanager
def described_by(directory: str, basename: str) -> Generator[None]:
    """Has a manifest that was made by hand, and whose hash fits, be damage where it does not."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{os.path.join(directory, basename)}.json is damaged: it does not say what it should "
            f"of the model ({error!r})."
        ) from error


def module_state(parts: storage.Parts, members: dict[str, Any]) -> dict[str, Any]:
    """Returns what the model's own state_dict held, from what `Members.take` gave.

    Checkpoints of format version 1 do not say which weights are tied: each has one name then.
    """
    weights = {k: v for k, v in parts["weights"].items() if not _OF_A_LOSS.match(k)}
    further = {alias: weights[name] for alias, name in members.get("tied", {}).items()}
    buffers = {k.removeprefix(_BUFFER): v for k, v in _buffers_in(parts).items()}
    own = {k: v for k, v in buffers.items() if not _OF_A_LOSS.match(k)}
    extra = {
        f"{path}.{_EXTRA}".removeprefix("."): unpack(kept, parts["state"])
        for path, kept in members["extra"].items()
    }
    return weights | further | own | extra


def _extra_of(model: tl.Layer) -> dict[str, nn.Module]:
    """Returns the modules that keep a state of their own besides tensors, by name."""
    kept = nn.Module.get_extra_state
    modules = bare(model).named_modules()
    return {name: m for name, m in modules if type(m).get_extra_state is not kept}


def forms_of(model: tl.Layer) -> list[str]:
    """Returns names, shapes and types of weights and buffers, as text."""
    tensors = weights_of(model) | buffers_of(model)
    return [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()]


def _buffers_in(parts: storage.Parts) -> Tensors:
    return {k: v for k, v in parts["state"].items() if k.startswith(_BUFFER)}


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
            value = given[name]
            is_part = _distributed.is_shard(value)  # one of a model that is cut alike
            tensor.copy_(value if is_part else _distributed.shard_like(value, tensor))


def put_trees(model: tl.Layer, weights: Any, state: Any) -> None:
    """Sets weights, state or both, as `Loop.update_weights_and_state` tells."""
    for tree, kind in ((weights, "weights"), (state, "state")):
        if isinstance(tree, Mapping):
            put_named(model, kind, tree)
        elif tree is not None:
            setattr(model, kind, tree)


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
