"""Reads Trax's figures from tests/golden, and compares with them."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from trax_torch import layers as tl

FOLDER = Path(__file__).parents[1] / "golden"


@functools.cache
def _figures(folder):
    info = json.loads((FOLDER / folder / "golden.json").read_text())
    arrays = dict(np.load(FOLDER / folder / "golden.npz", allow_pickle=False))
    return {case["case"]: case for case in info["cases"]}, arrays


def names(kind: str, folder: str = "single") -> list[str]:
    """Returns the names of all cases of a kind, such as 'layer' or 'optimizer'."""
    return [name for name, case in _figures(folder)[0].items() if case["kind"] == kind]


def case(name: str, folder: str = "single") -> dict[str, Any]:
    """Returns what golden.json says of a case."""
    return _figures(folder)[0][name]


def part(name: str, key: str, folder: str = "single") -> np.ndarray:
    """Returns one array of a case."""
    return _figures(folder)[1][f"{name}/{key}"]


def parts(name: str, prefix: str, folder: str = "single") -> list[np.ndarray]:
    """Returns the arrays `prefix0`, `prefix1`, ... of a case."""
    arrays, found = _figures(folder)[1], []
    while f"{name}/{prefix}{len(found)}" in arrays:
        found.append(arrays[f"{name}/{prefix}{len(found)}"])
    return found


def bare(items: list[Any]) -> Any:
    """Packs items as layers take them: one bare, several as a tuple."""
    return items[0] if len(items) == 1 else tuple(items)


def set_flat_weights(layer: tl.Layer, flat: list[np.ndarray]) -> None:
    """Gives an initialized layer weights from a flat list in Trax's order."""
    layer.weights = tl.unflatten_weights_and_state(flat, [], (layer.weights, ()))[0]


def flat_weights(layer: tl.Layer) -> list[np.ndarray]:
    """Returns a layer's weights as Trax would store them."""
    return [w.detach().numpy() for w in tl.flatten_weights_and_state(layer.weights, ())[0]]


def flat_gradients(layer: tl.Layer) -> list[np.ndarray]:
    """Returns the gradients in the places of `flat_weights`; zeros where there is none."""
    import copy

    twin = copy.deepcopy(layer)
    for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
        p.data = q.grad if q.grad is not None else q.detach() * 0
    return flat_weights(twin)


def assert_close_together(got: list[Any], want: list[Any], tolerance: float = 2e-4) -> None:
    """Asserts that lists of arrays agree, relative to the largest value of all wanted ones.

    Some gradients, such as those by the bias of attention's keys, are 0 but for rounding.
    """
    assert [np.shape(a) for a in got] == [np.shape(b) for b in want]
    assert_close(
        *(np.concatenate([np.ravel(a) for a in arrays]) for arrays in (got, want)), tolerance
    )


def assert_close(got: Any, want: Any, tolerance: float = 2e-4) -> None:
    """Asserts that two arrays agree, relative to the largest value of the wanted one."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    scale = max(np.abs(want).max(initial=0.0), 1e-2)
    assert np.abs(got - want).max(initial=0.0) <= tolerance * scale
