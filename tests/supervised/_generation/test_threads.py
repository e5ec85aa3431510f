"""Runs, evals and training of one model go side by side: a run's memory is the run's."""

import itertools
import random
import sys
import threading

import numpy as np
import pytest
import torch
from decoders import VOCAB, livelier
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding

TOKENS = torch.zeros(1, 3, dtype=torch.int64)


class Scaled(nn.Module):
    """A model of somebody's own around one of ours, with a weight of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, tokens):
        return self.inner(tokens) / self.temperature


class Sums(nn.Module):
    """A module of somebody's own with a cache of its own: sums of what came so far."""

    def __init__(self):
        super().__init__()
        self.total = None

    def init_cache(self, batch_size=None, max_length=None):
        self.total = 0.0

    def reset_cache(self):
        self.total = 0.0

    def reorder_cache(self, parents):
        if torch.is_tensor(self.total):
            self.total = self.total[parents]

    def forward(self, x):
        sums = x.cumsum(1)
        if self.total is not None:
            sums = sums + self.total
            self.total = sums[:, -1:]
        return sums / 8


def transformer(dropout=0.3):
    return livelier(models.TransformerLM(VOCAB, 16, 32, 2, 2, max_len=64, dropout=dropout), TOKENS)


def with_a_cache_of_its_own():
    layers = [tl.ShiftRight(), tl.Embedding(VOCAB, 8), nn.Dropout(0.5), Sums(), tl.Dense(VOCAB)]
    return livelier(tl.Serial(*layers), TOKENS)


def decode(model, prompt, **arguments):
    return decoding.autoregressive_sample(
        model, np.array([prompt]), max_length=6, eos_id=-1, seed=3, **arguments
    ).tolist()


CALLS = {
    "sampled": decode,
    "beams": lambda m, p: decoding.beam_search(
        m, np.array([p]), n_beams=2, max_length=5, eos_id=-1
    ).tolist(),
    "stream": lambda m, p: [
        token.item()
        for token in itertools.islice(
            decoding.autoregressive_sample_stream(m, np.array([p]), seed=5), 6
        )
    ],
    "eval mode": lambda m, p: decode(m, p, eval_mode=True),
}


@pytest.fixture
def restless():
    """Threads change places as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(*jobs):
    """Runs jobs at once; raises what one of them raised."""
    errors = []

    def run(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=1200)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("n_calls", [48, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_models_that_share_layers_are_each_what_they_are_alone(restless, n_calls):
    """Four threads; a model, what wraps it, one with the same trunk, one with a foreign cache."""
    model, foreign = transformer(), with_a_cache_of_its_own()
    trunk = model.sublayers[:-2]
    other_head = tl.Serial(*trunk, tl.Dense(VOCAB))
    other_head.init_missing(TOKENS, rng=9)
    other_head.double()
    plans = [
        (m, call, prompt)
        for m in (model, Scaled(model), other_head, foreign)
        for call in CALLS.values()
        for prompt in ([2, 3], [4, 5, 6])
    ]
    want = [call(m, prompt) for m, call, prompt in plans]
    wrong = []

    def again(seed):
        draws = random.Random(seed)
        for _ in range(n_calls // 4):
            i = draws.randrange(len(plans))
            m, call, prompt = plans[i]
            if call(m, prompt) != want[i]:
                wrong.append(i)

    in_threads(*(lambda seed=seed: again(seed) for seed in range(4)))

    assert wrong == []
    assert model.mode == "train"
    assert foreign.sublayers[2].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("make", [transformer, lambda: livelier(models.RNNLM(VOCAB, 16), TOKENS)])
def test_evals_and_training_beside_a_decode_are_what_they_are_alone(restless, make):
    model = make()
    x = torch.arange(6)[None] % VOCAB
    is_over = threading.Event()

    def train():
        torch.manual_seed(0)
        model.train()
        return model(x, rng=1)

    def measure():
        with torch.no_grad():
            return model(x, rng=1)

    with torch.no_grad():
        trained, want = train(), decode(model, [2, 3])
    got = []

    def go_on():
        while not is_over.is_set():
            assert decode(model, [2, 3]) == want

    def evaluate():
        try:
            for _ in range(40):
                assert model.mode == "train"
                got.append(measure())
        finally:
            is_over.set()

    in_threads(go_on, evaluate)

    for y in got:
        torch.testing.assert_close(y, trained, rtol=1e-5, atol=1e-5)


def test_two_blocks_in_two_threads_have_each_its_own_past():
    """Entered one after the other, and left in any order."""
    model = transformer(0.0)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), model.predict(1, 8):
        want = [model(tokens[:, i : i + 1]) for i in range(4)]
    meet = threading.Barrier(2, timeout=600)
    got = {}

    def run(name):
        with torch.no_grad(), model.predict(1, 8):
            got[name] = []
            for i in range(4):
                meet.wait()
                got[name].append(model(tokens[:, i : i + 1]))

    in_threads(lambda: run("one"), lambda: run("other"))

    for name in ("one", "other"):
        for a, b in zip(got[name], want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert model.mode == "train"


def test_a_foreign_module_trains_again_when_the_last_run_has_left():
    model = livelier(tl.Serial(tl.Embedding(VOCAB, 8), nn.Dropout(0.5), tl.Dense(VOCAB)), TOKENS)
    dropout = model.sublayers[1].module
    one, other = model.predict(1), model.predict(1)
    entered, left = threading.Event(), threading.Event()

    def hold():
        with other:
            entered.set()
            assert left.wait(600)
            assert not dropout.training

    def come_and_go():
        with one:
            assert entered.wait(600)
        left.set()

    in_threads(hold, come_and_go)

    assert dropout.training
