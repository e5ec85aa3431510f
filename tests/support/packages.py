"""Packages of others that a test needs, and is skipped without."""

import importlib

import pytest


def needed(name):
    """Returns a module; skips the test if it is not there, or does not go with this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision of another build raises the latter
        pytest.skip(f"{name} cannot be imported: {error}")
