"""Decodes again and again, is interrupted at any moment, and says in what state that leaves it.

python interrupted.py SEED N
"""

import json
import random
import signal
import sys
import threading

import torch

from trax_torch import models
from trax_torch.layers._predict import lock_of
from trax_torch.supervised import decoding

PROMPT = torch.tensor([[2, 3, 4]])
CALLS = [
    lambda m: decoding.autoregressive_sample(m, PROMPT, max_length=30, seed=1, eos_id=-1),
    lambda m: decoding.beam_search(m, PROMPT, n_beams=2, max_length=12, eos_id=-1),
    lambda m: decoding.autoregressive_sample(
        m, PROMPT, max_length=12, seed=1, eos_id=-1, eval_mode=True
    ),
    lambda m: list(decoding.autoregressive_sample_stream(m, PROMPT, max_length=20, seed=1)),
]


def interrupt(*_):
    raise KeyboardInterrupt


def is_free(model):
    """Whether another thread could take the model's lock."""
    got = []

    def look():
        lock = lock_of(model).held
        got.append(lock.acquire(timeout=2))
        if got[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return got[0]


def what_is_wrong(model):
    found = []
    if not torch.is_grad_enabled():
        found.append("gradients are off")
    if not is_free(model):
        found.append("the model is locked")
    if any(m.mode != "train" for m in (model, *model.sublayers)):
        found.append("a layer is in another mode")
    if any(m._forward_pre_hooks or m._forward_hooks for m in model.modules()):
        found.append("a hook is left")
    return found


def main(seed, n):
    torch.set_num_threads(1)
    model = models.TransformerLM(20, 16, 16, 2, 2, max_len=64, dropout=0.0)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    wanted = [call(model) for call in CALLS]
    signal.signal(signal.SIGALRM, interrupt)
    draws, n_hit, wrong = random.Random(seed), 0, []
    for i in range(n):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(0.0002, 0.03))
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
