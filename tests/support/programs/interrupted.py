"""Decodes again and again, is interrupted at any moment, and says in what state that leaves it.

python interrupted.py SEED N
"""

import json
import random
import signal
import sys
import threading
import time

import torch

from trax_torch import models
from trax_torch.layers._predict.mode import foreign_lock
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.checks import hooks_lock

PROMPT = torch.tensor([[2, 3, 4]])
CALLS = [
    lambda m, n=30: decoding.autoregressive_sample(m, PROMPT, max_length=n, seed=1, eos_id=-1),
    lambda m, n=12: decoding.beam_search(m, PROMPT, n_beams=2, max_length=n, eos_id=-1),
    lambda m, n=12: decoding.autoregressive_sample(
        m, PROMPT, max_length=n, seed=1, eos_id=-1, eval_mode=True
    ),
    lambda m, n=20: list(decoding.autoregressive_sample_stream(m, PROMPT, max_length=n, seed=1)),
]


def make_model():
    model = models.TransformerLM(20, 16, 16, 2, 2, max_len=64, dropout=0.0)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    return model


def interrupt(*_):
    raise KeyboardInterrupt


def are_free():
    """Whether another thread could take the locks."""
    got = []

    def look():
        for lock in (foreign_lock, hooks_lock):
            got.append(lock.acquire(timeout=2))
            if got[-1]:
                lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return all(got)


def what_is_wrong(model):
    found = []
    if not torch.is_grad_enabled():
        found.append("gradients are off")
    if not are_free():
        found.append("a lock is held")
    if any(m.mode != "train" for m in (model, *model.sublayers)):
        found.append("a layer is in another mode")
    if any(m._forward_pre_hooks or m._forward_hooks for m in model.modules()):
        found.append("a hook is left")
    return found


def seconds_of(call, model):
    start = time.perf_counter()
    call(model)
    return time.perf_counter() - start


def main(seed, n):
    torch.set_num_threads(1)
    model = make_model()
    wanted = [call(model) for call in CALLS]
    takes = [min(seconds_of(call, model) for _ in range(3)) for call in CALLS]
    signal.signal(signal.SIGALRM, interrupt)
    draws, n_hit, wrong = random.Random(seed), 0, []
    for i in range(n):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(0.0002, takes[i % len(CALLS)]))
                CALLS[i % len(CALLS)](model)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            n_hit += 1
        wrong += what_is_wrong(model)
    same = [str(call(model)) == str(want) for call, want in zip(CALLS, wanted, strict=True)]
    print(json.dumps({"n_hit": n_hit, "wrong": sorted(set(wrong)), "same": same}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
