"""How much memory, and time, a step takes with and without what saves memory.

    python benchmarks/bench_memory.py [--only NAME] [--holes]

Each case is measured in a process of its own, and prints one line of JSON: by how much the peak
resident size grows over the size with the model alone (on CUDA: of what is allocated), or how long
a step takes. Without `--case`, all of them run one after another, and a table is printed.

`chunks`: 4,096 positions (8 x 512), 50,000 words, vectors of 256; Embedding and Dense alone, since
what is measured is the last layer and the loss; SGD, which has no slots. `loss_chunk_size=256`
against 0. It is shown that weights after a step are equal to rounding; memory is measured in one
process each, and time in one process, in turn.

`depth`: 8, 16 and 32 half residuals of vectors of 256 and 1,024, on 16 x 512 positions, with SGD:
how much the growth grows with a block, weights and their gradients included. `plain` spells them
with ordinary layers, `reversible` with reversible ones, `blocks` has these under
`use_memory_efficient_trainer=True`. Aim: at most a tenth of the plain spelling's.

`gradients`: a TransformerLM of 102 million weights on 32 positions, so that a step adds little but
gradients; `use_memory_efficient_trainer=True` against False. Aim: at most the gradients of the two
largest blocks. Counted exactly, and seen in the process's size.

Where glibc allocates, a process keeps holes between tensors that came and went, some for each
block. They are left out of account by MALLOC_MMAP_THRESHOLD_, with which large tensors are given
back at once; `--holes` leaves it unset.

`host` (on CUDA alone): the same model on 4 x 512 positions with Adam;
`use_memory_efficient_trainer=2`. Aim: at its peak the device holds at most three blocks' weights
and slots and a block's activations.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import Loop, TrainTask

N_WORDS, D_MODEL, BATCH, LENGTH, CHUNK = 50_000, 256, 8, 512, 256
DEPTHS = (8, 16, 32)
AIMS = {"growth": 0.15, "time": 1.25, "depth": 0.1}
NEVER = {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}


def quiet_loop(model, data, optimizer, **kwargs):
    """A Loop that takes steps and nothing else."""
    task = TrainTask(data, tl.WeightedCategoryCrossEntropy(), optimizer)
    with contextlib.redirect_stdout(io.StringIO()):
        return Loop(model, task, progress=False, random_seed=0, **NEVER, **kwargs)


def batches(n_words, batch, length):
    """The same random batch for ever."""
    g = torch.Generator().manual_seed(0)
    x, targets = (torch.randint(0, n_words, (batch, length), generator=g) for _ in range(2))
    weights = torch.rand(batch, length, generator=g)
    while True:
        yield x, targets, weights


def chunk_loop(chunk_size):
    """A Loop over a model that is nearly all head."""
    model = tl.Serial(tl.Embedding(N_WORDS, D_MODEL), tl.Dense(N_WORDS))
    data = batches(N_WORDS, BATCH, LENGTH)
    return quiet_loop(model, data, optimizers.SGD(0.1), loss_chunk_size=chunk_size)


def depth_loop(spelling, n):
    """A Loop over n half residuals."""

    def half():
        f = tl.LayerNorm(), tl.Dense(4 * D_MODEL), tl.Relu(), tl.Dense(D_MODEL)
        if spelling == "plain":
            return [tl.Select([1, 0, 1]), tl.Serial(*f), tl.Add(), tl.Swap()]
        return [tl.ReversibleHalfResidual(*f), tl.ReversibleSwap()]

    model = tl.Serial(
        tl.Embedding(16, D_MODEL), tl.Dup(), [half() for _ in range(n)], tl.Add(), tl.Dense(16)
    )
    mode = spelling == "blocks"
    data = batches(16, 16, LENGTH)
    return quiet_loop(model, data, optimizers.SGD(0.1), use_memory_efficient_trainer=mode)


def wide_loop(mode, batch, length, optimizer):
    """A Loop over a TransformerLM of 102 million weights."""
    model = models.TransformerLM(1000, 1024, 4096, 8, 8, max_len=512, dropout=0.0)
    return quiet_loop(
        model, batches(1000, batch, length), optimizer, use_memory_efficient_trainer=mode
    )


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


def memory_of(loop):
    """Two steps: in the second, everything that is kept between steps is there."""
    alone = size_now()
    loop.run(2)
    return {"alone": alone, "growth": peak() - alone}


def gradients_of(mode):
    """Also how many bytes of gradients there are at most when weights are updated."""
    loop = wide_loop(mode, 1, 32, optimizers.SGD(0.1))
    params, alive = list(loop.model.parameters()), []

    update = loop.optimizers[0].step

    def look():
        alive.append(sum(p.grad.nbytes for p in params if p.grad is not None))
        return update()

    loop.optimizers[0].step = look
    found = memory_of(loop)
    blocks = loop._parts.trainers[0]._blocks
    sizes = sorted(sum(p.nbytes for p in due) for due in blocks.params_due()) if blocks else [0]
    return {**found, "gradients": max(alive), "two blocks": sum(sizes[-2:])}


def host_of(mode):
    """On a GPU: the most that is allocated there, and the time of a step."""
    loop = wide_loop(mode, 4, 512, optimizers.Adam(0.0001))
    loop.run(2)
    torch.cuda.reset_peak_memory_stats()
    times = [step_time(loop) for _ in range(5)]
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in loop.model.sublayers]
    return {
        "peak": peak(),
        "step": statistics.median(times),
        "three blocks": 3 * sum(sorted(sizes)[-3:]),  # a weight, and two slots
    }


def time_of_chunks(repeats):
    """Steps of both in turn, after one each that is not counted but compared."""
    loops = {"whole": chunk_loop(0), "chunks": chunk_loop(CHUNK)}
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
    "chunks-whole": lambda repeats: memory_of(chunk_loop(0)),
    "chunks-chunks": lambda repeats: memory_of(chunk_loop(CHUNK)),
    "chunks-time": time_of_chunks,
    **{
        f"depth-{spelling}-{n}": lambda repeats, s=spelling, n=n: memory_of(depth_loop(s, n))
        for spelling in ("plain", "reversible", "blocks")
        for n in DEPTHS
    },
    "gradients-False": lambda repeats: gradients_of(False),
    "gradients-True": lambda repeats: gradients_of(True),
}
if torch.cuda.is_available():
    CASES |= {f"host-{mode}": lambda repeats, m=mode: host_of(m) for mode in (False, True, 2)}


def measured(name, args):
    """What a case prints in a process of its own."""
    command = [sys.executable, __file__, "--case", name, "--repeats", str(args.repeats)]
    command += ["--threads", str(args.threads)]
    env = dict(os.environ)
    if not args.holes:
        env["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=env).stdout
    return json.loads(output.splitlines()[-1])


def show_chunks(rows):
    whole, chunks, timed = (rows[f"chunks-{name}"] for name in ("whole", "chunks", "time"))
    print(f"\nchunks: {BATCH} x {LENGTH} positions, {N_WORDS} words, chunks of {CHUNK}")
    print(f"largest difference of a weight: {timed['largest difference of a weight']:.1e}")
    print(f"{'':10}{'model alone':>14}{'growth':>14}{'a step':>14}")
    for name, row in (("whole", whole), ("chunks", chunks)):
        sizes = f"{row['alone'] / 1e6:11.0f} MB{row['growth'] / 1e6:11.0f} MB"
        print(f"{name:10}{sizes}{timed[f'{name} (ms)']:11.0f} ms")
    share = chunks["growth"] / whole["growth"]
    low, middle, high = timed["time"]
    print(f"{'ratio':10}{'':14}{share:14.3f}{middle:14.3f}    ({low:.3f} to {high:.3f})")
    print(f"{'aim':10}{'':14}{AIMS['growth']:14}{AIMS['time']:14}")


def show_depth(rows):
    print(f"\ndepth: growth of {', '.join(map(str, DEPTHS))} blocks, and a block's share")
    shares = {}
    for spelling in ("plain", "reversible", "blocks"):
        grown = [rows[f"depth-{spelling}-{n}"]["growth"] / 1e6 for n in DEPTHS]
        shares[spelling] = (grown[-1] - grown[0]) / (DEPTHS[-1] - DEPTHS[0])
        sizes = "".join(f"{g:11.0f} MB" for g in grown)
        ratio = shares[spelling] / shares["plain"]
        print(f"{spelling:10}{sizes}{shares[spelling]:11.2f} MB    {ratio:.3f} of plain")
    print(f"aim: {AIMS['depth']}")


def show_gradients(rows):
    print("\ngradients: alive at most, growth of the process")
    for mode in (False, True):
        row = rows[f"gradients-{mode}"]
        print(f"{mode!s:10}{row['gradients'] / 1e6:11.0f} MB{row['growth'] / 1e6:11.0f} MB")
    print(f"aim: {rows['gradients-True']['two blocks'] / 1e6:.0f} MB, the two largest blocks'")


def show_host(rows):
    print("\nhost: allocated on the device at most, a step")
    for mode in (False, True, 2):
        row = rows[f"host-{mode}"]
        print(f"{mode!s:10}{row['peak'] / 1e6:11.0f} MB{1e3 * row['step']:11.1f} ms")
    print(f"three blocks' weights and slots: {rows['host-2']['three blocks'] / 1e6:.0f} MB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=list(CASES), help="one alone, in this process")
    parser.add_argument("--only", default="", help="the cases whose names begin so")
    parser.add_argument("--holes", action="store_true", help="with the allocator as it is")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        print(json.dumps({"case": args.case, **CASES[args.case](args.repeats)}))
        return

    rows = {name: measured(name, args) for name in CASES if name.startswith(args.only)}
    print(f"torch {torch.__version__}, {args.threads} threads")
    shows = {
        "chunks": show_chunks,
        "depth": show_depth,
        "gradients": show_gradients,
        "host": show_host,
    }
    for name, show in shows.items():
        if any(row.startswith(name) for row in rows):
            show(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
