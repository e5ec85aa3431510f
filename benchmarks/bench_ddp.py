"""What a step of `Loop.run` costs on several processes, and what they send each other.

    python benchmarks/bench_ddp.py [--processes 1 2] [--steps N] [--repeats N] [--tiny]

For each number of processes, one launch of torchrun: one thread each on a CPU, one GPU each where
there are some. Each process trains on batches of the same size, so more processes do more work. In
turns, in the same processes, run

- `Loop`,
- by hand: DistributedDataParallel, forward, backward, step; both end with the same weights,
- apart: the same by hand, where every process keeps to itself.

What "by hand" takes longer than "apart" is communication that backward passes do not hide. Bytes
are counted where they are handed over: gradients in DDP's communication hook, all else in
torch.distributed's functions. Where there is a GPU, host synchronisations of Loop's steps are
counted too; the aim is 0.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import Loop, TrainTask


def language_model(is_tiny):
    """The model of the design, or a small one to try this script with."""
    width, n_layers = (32, 1) if is_tiny else (256, 4)
    model = models.TransformerLM(
        1000, width, 4 * width, n_layers, n_heads=8, max_len=128, dropout=0.0
    )
    return model, tl.WeightedCategoryCrossEntropy()


def batches(rank, device):
    rng = np.random.default_rng(rank)
    tokens = torch.from_numpy(rng.integers(0, 1000, (8, 128))).to(device)
    while True:
        yield tokens, tokens, torch.ones(8, 128, device=device)


def make_loop(model, loss, rank, device):
    return Loop(
        model,
        TrainTask(batches(rank, device), loss, optimizers.Adam(1e-4)),
        checkpoint_at=lambda step: False,
        eval_at=lambda step: False,
        random_seed=0,
        progress=False,
        device=device,
    )


def by_hand(model, loss, rank, device, over_ranks):
    """Returns what takes n steps."""
    both = tl.Serial(model, loss).to(device)
    forward = torch.nn.parallel.DistributedDataParallel(both) if over_ranks else both
    optimizer = optimizers.Adam(1e-4).bind(list(both.parameters()))
    both.train()
    data = batches(rank, device)

    def run(n_steps):
        for _ in range(n_steps):
            optimizer.zero_grad(set_to_none=True)
            forward(next(data)).backward()
            optimizer.step()

    return run


def count_bytes(loop, n_steps):
    """Returns bytes of gradients, and of all else, that a step hands over to other ranks."""
    gradients, else_ = [0], [0]
    real = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}

    def hook(state, bucket):
        gradients[0] += bucket.buffer().nbytes
        work = real["all_reduce"](bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    def counting(name):
        def call(tensor, *args, **kwargs):
            else_[0] += tensor.nbytes
            return real[name](tensor, *args, **kwargs)

        return call

    loop._parts.trainers[0]._forward.register_comm_hook(None, hook)
    try:
        for name in real:
            setattr(dist, name, counting(name))
        loop.run(1)
        first = [gradients[0], else_[0]]
        loop.run(1 + n_steps)
        second = [gradients[0] - first[0], else_[0] - first[1]]
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
    # What a run exchanges at its beginning and end is in both.
    return [(b - a) / n_steps for a, b in zip(first, second, strict=True)]


def count_syncs(loop, n_steps):
    """Returns how often a step waits for the GPU."""

    def run(n):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loop.run(n)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message).lower() for w in caught)

    few = run(1)
    return (run(1 + n_steps) - few) / n_steps


def work(args):
    """Measures in the processes of one launch; rank 0 prints a row of JSON."""
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    model, loss = language_model(args.tiny)
    model.init(next(batches(rank, "cpu"))[0], rng=0)
    twins = [copy.deepcopy(model) for _ in range(3)]
    with contextlib.redirect_stdout(io.StringIO()):
        loop = make_loop(model, loss, rank, device)
        counted = make_loop(twins[0], loss, rank, device)
        ways = {
            "loop": loop.run,
            "hand": by_hand(twins[1], loss, rank, device, over_ranks=size > 1),
            "apart": by_hand(twins[2], loss, rank, device, over_ranks=False),
        }
        for run in ways.values():
            run(3)
        pairs = zip(model.parameters(), twins[1].parameters(), strict=True)
        equal = all(torch.equal(a, b) for a, b in pairs)
        times = {name: [] for name in ways}
        for repeat in range(args.repeats):
            names = list(ways) if repeat % 2 else list(ways)[::-1]
            for name in names:
                if size > 1:
                    dist.barrier()
                synchronize(on_gpu)
                start = time.perf_counter()
                ways[name](args.steps)
                synchronize(on_gpu)
                times[name].append((time.perf_counter() - start) / args.steps)
        gradients, else_ = count_bytes(counted, 3) if size > 1 else (0, 0)
        syncs = count_syncs(loop, args.steps) if on_gpu else None
    ratios = [a / b for a, b in zip(times["loop"], times["hand"], strict=True)]
    sent = [a - b for a, b in zip(times["hand"], times["apart"], strict=True)]
    row = {
        "processes": size,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "equal": equal,
        **{f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "communication_ms": 1e3 * statistics.median(sent) if size > 1 else 0.0,
        "gradient_bytes": sum(p.nbytes for p in model.parameters()),
        "gradient_bytes_sent": gradients,
        "other_bytes_sent": else_,
        "host_syncs_per_step": syncs,
    }
    if rank == 0:
        print(json.dumps(row))


def synchronize(on_gpu):
    if on_gpu:
        torch.cuda.synchronize()


def launch(n, argv):
    """Returns the row of a launch of n processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={n}", __file__, "--work", *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, default=4, help="steps per repeat")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try this out")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    argv = ["--repeats", str(args.repeats), "--steps", str(args.steps)]
    rows = [launch(n, argv + ["--tiny"] * args.tiny) for n in args.processes]
    print(f"torch {torch.__version__}, {rows[0]['device']}, median of {args.repeats} rounds")
    print(
        f"{'processes':>9}{'Loop':>12}{'by hand':>12}{'ratio (quartiles)':>26}{'apart':>12}"
        f"{'waits':>11}{'sent/step':>12}{'gradients':>12}{'else':>9}{'syncs':>7}  same"
    )
    for r in rows:
        low, high = r["ratio_quartiles"]
        syncs = "-" if r["host_syncs_per_step"] is None else f"{r['host_syncs_per_step']:.1f}"
        print(
            f"{r['processes']:9}{r['loop_ms']:9.2f} ms{r['hand_ms']:9.2f} ms"
            f"{r['ratio']:12.3f} {f'({low:.3f}-{high:.3f})':>13}{r['apart_ms']:9.2f} ms"
            f"{r['communication_ms']:8.2f} ms{r['gradient_bytes_sent'] / 1e6:9.2f} MB"
            f"{r['gradient_bytes'] / 1e6:9.2f} MB{r['other_bytes_sent']:7.0f} B{syncs:>7}"
            f"  {r['equal']}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
