"""What a step of `Loop.run` costs beyond the step itself.

    python benchmarks/bench_step.py [--steps N] [--repeats N] [--full]

The rival is a loop written by hand over the same model, loss, optimizer and batches, in the same
process: zero_grad, forward, backward, clip where the Loop clips, step. Both take the same steps in
turns, so that what the machine does meanwhile hits both. `--full` turns checkpoints, evals and
TensorBoard on in the Loop, every 100 steps.
"""

import argparse
import contextlib
import copy
import io
import json
import statistics
import tempfile
import time

import numpy as np
import torch

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask


def tiny():
    """An MLP whose step takes a fraction of a millisecond."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(8, 16)).astype(np.float32))
    batch = (x, x[:, :1].clone(), torch.ones(8, 1))
    return tl.Serial(tl.Dense(16), tl.Relu(), tl.Dense(1)), tl.L2Loss(), batch


def language_model():
    """The model of the design: about 100 ms a step on 2 cores."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 1000, (8, 128)))
    batch = (tokens, tokens, torch.ones(8, 128))
    model = models.TransformerLM(
        vocab_size=1000, d_model=256, d_ff=1024, n_layers=4, n_heads=8, max_len=128, dropout=0.0
    )
    return model, tl.WeightedCategoryCrossEntropy(), batch


def forever(batch):
    while True:
        yield batch


def by_hand(model, loss, batch, n_steps):
    """The rival, and what it computed at last."""
    both = tl.Serial(model, loss)
    params = list(both.parameters())
    optimizer = optimizers.Adam(1e-4).bind(params)
    both.train()

    def run():
        for _ in range(n_steps):
            optimizer.zero_grad(set_to_none=True)
            value = both(batch)
            value.backward()
            optimizer.step()

    return run


def by_loop(model, loss, batch, n_steps, full, folder):
    """The Loop."""
    task = TrainTask(forever(batch), loss, optimizers.Adam(1e-4), n_steps_per_checkpoint=100)
    never = {} if full else {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}
    loop = Loop(
        model,
        task,
        eval_tasks=EvalTask(forever(batch), loss) if full else None,
        output_dir=folder if full else None,
        progress=False,
        **never,
    )

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            loop.run(n_steps)

    return run


def measure(name, make, n_steps, repeats, full):
    """Times both in turns and returns a row."""
    model, loss, batch = make()
    model.init(batch[0], rng=0)
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            loop = by_loop(model, loss, batch, n_steps, full, folder)
        hand = by_hand(twin, loss, batch, n_steps)
        loop(), hand()  # warm up
        equal = all(
            torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
        )
        times = {"loop": [], "hand": []}
        for repeat in range(repeats):
            order = [("loop", loop), ("hand", hand)]
            for which, run in order if repeat % 2 else order[::-1]:
                start = time.perf_counter()
                run()
                times[which].append((time.perf_counter() - start) / n_steps)
    more = [a - b for a, b in zip(times["loop"], times["hand"], strict=True)]
    hand_time, extra = statistics.median(times["hand"]), statistics.median(more)
    quartiles = statistics.quantiles(more, n=4)
    return {
        "model": name,
        "full": full,
        "n_steps": n_steps,
        "equal": equal,
        "by_hand_ms": 1e3 * hand_time,
        "loop_ms": 1e3 * statistics.median(times["loop"]),
        "extra_us": 1e6 * extra,
        "extra_us_quartiles": [1e6 * quartiles[0], 1e6 * quartiles[2]],
        "extra_percent": 100 * extra / hand_time,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, help="steps per repeat; by default 1000 and 10")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--full", action="store_true", help="checkpoints, evals, TensorBoard on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [
        measure("tiny MLP", tiny, args.steps or 1000, args.repeats, args.full),
        measure(
            "TransformerLM 256x4",
            language_model,
            args.steps or 10 + 90 * args.full,
            args.repeats if not args.full else 5,
            args.full,
        ),
    ]
    print(f"torch {torch.__version__}, {args.threads} threads, median of {args.repeats} pairs")
    print(f"{'model':22}{'by hand':>12}{'Loop':>12}{'extra':>12}{'(quartiles)':>20}{'':>9}  same")
    for r in rows:
        low, high = r["extra_us_quartiles"]
        print(
            f"{r['model']:22}{r['by_hand_ms']:9.3f} ms{r['loop_ms']:9.3f} ms{r['extra_us']:9.1f} us"
            f"{f'({low:.1f} to {high:.1f})':>20}{r['extra_percent']:8.2f}%  {r['equal']}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
