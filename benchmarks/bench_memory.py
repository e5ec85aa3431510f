"""How much memory, and time, a step takes with and without what saves memory.

    python benchmarks/bench_memory.py [--case NAME] [--repeats N]

Each case is measured in a process of its own, and prints one line of JSON: by how much the peak
resident size grows over the size with the model alone (on CUDA: of what is allocated), or how long
a step takes. Without `--case`, all of them run one after another, and a table is printed.

`chunks`: 4,096 positions (8 x 512), 50,000 words, vectors of 256; Embedding and Dense alone, since
what is measured is the last layer and the loss; SGD, which has no slots. `loss_chunk_size=256`
against 0. It is shown that weights after a step are equal to rounding; memory is measured in one
process each, and time in one process, in turn.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask

N_WORDS, D_MODEL, BATCH, LENGTH, CHUNK = 50_000, 256, 8, 512, 256
AIMS = {"growth": 0.15, "time": 1.25}


def make_loop(chunk_size):
    """A Loop over a model that is nearly all head, and nothing else than steps."""
    g = torch.Generator().manual_seed(0)
    x, targets = (torch.randint(0, N_WORDS, (BATCH, LENGTH), generator=g) for _ in range(2))
    weights = torch.rand(BATCH, LENGTH, generator=g)

    def forever():
        while True:
            yield x, targets, weights

    task = TrainTask(forever(), tl.WeightedCategoryCrossEntropy(), optimizers.SGD(0.1))
    model = tl.Serial(tl.Embedding(N_WORDS, D_MODEL), tl.Dense(N_WORDS))
    never = {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}
    with contextlib.redirect_stdout(io.StringIO()):
        return Loop(model, task, progress=False, random_seed=0, loss_chunk_size=chunk_size, **never)


def peak():
    """The largest size so far, in bytes: of what is allocated on CUDA, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def size_now():
    """The size that the process has, in bytes, or what is allocated on CUDA."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def step_time(loop):
    start = time.perf_counter()
    loop.run(1)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory_of(chunk_size):
    """Two steps: in the second, everything that is kept between steps is there."""
    loop = make_loop(chunk_size)
    alone = size_now()
    loop.run(2)
    return {"alone": alone, "growth": peak() - alone}


def time_of_chunks(repeats):
    """Steps of both in turn, after one each that is not counted but compared."""
    loops = {"whole": make_loop(0), "chunks": make_loop(CHUNK)}
    for loop in loops.values():
        loop.run(1)
    one, other = ([p.detach() for p in loop.model.parameters()] for loop in loops.values())
    difference = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    del one, other
    times = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            times[name].append(step_time(loop))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    return {
        "largest difference of a weight": difference,
        **{f"{name} (ms)": 1e3 * statistics.median(values) for name, values in times.items()},
        "time": statistics.quantiles(ratios, n=4),
    }


CASES = {
    "whole": lambda repeats: memory_of(0),
    "chunks": lambda repeats: memory_of(CHUNK),
    "chunks-time": time_of_chunks,
}


def measured(name, args):
    """What a case prints in a process of its own."""
    command = [sys.executable, __file__, "--case", name, "--repeats", str(args.repeats)]
    command += ["--threads", str(args.threads)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=list(CASES), help="one alone, in this process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        print(json.dumps({"case": args.case, **CASES[args.case](args.repeats)}))
        return

    rows = {name: measured(name, args) for name in CASES}
    whole, chunks, timed = rows["whole"], rows["chunks"], rows["chunks-time"]
    print(f"torch {torch.__version__}, {args.threads} threads, {BATCH} x {LENGTH} positions")
    print(f"{N_WORDS} words, d_model {D_MODEL}, chunks of {CHUNK}")
    print(f"largest difference of a weight: {timed['largest difference of a weight']:.1e}")
    print(f"{'':10}{'model alone':>14}{'growth':>14}{'a step':>14}")
    for name, row in (("whole", whole), ("chunks", chunks)):
        sizes = f"{row['alone'] / 1e6:11.0f} MB{row['growth'] / 1e6:11.0f} MB"
        print(f"{name:10}{sizes}{timed[f'{name} (ms)']:11.0f} ms")
    share = chunks["growth"] / whole["growth"]
    low, middle, high = timed["time"]
    print(f"{'ratio':10}{'':14}{share:14.3f}{middle:14.3f}    ({low:.3f} to {high:.3f})")
    print(f"{'aim':10}{'':14}{AIMS['growth']:14}{AIMS['time']:14}")
    print(json.dumps({**rows, "growth": share, "time": middle}))


if __name__ == "__main__":
    main()
