"""Packages that only some need: they are imported where they are used, and asked for by name."""

import importlib
from typing import Any


def needed(package: str, who: str, extra: str) -> Any:
    """Returns an optional package.

    Args:
      package: to import.
      who: needs it, for the message.
      extra: of this library, that brings it.

    Raises:
      ImportError: if it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{who} needs the package {package}, which cannot be imported ({error}). Install it: "
            f"pip install 'trax-torch[{extra}]'."
        ) from error
