"""What must be the same on all ranks: told before the first step, and looked at in each report.

This room describes things in plain data; it changes none.
"""

import functools
import json
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _dtensors, _last_words, optimizers
from trax_torch import layers as tl
from trax_torch._torch_private import foreach
from trax_torch.supervised import _checkpoint, _tasks
from trax_torch.supervised._loop.meeting import Meeting
from trax_torch.supervised._loop.settings import LoopConfig

_RATES = "the learning rates"
_NEAR = 1e-5  # of the weights' size: processors of several kinds round differently
_NO_SETTINGS = {*vars(nn.Module()), *vars(tl.Layer())}  # what all modules have, or all layers


def check_given(
    layer: tl.Layer,
    meetings: list[Meeting],
    tasks: list[_tasks.TrainTask],
    eval_tasks: list[_tasks.EvalTask],
    config: LoopConfig,
    world: _distributed.World,
) -> None:
    """Raises ValueError if ranks were given different things."""
    if world.size == 1:
        return
    both: list[Any] = [*tasks, *eval_tasks]
    world.compare(
        {
            "random_seed": config.random_seed,
            "the number of tasks": [len(tasks), len(eval_tasks)],
            "the settings": ", ".join(f"{k}={v!r}" for k, v in config.of_steps().items()),
            "the model's weights": _checkpoint.forms_of(layer),
            "which weights are frozen": _frozen(layer),
            "the model's modules": _modules_of(_checkpoint.bare(layer)),
            "what is measured": [task.metric_names for task in eval_tasks],
            "the losses": [_described(task.loss_layer) for task in tasks],
            "the metrics": [_described(m) for task in eval_tasks for m in task.metrics],
            "the kinds of data": [type(task.labeled_data).__qualname__ for task in both],
            "how batches meet the model": "; ".join(met.says for met in meetings if met.says),
            "whether output_dir is given": config.output_dir is not None,
            "which of the best are kept, and when": [
                config.checkpoint_low_metric,
                config.checkpoint_high_metric,
                config.best_at,
            ],
        }
    )


def check_schedulers(schedulers: Sequence[Any], world: _distributed.World) -> None:
    """Raises ValueError if ranks change rates by other schedulers."""
    world.compare({"the schedulers": ["none" if s is None else _described(s) for s in schedulers]})


def check_callbacks(callbacks: Sequence[Any], world: _distributed.World) -> None:
    """Raises ValueError if those callbacks differ between ranks that are saved, or their settings.

    Others may be on one rank alone: what logs, or looks.
    """
    saved = [_described(c) for c in callbacks if hasattr(c, "state_dict")]
    world.compare({"the callbacks that are saved": saved})


def check_together(
    step: int, trainers: Sequence[optimizers.Trainer], world: _distributed.World
) -> None:
    """Raises ValueError on all ranks if their weights or rates have parted, with what and where.

    Weights are compared by their sums; parts of weights, between the ranks that hold the same ones.

    Args:
      step: the last one taken.
      trainers: have weights and rates.
      world: the ranks.
    """
    if world.size == 1:
        return
    rates = [[_number(g.get("lr")) for g in each.optimizer.param_groups] for each in trainers]
    unique = {id(p): p for each in trainers for p in each.model_with_loss.parameters()}
    weights = [p.detach() for p in unique.values() if p.numel()]
    whole = [p for p in weights if not _dtensors.is_shard(p)]
    mine = {"rates": rates, "whole": _sums(whole), "parts": _sums_of_parts(weights)}
    everyones = [json.loads(text) for text in world.gather(json.dumps(mine).encode())]
    for rank in range(world.size):
        for name, first, value, own in _compared(everyones, rank):
            is_sum = name != _RATES
            if _are_near(value, own) if is_sum else value == own:
                continue
            hint = ""
            if is_sum:
                hint = (
                    " Where a loss depends on other weights at some steps, give "
                    "Loop(find_unused_parameters=True)."
                )
            raise _last_words.heard(
                ValueError(
                    f"After step {step} the ranks train no longer the same: {name} is {value} on "
                    f"rank {first}, and {own} on rank {rank}. Change rates and weights on all "
                    f"ranks alike, or not at all; go on from a checkpoint of before.{hint}"
                )
            )


