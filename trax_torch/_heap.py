"""The C library's heap: freed memory goes back to the system."""

import contextlib
import ctypes


def give_back() -> None:
    """Has the C library give freed memory back that lies between what is in use.

    It keeps that for what comes, and what comes may fit into none of it: tensors are aligned, and
    need more than the gap that one of their size has left. glibc can be told to; others are left
    alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: on Windows
        ctypes.CDLL(None).malloc_trim(0)
