"""Whether a run that is stopped and resumed is the run that was not, for a setup of one's own."""

import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from trax_torch._errors import CheckpointError
from trax_torch.supervised import _logging
from trax_torch.supervised._checkpoint import schema, storage, witness

_OF_A_PLACE = re.compile(r"rank\d+\.(data|eval)\d+\.")  # what tensors of a place begin with


def verify_resume(make_loop: Callable[[str], Any], n_steps: int = 10) -> None:
    """Shows that `n_steps` steps, a new start and `n_steps` steps are twice as many in one go.

    What is compared are the final checkpoints, to the last bit: weights, slots, buffers, the place
    in the data, the history. Where they differ, the error says which stream of numbers was another,
    and what to do: the seed that nobody gave, the model that is built, the data of which task and
    from which batch on; or, if all of these are the same, what a checkpoint does not hold.

    Args:
      make_loop: builds model, tasks and Loop for an output folder, from nothing, as a new process
        would; it is called three times.
      n_steps: how many steps before the restart, and after it.

    Raises:
      ValueError: if the two runs differ, with the first differences by name, and why; or if
        `make_loop` makes no Loop that saves into the folder it is given.

    Example: `verify_resume(lambda folder: Loop(make_model(), make_task(), output_dir=folder))`.
    """
    with tempfile.TemporaryDirectory() as place:
        whole, cut = os.path.join(place, "whole"), os.path.join(place, "cut")
        pieces = ((whole, 2 * n_steps), (cut, n_steps), (cut, n_steps))
        witnesses = [_run(make_loop, *piece) for piece in pieces]
        found = differences(whole, cut)
    if found:
        raise ValueError(
            f"A run resumed at step {n_steps} differs from one that was not stopped, in "
            f"{len(found)} places: {'; '.join(found[:3])}. {witness.why(*witnesses)}"
        )


def _run(make_loop: Callable[[str], Any], folder: str, n_steps: int) -> witness.Witness:
    """Trains in a folder, in a loop that is made for it and goes."""
    loop = make_loop(folder)
    own = getattr(loop, "output_dir", None)
    if own is None or os.path.abspath(own) != folder:
        what = f"{type(loop).__name__}(output_dir={own!r})"
        raise ValueError(
            f"make_loop(folder) needs to make a Loop that saves into that folder, a new one each "
            f"time; it gave {what} for {folder!r}. Build it with Loop(..., output_dir=folder)."
        )
    with witness.Witness(loop) as seen:
        loop.run(n_steps)
    if _saved_step(folder) != loop.step:  # what is saved later has seen the report
        loop.save_checkpoint("model")
    return seen


def _saved_step(directory: str) -> int | None:
    found = storage.read(directory, "model")
    return None if found is None else found[1]["step"]


def differences(one: str, other: str, basename: str = "model") -> list[str]:
    """Returns in what two checkpoints differ, the clock's values apart; [] if they are equal.

    Args:
      one: a folder, and other: another.
      basename: the checkpoint's name in both.

    Raises:
      CheckpointError: if one cannot be read, or is not there.
    """
    mine, theirs = contents(one, basename), contents(other, basename)
    names = sorted(mine.keys() | theirs.keys())
    return [name for name in names if not is_equal(mine.get(name), theirs.get(name))]


def contents(directory: str, basename: str) -> dict[str, Any]:
    """Returns everything that a checkpoint holds, by name."""
    found = storage.read(directory, basename, schema.check)
    if found is None:
        raise CheckpointError(f"There is no checkpoint {basename} in {directory}.")
    parts, info = found
    flat: dict[str, Any] = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if not _OF_A_PLACE.match(name):
                flat[f"{part} {name}"] = tensor
    history = info["history"]["_values"]
    for mode, metrics in history.items():
        for name, values in metrics.items():
            if not _logging.of_the_clock(name):
                flat[f"history {mode} {name}"] = values
    for i, rank in enumerate(info["ranks"]):
        for name in ("tasks", "evals"):
            flat[f"rank{i} {name}"] = [_place_of(packed) for packed in rank[name]]
        for j, tally in enumerate(rank["tallies"]):
            kept = {k: v for k, v in tally.items() if not k.startswith("seconds")}
            flat[f"rank{i} tally{j}"] = kept
    flat |= {f"members {name}": value for name, value in info["members"].items()}
    apart = ("history", "members", "ranks", "settings")  # two ways to compute may agree
    flat |= {k: v for k, v in info.items() if k not in apart}
    return flat


def _place_of(packed: Any) -> dict[str, Any]:
    """Returns where in its data a task is; how it goes there again may differ between runs."""
    place = dict(packed["dict"])
    return {name: place.get(name) for name in ("n_taken", "epoch", "n_in_pass")}


def is_equal(a: Any, b: Any) -> bool:
    """Tells whether two tensors agree to the last bit, or two other values agree."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(_bytes(a), _bytes(b))
    return bool(a == b)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
