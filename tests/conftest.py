"""What all tests share."""

import contextlib
import doctest
import gc
import importlib
import logging
import os
import random
import signal

import hypothesis
import numpy as np
import pytest
import rounding
import small_torchvision
import torch

from trax_torch import _torch_private

collect_ignore_glob = ["support/typed/*"]  # programs for type checkers, which do not run

# A test fails for what the product does, and not since a machine is busy, or for a number that was
# drawn this once. `--hypothesis-profile=anew` draws other examples each time, to look for more.
_untimed = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("anew", derandomize=False, **_untimed)
hypothesis.settings.register_profile("same", derandomize=True, **_untimed)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn


@pytest.fixture
def bfloat16_as_fast_as_may_be(monkeypatch):
    """Has any CPU compute in bfloat16 where a run asks for it."""
    monkeypatch.setattr(_torch_private, "cpu_multiplies_bfloat16", lambda: True)


doctest.ELLIPSIS_MARKER = "..."


def pytest_addoption(parser):
    """How a processor computes, for tests that must hold on any; see tests/README.md."""
    parser.addoption("--threads", type=int, default=1, help="threads of torch's")
    parser.addoption(
        "--other-rounding", action="store_true", help="round products as another processor may"
    )


def pytest_configure(config):
    # Tests run side by side, and their models are small: more threads would wait for each other.
    threads = config.getoption("--threads")
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # in processes that tests start
    small_torchvision.install()
    if config.getoption("--other-rounding"):
        rounding.install()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each test draws the same numbers, whichever ran before it in the same process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_finish():
    """Makes tests quicker, none of which is to notice it."""
    # torch times the guards of all that it compiles, for its logs, with the processor's caches
    # emptied before: a tenth of what compiling takes.
    with contextlib.suppress(ImportError, AttributeError):
        guards = importlib.import_module("torch._dynamo.guards")
        guards.profile_guard_manager = lambda *args: 0.0
    # pytest listens to each logger that hands nothing on, so torch writes its structured trace.
    trace = logging.getLogger("torch.__trace")
    trace.handlers.clear()
    trace.addHandler = lambda handler: None
    # What is there by now is looked at by no collection again, nor copied page by page in children.
    gc.collect()
    gc.freeze()


# Tests fork. A build for GPUs, where there is none, makes threads for a stand-in once something has
# been compiled, if the first backward pass comes after that; and with those nobody may fork.
torch.ones(1, requires_grad=True).sum().backward()

# What is started in the background, as `nohup pytest &` is, ignores Ctrl-C, and so would the
# processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
