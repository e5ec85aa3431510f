"""Whether a run that is stopped and resumed is the run that was not, for a setup of one's own."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from trax_torch.supervised import _logging
from trax_torch.supervised._checkpoint import storage


def verify_resume(make_loop: Callable[[str], Any], n_steps: int = 10) -> None:
    """Shows that `n_steps` steps, a new start and `n_steps` steps are twice as many in one go.

    What is compared are the final checkpoints, to the last bit: weights, slots, buffers, the place
    in the data, the history. What differs points at what the checkpoint does not hold: data that
    is shuffled anew, or drawn from a generator that nobody seeds; a layer whose state is no buffer.

    Args:
      make_loop: builds model, tasks and Loop for an output folder, from nothing, as a new process
        would; it is called three times.
      n_steps: how many steps before the restart, and after it.

    Raises:
      ValueError: if the two runs differ, with the first differences by name.

    Example: `verify_resume(lambda folder: Loop(make_model(), make_task(), output_dir=folder))`.
    """
    with tempfile.TemporaryDirectory() as place:
        whole, cut = os.path.join(place, "whole"), os.path.join(place, "cut")
        for folder, pieces in ((whole, [2 * n_steps]), (cut, [n_steps, n_steps])):
            for piece in pieces:
                loop = make_loop(folder)
                loop.run(piece)
                loop.save_checkpoint("model")
                del loop
        found = differences(whole, cut)
    if found:
        raise ValueError(
            f"A run resumed at step {n_steps} differs from one that was not stopped, in "
            f"{len(found)} places: {'; '.join(found[:3])}. Seed the data, give a shuffling "
            f"DataLoader a generator of its own, and keep state in buffers."
        )


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
    found = storage.read(directory, basename)
    if found is None:
        raise storage.CheckpointError(f"There is no checkpoint {basename} in {directory}.")
    parts, info = found
    flat: dict[str, Any] = {}
    for part, tensors in parts.items():
        flat |= {f"{part} {name}": tensor for name, tensor in tensors.items()}
    history = info["history"]["_values"]
    for mode, metrics in history.items():
        for name, values in metrics.items():
            if not _logging.of_the_clock(name):
                flat[f"history {mode} {name}"] = values
    for i, rank in enumerate(info["ranks"]):
        flat |= {f"rank{i} {name}": rank[name] for name in ("tasks", "evals")}
        for j, tally in enumerate(rank["tallies"]):
            kept = {k: v for k, v in tally.items() if not k.startswith("seconds")}
            flat[f"rank{i} tally{j}"] = kept
    flat |= {f"members {name}": value for name, value in info["members"].items()}
    apart = ("history", "members", "ranks", "settings")  # two ways to compute may agree
    flat |= {k: v for k, v in info.items() if k not in apart}
    return flat


def is_equal(a: Any, b: Any) -> bool:
    """Tells whether two tensors agree to the last bit, or two other values agree."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(_bytes(a), _bytes(b))
    return bool(a == b)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