def _compared(everyones: list[dict[str, Any]], rank: int) -> Generator[tuple[str, int, Any, Any]]:
    """Yields what a rank has, by name, and what the first rank has that should have the same."""
    first, mine = everyones[0], everyones[rank]
    yield _RATES, 0, first["rates"], mine["rates"]
    yield "a checksum of the weights", 0, first["whole"], mine["whole"]
    for holders, sums in mine["parts"].items():
        other = int(holders.split()[0])
        theirs = everyones[other]["parts"][holders]
        yield "a checksum of their parts of the weights", other, theirs, sums


def _sums_of_parts(weights: list[torch.Tensor]) -> dict[str, list[float]]:
    """Returns the sums of this rank's parts of weights, by which ranks hold the same ones."""
    held: dict[str, list[torch.Tensor]] = {}
    for weight in filter(_dtensors.is_shard, weights):
        holders = _dtensors.holders_of(weight)
        if len(holders) > 1:
            held.setdefault(" ".join(map(str, holders)), []).append(_dtensors.local(weight))
    return {holders: _sums(parts) for holders, parts in held.items()}


def _sums(tensors: list[torch.Tensor]) -> list[float]:
    """Returns the sum of all numbers, and their size, waiting for the device once."""
    tensors = [t for t in tensors if t.is_floating_point()]
    if not tensors:
        return [0.0, 0.0]
    sums = torch.stack([t.sum(dtype=torch.float64) for t in tensors]).sum()
    norms = torch.stack([n.double() for n in foreach.norm(tensors)])
    found: list[float] = torch.stack([sums, torch.linalg.vector_norm(norms)]).tolist()
    return found


def _are_near(one: list[float], other: list[float]) -> bool:
    limit = _NEAR * max(1e-30, one[1])
    return all(a == b or abs(a - b) <= limit for a, b in zip(one, other, strict=True))


def _number(rate: Any) -> float | None:
    return None if rate is None else float(rate)


def _frozen(layer: tl.Layer) -> list[str]:
    named = _checkpoint.bare(layer).named_parameters()
    return [name for name, p in named if not p.requires_grad]


def _modules_of(model: nn.Module) -> list[str]:
    """Returns each module's name, type, and what it says of itself."""
    return [
        f"{name or 'the model'}: {_kind(module)}({module.extra_repr()})"
        for name, module in model.named_modules()
    ]


def _described(thing: Any) -> str:
    """Returns the type of a thing, and of what is in it, with settings that are plain."""
    if isinstance(thing, nn.Module):
        return " > ".join(_with_settings(module, vars(module)) for module in thing.modules())
    return _with_settings(thing, getattr(thing, "__dict__", {}))


def _with_settings(thing: Any, attributes: Mapping[str, Any]) -> str:
    settings = {k: _plain(v) for k, v in attributes.items() if k not in _NO_SETTINGS}
    told = ", ".join(f"{k.lstrip('_')}={v}" for k, v in settings.items() if v is not None)
    return f"{_kind(thing)}({told})"


def _kind(thing: Any) -> str:
    """Returns a type's name, with a layer's own, by which layers of one type are told apart."""
    kind = type(thing).__qualname__
    return f"{kind} {thing.name}" if isinstance(thing, tl.Layer) and thing.name != kind else kind


def _plain(value: Any) -> str | None:
    """Returns what is a number, a word, a function or a list of such as text, or else None."""
    if isinstance(value, str) and os.sep in value:  # a path, which may be a rank's own
        return None
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)) and value:
        several = [_plain(x) for x in value]
        return None if None in several else f"[{', '.join(map(str, several))}]"
    if isinstance(value, functools.partial):
        settings = [f"{k}={_plain(v)}" for k, v in value.keywords.items()]
        return f"{_plain(value.func)}({', '.join(settings)})"
    return getattr(value, "__qualname__", None) if callable(value) else None
