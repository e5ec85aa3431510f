"""New processes for tests to break: warm, so that they start at once, and ended by their own id.

A server that has imported torch, and done nothing else, forks them: none remembers what this
process or an earlier child did.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
from multiprocessing import connection
from unittest import mock

_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch._meta_registrations",
        "torch.utils.tensorboard",
        "trax_torch.supervised",
    ]
)
# Starting a process asks after all others, and what one end says is read once: of two threads that
# read it, one would take the end of the pipe for a process that broke down, with 255.
_mutex = threading.Lock()


def start(target, *args):
    """Starts `target(*args)`, a function of a module, in a new process; returns the process."""
    with _mutex:
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            multiprocessing.forkserver.ensure_running()
        process = _warm.Process(target=_quietly, args=(target, *args))
        process.start()
    return process


def ended(process, timeout=600):
    """Waits for a process; returns its exit code, which is -9 for one that was killed."""
    is_over = connection.wait([process.sentinel], timeout)
    with _mutex:
        if not is_over:
            process.kill()
            raise AssertionError(f"A child did not end in {timeout} seconds.")
        process.join()
        return process.exitcode


def run(target, *args):
    """Runs `target(*args)` in a new process to its end; returns its exit code."""
    return ended(start(target, *args))


def _quietly(target, *args):
    import torch

    multiprocessing.set_start_method("fork", force=True)  # of its own children: loaders' workers
    torch.set_num_threads(1)
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, sys.__stdout__.fileno())
    target(*args)
