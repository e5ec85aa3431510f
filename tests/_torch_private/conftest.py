"""What of torch is leaned on without a promise: one test for each thing, and one for its absence.

If one fails under a new release, its docstring says what has changed, and `_torch_private` is the
room to mend.
"""

import logging

import pytest
import torch

from trax_torch._torch_private import said as said_once


@pytest.fixture(autouse=True)
def _as_if_nothing_was_compiled_or_said():
    torch.compiler.reset()
    said_once.say.cache_clear()


@pytest.fixture
def said(caplog):
    """What the logger says."""
    caplog.set_level(logging.WARNING, "trax_torch")
    return lambda: [record.getMessage() for record in caplog.records]
