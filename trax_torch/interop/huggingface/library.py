"""The library itself, which is imported when it is needed."""

import importlib
import sys
from typing import Any


def transformers() -> Any:
    """Returns transformers.

    Raises:
      ImportError: if it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"This needs transformers, version 5 or later ({error}). Install it: pip install "
            f"'trax-torch[huggingface]'."
        ) from error


def is_model(model: Any) -> bool:
    """Tells whether a model is one of transformers', without importing it."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(model, modeling.PreTrainedModel)
