"""Limits in seconds of the processor."""

import contextlib
import gc
import time


@contextlib.contextmanager
def at_most(seconds):
    """What is done inside takes less time of this process.

    What thousands of tests before have left is not looked through for garbage meanwhile, which
    takes a second.
    """
    gc.freeze()
    start = time.process_time()
    try:
        yield
        taken = time.process_time() - start
    finally:
        gc.unfreeze()
    assert taken < seconds
