"""What all tests share."""

import doctest
import os
import signal

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn


doctest.ELLIPSIS_MARKER = "..."

# Tests run side by side, and their models are small: threads would wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start

# Tests fork. A build for GPUs, where there is none, makes threads for a stand-in once something has
# been compiled, if the first backward pass comes after that; and with those nobody may fork.
torch.ones(1, requires_grad=True).sum().backward()

# What is started in the background, as `nohup pytest &` is, ignores Ctrl-C, and so would the
# processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
