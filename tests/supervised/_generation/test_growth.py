"""Nothing is left of a call, tensors or hooks, whatever kind it was of and how it ended."""

import contextlib
import gc
import itertools
import random
import sys

import pytest
import torch
from drafting import VOCAB, lively

from trax_torch import layers as tl
from trax_torch.supervised import decoding

SETTINGS = {"eos_id": -1, "max_length": 6}


def sample(model, inputs, **kwargs):
    decoding.autoregressive_sample(model, inputs, len(inputs), **SETTINGS, **kwargs)


def left_stream(model, inputs):
    stream = decoding.autoregressive_sample_stream(model, inputs, len(inputs), seed=1)
    list(itertools.islice(stream, 3))


def left_generate(model, inputs):
    results = decoding.generate(model, inputs.repeat(3, 1), 2, max_length=[1, 5] * 9, eos_id=-1)
    next(results)


def refused(model, inputs):
    with contextlib.suppress(tl.LayerError):
        sample(model, torch.full_like(inputs, VOCAB + 9))


def called_back(model, inputs):
    def look(tokens, logits):
        return logits

    sample(model, inputs, logits_processor=look)


def kinds():
    """Calls of (model, inputs), by name."""
    draft = lively("attention", seed=5)
    return {
        "greedy": lambda m, x: sample(m, x, temperature=0.0),
        "lengths": lambda m, x: sample(m, x, seed=3, prompt_lengths=[1] * len(x)),
        "filters": lambda m, x: sample(m, x, seed=3, top_k=3, top_p=0.8, stop=[[1, 2]]),
        "samples": lambda m, x: sample(m, x, seed=3, n_samples=2),
        "eval mode": lambda m, x: sample(m, x, seed=3, eval_mode=True),
        "prompt": lambda m, x: sample(m, x, draft="prompt"),
        "draft": lambda m, x: sample(m, x, draft=draft),
        "beams": lambda m, x: decoding.beam_search(m, x, 2, len(x), **SETTINGS),
        "generate": lambda m, x: list(decoding.generate(m, x, 2, **SETTINGS)),
        "left stream": left_stream,
        "left generate": left_generate,
        "refused": refused,
        "called back": called_back,
    }


def things():
    """How many tensors, hooks and blocks of Python's memory there are."""
    gc.collect()
    live = gc.get_objects()
    n_tensors = sum(type(x) in (torch.Tensor, torch.nn.Parameter) for x in live)
    modules = [x for x in live if isinstance(x, torch.nn.Module)]
    n_hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    del live, modules
    return n_tensors, n_hooks, sys.getallocatedblocks()


@pytest.mark.parametrize("n_calls", [60, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_mixed_calls_leave_nothing(n_calls):
    """Plain, compiled, with 8 bits; of blocks, less than one for ten calls."""
    model = lively("two layers")
    fast = tl.Accelerate(lively("attention"), backend="eager")
    models, calls = [model, decoding.quantize(model), fast], list(kinds().values())
    draws = random.Random(0)

    def call(model, n):
        prompt = torch.randint(1, VOCAB, (2, n), generator=torch.Generator().manual_seed(n))
        draws.choice(calls)(model, prompt)

    for each in calls:  # what is made once
        for model in models:
            for n in (2, 3):
                each(model, torch.randint(1, VOCAB, (2, n)))
    before = things()
    for _ in range(n_calls):
        call(draws.choice(models), draws.choice([2, 3]))
    after = things()

    assert after[:2] == before[:2]
    assert after[2] - before[2] < max(300, n_calls / 10)
