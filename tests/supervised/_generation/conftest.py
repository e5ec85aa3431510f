"""What all tests of compiled steps share."""

import pytest
import torch


@pytest.fixture
def _compiler_afresh():
    """Nothing is compiled at the start, and torch compiles as ever in the end."""
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")
