"""How many slots Trax's optimizers keep for a weight, and of which shapes."""

from collections.abc import Callable

from trax_torch.interop.trax_checkpoint import mismatch
from trax_torch.interop.trax_checkpoint.mismatch import Shape


def _adafactor(factored: bool, momentum: bool) -> Callable[[Shape], list[Shape]]:
    def layout(shape: Shape) -> list[Shape]:
        rows_and_columns = [shape[:-1], shape[:-2] + shape[-1:]]
        own = rows_and_columns if factored and len(shape) >= 2 else [shape]
        return own + [shape] * momentum

    return layout


def _sm3(momentum: bool, averages: bool) -> Callable[[Shape], list[Shape]]:
    return lambda shape: [shape] * momentum + [(size,) for size in shape] * (1 + averages)


_BOTH = (True, False)
LAYOUTS: dict[str, list[Callable[[Shape], list[Shape]]]] = {
    "SGD": [lambda shape: []],
    "Momentum": [lambda shape: [shape]],
    "RMSProp": [lambda shape: [shape]],
    "Adam": [lambda shape: [shape, shape]],
    "Adafactor": [_adafactor(x, y) for x in _BOTH for y in _BOTH],
    "SM3": [_sm3(x, y) for x in _BOTH for y in _BOTH],
}


def group(
    optimizer_name: str, weights: list[Shape], slots: list[Shape]
) -> tuple[list[int], list[str]]:
    """Returns how many slots belong to each weight, or else how the slots differ from any such.

    Args:
      optimizer_name: a key of `LAYOUTS`.
      weights: shapes of the weights.
      slots: shapes of the slots, flat.

    Returns:
      `(sizes, differences)`; one of them is empty, or both where there are no weights.
    """
    closest: list[str] | None = None
    for layout in LAYOUTS[optimizer_name]:
        groups = [layout(shape) for shape in weights]
        wanted = [shape for shapes in groups for shape in shapes]
        differences = mismatch.differences(f"{optimizer_name}'s slots", slots, wanted)
        if not differences:
            return [len(shapes) for shapes in groups], []
        if closest is None or len(differences) < len(closest):
            closest = differences
    return [], closest or []
