"""What was freed between what is in use goes back to the system."""

import ctypes

import pytest
import ranks
import torch

from trax_torch import _heap

PIECE, N = 16_000, 1_000  # numbers in a tensor, which is not large enough for a mapping of its own


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * ctypes.CDLL(None).getpagesize()


def holed(rank):
    """Bytes of memory with every second tensor freed, and then given back; and what is left."""
    made = [torch.full((PIECE,), float(i)) for i in range(N)]
    kept = made[::2]
    del made
    before = resident()
    _heap.give_back()
    return before - resident(), [int(x.sum() / PIECE) for x in kept]


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot be told to"
)
def test_holes_go_back_and_what_is_in_use_stays(tmp_path):
    ((n_bytes, kept),) = ranks.values(tmp_path, 1, holed)

    assert n_bytes > 0.8 * 4 * PIECE * N / 2
    assert kept == [*range(0, N, 2)]


def test_a_library_that_cannot_is_left_alone(monkeypatch):
    for error in (OSError, TypeError, AttributeError):

        def missing(name, error=error):
            raise error("none")

        monkeypatch.setattr(ctypes, "CDLL", missing)
        _heap.give_back()
