"""What all tests share."""

import doctest

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn


doctest.ELLIPSIS_MARKER = "..."
