"""What `info` of a manifest holds, version by version, checked before anybody uses it.

A hash tells that a file is as it was written, not who wrote it. A key is one line here: `needed`
where a version always has it, `maybe` where it came later. What is not listed is passed over.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trax_torch._errors import CheckpointError

# Of a place in data: what `BatchStream.position` tells.
_OF_A_PLACE = {"n_taken", "epoch", "n_in_pass", "way", "numbers", "generators", "at_pass"} | {
    *("last", "state", "next", "pass", "sample")
}
_MOST = 2**40  # steps or batches; more would take decades


class _Wrong(Exception):
    """A value is not what is needed; args: where, the value, what is needed."""


@dataclass(frozen=True)
class Leaf:
    """A value without parts: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def check(self, value: Any, where: str) -> None:
        """Raises `_Wrong` if a value does not fit."""
        if not self.fits(value):
            raise _Wrong(where, value, self.words)


@dataclass(frozen=True)
class Each:
    """A list, and what each of its items is."""

    item: Any

    def check(self, value: Any, where: str) -> None:
        """Raises `_Wrong` if a value does not fit."""
        if not isinstance(value, list):
            raise _Wrong(where, value, "a list")
        for i, item in enumerate(value):
            self.item.check(item, f"{where}[{i}]")


@dataclass(frozen=True)
class Named:
    """A mapping from any names, and what each of its values is."""

    item: Any

    def check(self, value: Any, where: str) -> None:
        """Raises `_Wrong` if a value does not fit."""
        if not isinstance(value, dict):
            raise _Wrong(where, value, "a mapping")
        for name, item in value.items():
            self.item.check(item, f"{where}.{name}")


@dataclass(frozen=True)
class Fields:
    """A mapping whose names are known: those it must have, and those it may have."""

    needed: dict[str, Any]
    maybe: dict[str, Any] = field(default_factory=dict)

    def check(self, value: Any, where: str) -> None:
        """Raises `_Wrong` if a value does not fit."""
        if not isinstance(value, dict):
            raise _Wrong(where, value, "a mapping")
        for name in self.needed.keys() - value.keys():
            raise _Wrong(where, value, f"a mapping with {name!r}")
        for name, item in (self.needed | self.maybe).items():
            if name in value:
                item.check(value[name], f"{where}.{name}")


@dataclass(frozen=True)
class OrNone:
    """Something, or None."""

    item: Any

    def check(self, value: Any, where: str) -> None:
        """Raises `_Wrong` if a value does not fit."""
        if value is not None:
            self.item.check(value, where)


def _is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    return isinstance(x, float) or (_is_whole(x) and abs(x) < 2**64)


def _is_point(x: Any) -> bool:
    scalar = (str, bool, float, int, type(None))
    return isinstance(x, list) and len(x) == 2 and COUNT.fits(x[0]) and isinstance(x[1], scalar)


COUNT = Leaf("a whole number from 0 to 2**40", lambda x: _is_whole(x) and 0 <= x <= _MOST)
SEED = Leaf("a whole number of 64 bits", lambda x: _is_whole(x) and -(2**63) <= x < 2**64)
NUMBER = Leaf("a number", _is_number)
TEXT = Leaf("a text to be printed", lambda x: isinstance(x, str) and x.isprintable())
FLAG = Leaf("true or false", lambda x: isinstance(x, bool))
PLAIN = Leaf("a number, a text, true, false or null", lambda x: not isinstance(x, (list, dict)))
PACKED = Leaf("a packed state", lambda x: True)  # `unpacked` finds what is none
SLOTS = Leaf(
    "a pair of a weight's name and its slots",
    lambda x: isinstance(x, list) and len(x) == 2 and isinstance(x[0], str),
)
POINT = Leaf("a pair of a step and a value", _is_point)

