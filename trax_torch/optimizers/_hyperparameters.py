"""Refuses a rule's numbers where they lie outside their range."""

import inspect
import numbers
from typing import Any


def check(recipe: Any, **ranges: str) -> None:
    """Raises ValueError if a number of a recipe is not in its range.

    Args:
      recipe: the recipe, with its numbers in `opt_params`.
      **ranges: intervals by name as mathematics writes them, such as `mass="[0, 1)"`.

    Raises:
      ValueError: if a number is outside, not a number (NaN), or no real number at all.
    """
    for name, interval in ranges.items():
        value = recipe.opt_params[name]
        if not (isinstance(value, numbers.Real) and _contains(interval, float(value))):
            known = inspect.signature(type(recipe)).parameters.get(name)
            advice = "" if known is None else f" The default is {known.default}."
            raise ValueError(
                f"{type(recipe).__name__} takes a {name} in {interval}; got {value!r}.{advice}"
            )


def _contains(interval: str, value: float) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low < value or (low == value and interval[0] == "[")
    return above and (value < high or (value == high and interval[-1] == "]"))
