"""`trax` means this library within a test, and not after it."""

import importlib
import sys

import pytest

from trax_torch import _as_trax
from trax_torch._as_trax import finder


@pytest.fixture
def trax():
    """The module `trax`."""
    before = list(sys.meta_path)
    _as_trax.install()
    yield importlib.import_module("trax")
    if sys.meta_path != before:
        finder.uninstall()