TALLY = Fields(
    {
        "n_steps": COUNT,
        "learning_rate": OrNone(NUMBER),
        "sums": Named(NUMBER),
        "counts": Named(COUNT),
        "seconds": NUMBER,
    },
    {"seconds_waited": NUMBER},
)
RANK = Fields({"tasks": Each(PACKED), "evals": Each(PACKED), "tallies": Each(TALLY)})
TASK_1 = Fields(
    {
        "optimizer": TEXT,
        "numbers": Named(PACKED),
        "settings": Named(FLAG),
        "scheduler": OrNone(PACKED),
        "groups": OrNone(Each(PACKED)),
    },
    {"n_skipped": COUNT},
)
MEMBERS_1 = Fields(
    {"tasks": Each(TASK_1), "extra": Named(PACKED)},
    {"callbacks": Named(PACKED), "tied": Named(TEXT)},
)
INFO_1 = Fields(
    {
        "step": COUNT,
        "reported_step": COUNT,
        "seed": SEED,
        "n_rngs": COUNT,
        "history": Fields({"_values": Named(Named(Each(POINT)))}),
        "world_size": COUNT,
        "members": MEMBERS_1,
        "ranks": Each(RANK),
    },
    {"settings": Named(PLAIN)},
)
# Version 2 keeps the history in a file of its own, and of optimizers what they say of themselves.
TASK_2 = Fields(
    {
        "optimizer": TEXT,
        "params": Each(TEXT),
        "slots": Each(SLOTS),
        "rest": PACKED,
        "groups": Each(PACKED),
        "first_groups": Each(PACKED),
        "settings": Named(FLAG),
        "n_skipped": COUNT,
        "scheduler": OrNone(PACKED),
    },
    {
        "loss_scale": OrNone(Named(NUMBER)),
        "asked": Named(PACKED),
    },  # what the task was asked for, to be compared with what it is now
)
MEMBERS_2 = Fields(
    {"tasks": Each(TASK_2), "extra": Named(PACKED), "callbacks": Named(PACKED)},
    {"tied": Named(TEXT), "evals": Each(Each(TEXT))},
)
INFO_2 = Fields(
    {k: v for k, v in INFO_1.needed.items() if k != "history"}
    | {"members": MEMBERS_2, "settings": Named(PLAIN)},
    {"history": INFO_1.needed["history"]},
)
VERSIONS = {1: INFO_1, 2: INFO_2, 3: INFO_2}  # 3 has tensors in pieces


def check(path: str, version: int, info: Any) -> None:
    """Refuses `info` that is not what a manifest of its format version holds.

    Args:
      path: the manifest's.
      version: of its format.
      info: what it holds.

    Raises:
      CheckpointError: with the place, what is there, and what was needed.
    """
    try:
        VERSIONS[version].check(info, "info")
        _check_agree(info)
    except _Wrong as wrong:
        where, value, words = wrong.args
        raise CheckpointError(
            f"{path} is not as this library writes it: {where[:200]!r} is "
            f"{reprlib.repr(value)[:200]}, and {words} was needed. Load another checkpoint of that "
            f"folder."
        ) from None


def _check_agree(info: dict[str, Any]) -> None:
    """Raises `_Wrong` if what is said twice, or counted and listed, differs."""
    ranks, n_tasks = info["ranks"], len(info["members"]["tasks"])
    if not ranks or len(ranks) != info["world_size"]:
        raise _Wrong("info.ranks", len(ranks), f"{info['world_size']} ranks, and at least 1,")
    n_evals = len(info["members"].get("evals", ranks[0]["evals"]))
    if info["reported_step"] > info["step"]:
        raise _Wrong("info.reported_step", info["reported_step"], "none after info.step")
    for i, rank in enumerate(ranks):
        for name, n in (("tasks", n_tasks), ("tallies", n_tasks), ("evals", n_evals)):
            if len(rank[name]) != n:
                raise _Wrong(f"info.ranks[{i}].{name}", len(rank[name]), f"{n} of them")
        for j, tally in enumerate(rank["tallies"]):
            if tally["sums"].keys() != tally["counts"].keys():
                raise _Wrong(f"info.ranks[{i}].tallies[{j}].counts", tally["counts"], "one a sum")


def check_place(where: str, place: Any, step: int) -> None:
    """Refuses a place in the data that no run of so many steps has come to.

    Args:
      where: what it is the place of.
      place: the unpacked position: how many batches were taken, and the data's own state if any.
      step: how many steps the run has taken.

    Raises:
      CheckpointError: if it is none, or so far on that to draw as many batches would not end.
    """
    most = min(_MOST, 10**6 * (step + 1))  # evals may take many batches a step
    n_taken = place.get("n_taken") if isinstance(place, dict) else None
    if not isinstance(place, dict) or not _is_whole(n_taken) or not 0 <= place["n_taken"] <= most:
        raise CheckpointError(
            f"The checkpoint's place in {where} is {reprlib.repr(place)[:200]}; after {step} "
            f"steps, 'n_taken' from 0 to {most} batches was needed. Nothing was drawn. Load "
            f"another checkpoint, or begin the data anew: Loop(resume_data='restart')."
        )
    inner = place.get("state")  # of data shared out, whose place is one like this
    if isinstance(inner, dict) and "n_taken" in inner and inner.keys() <= _OF_A_PLACE:
        check_place(where, inner, step)
