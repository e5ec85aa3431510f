"""What drafts bring: the time of a token with `draft="prompt"`, with a small model's, and without.

    python benchmarks/bench_draft.py [--uncompiled] [--steps N] [--tokens N] [--rounds N]

A byte-level TransformerLM and one of a tenth of its size are trained, N and 2 N steps, until they
know ten kilobytes of a module of Python's own by heart, and complete prompts of it: text of the
kind that drafts fit. Where none does, prompts and model are random, and the temperature is 1.
Tokens are shown to be equal to those without drafts, but for ties; then all ways take turns. Time
is that of the processor, one thread, and quartiles are over the rounds. The aims: 1.6 times as fast
with `"prompt"` on its own text, 1.8 times with the small model, and at least 0.95 of the plain
speed where no draft fits.
"""

import argparse
import inspect
import json
import statistics
import time

import numpy as np
import torch

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import Loop, TrainTask, decoding, lr_schedules

WINDOW, PROMPT_LENGTH = 256, 64  # bytes


def model_of(d_model, n_layers):
    model = models.TransformerLM(
        *(256, d_model, 4 * d_model, n_layers, 4), max_len=4 * WINDOW, dropout=0.0
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=1)
    return model


def train(model, text, n_steps, rate):
    """Trains a model on windows of a text for at least one step; returns its loss, nats a byte."""
    draws = np.random.default_rng(0)

    def batches():
        while True:
            starts = draws.integers(0, len(text) - WINDOW, 4)
            x = np.stack([text[i : i + WINDOW] for i in starts])
            yield x, x, np.ones(x.shape, np.float32)

    loss, rates = tl.WeightedCategoryCrossEntropy(), lr_schedules.warmup(30, rate)
    task = TrainTask(batches(), loss, optimizers.Adam(rate), lr_schedule=rates)
    loop = Loop(model, task, random_seed=0, verbose=False)
    loop.run(n_steps)
    return loop.loss


def calls(prompts, settings, drafts):
    """Yields names and calls: of ours without drafts, and with each."""
    for name, draft in {"without": None, **drafts}.items():
        yield (
            name,
            lambda model, draft=draft: decoding.autoregressive_sample(
                model, prompts, draft=draft, **settings
            ),
        )


def measured(name, model, prompts, settings, drafts, n_rounds):
    """Returns rows of a table: milliseconds a token, and times of the plain speed."""
    contenders = dict(calls(prompts, settings, drafts))
    results = {key: call(model) for key, call in contenders.items()}
    same = {k: float((r == results["without"]).float().mean()) for k, r in results.items()}
    times = {key: [] for key in contenders}
    for _ in range(n_rounds):
        for key, call in contenders.items():
            start = time.process_time()
            call(model)
            times[key].append((time.process_time() - start) * 1e3 / settings["max_length"])
    rows = []
    for key, taken in times.items():
        ratios = [a / b for a, b in zip(times["without"], taken, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "text": name,
                "batch": len(prompts),
                "draft": key,
                "ms a token": round(statistics.median(taken), 3),
                "times": round(middle, 2),
                "quartiles": [round(low, 2), round(high, 2)],
                "equal tokens": round(same[key], 4),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uncompiled", action="store_true")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--tokens", type=int, default=WINDOW - PROMPT_LENGTH)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="*", default=[1])
    parser.add_argument("--d-model", type=int, default=256)
    args = parser.parse_args()
    text = np.frombuffer(inspect.getsource(argparse).encode()[8_000:18_000], np.uint8).astype(
        np.int64
    )
    big, small = model_of(args.d_model, 4), model_of(args.d_model * 7 // 16, 2)
    for model, n_steps, rate in ((big, args.steps, 1e-3), (small, 2 * args.steps, 3e-3)):
        n_weights, loss = (
            sum(p.numel() for p in model.parameters()),
            train(model, text, n_steps, rate),
        )
        print(f"{n_weights:,} weights, loss {loss:.3f}", flush=True)
    torch.set_num_threads(1)
    random_model = model_of(args.d_model, 4)
    draws = torch.Generator().manual_seed(0)
    rows = []
    for batch in args.batches:
        starts = torch.randint(0, len(text) - PROMPT_LENGTH, (batch,), generator=draws).tolist()
        prompts = torch.stack([torch.from_numpy(text[i : i + PROMPT_LENGTH]) for i in starts])
        noise = torch.randint(0, 256, prompts.shape, generator=draws)
        drafts = {"prompt": "prompt", "small model": small}
        for name, model, inputs, temperature in (
            ("its own", big, prompts, 0.0),
            ("its own, temperature 0.7", big, prompts, 0.7),
            ("random", random_model, noise, 1.0),
        ):
            settings = {
                "batch_size": batch,
                "temperature": temperature,
                "seed": 0,
                "eos_id": -1,
                "max_length": args.tokens,
            }
            if not args.uncompiled:
                for draft in (None, *drafts.values()):
                    decoding.warmup(model, batch, args.tokens, inputs=inputs, draft=draft)
            rows += measured(name, model, inputs, settings, drafts, args.rounds)
            for row in rows[-len(drafts) - 1 :]:
                print(*row.values(), sep="\t", flush=True)
    print(json.dumps({"benchmark": "draft", "compiled": not args.uncompiled, "rows": rows}))


if __name__ == "__main__":
    main()
