"""What runs with callbacks are made of, and when two of them hold the same averages."""

import functools
import math

import numpy as np
import torch
from toys import batches

from trax_torch.supervised.callbacks import ExponentialMovingAverage, ProfilerTrace

ALWAYS = {"checkpoint_at": lambda step: True, "eval_at": lambda step: True}


def averaging(decay=0.6):
    return functools.partial(ExponentialMovingAverage, decay=decay)


def assert_same_averages(one, other):
    mine, theirs = (loop.callbacks[0].state_dict() for loop in (one, other))
    assert mine["n_steps"] == theirs["n_steps"] > 0
    assert mine["averages"].keys() == theirs["averages"].keys() != set()
    assert all(torch.equal(a, theirs["averages"][k]) for k, a in mine["averages"].items())


class Skipping:
    """Data with one batch that is not finite."""

    def __init__(self, bad):
        self.i, self.bad = -1, bad  # the sample comes first

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        x, y, w = next(batches(self.i))
        return (x * np.float32(math.nan) if self.i == self.bad else x), y, w


def profiling(**kwargs):
    return functools.partial(ProfilerTrace, **kwargs)
