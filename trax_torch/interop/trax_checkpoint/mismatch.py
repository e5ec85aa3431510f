"""How a file and a model differ, in words."""

from collections.abc import Sequence
from typing import Any

Shape = tuple[int, ...]


def shapes(items: Sequence[Any]) -> list[Shape]:
    """Returns the shape of each item; () of a number."""
    return [tuple(getattr(item, "shape", ())) for item in items]


def differences(kind: str, came: list[Shape], wanted: list[Shape]) -> list[str]:
    """Returns a sentence for each place where shapes differ, and one if their numbers do."""
    found = [
        f"{kind}[{i}] has shape {a} in the file where {b} is needed"
        for i, (a, b) in enumerate(zip(came, wanted, strict=False))
        if a != b
    ]
    if len(came) != len(wanted):
        found.append(f"{kind}: {len(came)} arrays in the file where {len(wanted)} are needed")
    return found


def first(differences: list[str]) -> str:
    """Returns the first three as one line, and how many there are."""
    shown = "; ".join(differences[:3])
    return shown if len(differences) <= 3 else f"{shown} ({len(differences)} differences in all)"
