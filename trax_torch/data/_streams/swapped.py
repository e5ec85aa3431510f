"""A loader with other attributes for a while, as it begins a pass."""

import contextlib
from collections.abc import Generator
from typing import Any


@contextlib.contextmanager
def swapped(loader: Any, attributes: dict[str, Any]) -> Generator[None]:
    """Gives a loader other attributes for a while; it refuses some where they are set as usual."""
    own = vars(loader)
    before = {name: own[name] for name in attributes}
    own.update(attributes)
    try:
        yield
    finally:
        own.update(before)
