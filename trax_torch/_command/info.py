"""`info RUN`: the checkpoints of a run's folder, whether they are whole, and what was measured."""

import argparse
import os

from trax_torch import _tables
from trax_torch._command import text_model
from trax_torch.supervised._checkpoint import Found, found_in
from trax_torch.supervised.history import History


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")


def run(args: argparse.Namespace) -> None:
    """Prints what is there.

    Raises:
      SystemExit: with status 1, if a checkpoint is damaged.
    """
    found = found_in(args.run)
    model = text_model.kept(args.run)
    if model is not None:
        print(f"{model}\n")
    rows = [
        (
            each.name,
            "?" if each.step is None else f"{each.step:,}",
            f"{each.n_weights:,}",
            _tables.amount(each.n_bytes),
            each.problem or "whole",
        )
        for each in found
    ]
    print(_tables.table(("checkpoint", "step", "weights", "size", "state"), rows, (1, 2, 3)))
    print(f"\nMeasured until the newest was saved:\n\n{_latest(found)}\n")
    files = [(name, f"{n:,}", _tables.amount(size)) for name, n, size in _files(args.run)]
    print(_tables.table(("in the folder", "files", "size"), files, (1, 2)))
    if any(each.problem for each in found):
        raise SystemExit(1)


def _latest(found: list[Found]) -> History:
    """Returns the history of the newest checkpoint that is whole."""
    whole = [each for each in found if not each.problem]
    return max(whole, key=lambda each: each.step or 0).history if whole else History()


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Returns what lies in a folder: names, and how many files each is, with their bytes."""
    found = []
    for entry in sorted(os.scandir(os.path.expanduser(folder)), key=lambda entry: entry.name):
        paths = [entry.path]
        if entry.is_dir():
            paths = [os.path.join(at, name) for at, _, names in os.walk(entry) for name in names]
        name = entry.name + "/" * entry.is_dir()
        found.append((name, len(paths), sum(map(os.path.getsize, paths))))
    return found
