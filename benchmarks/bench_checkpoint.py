"""What a checkpoint costs beyond writing its bytes.

    python benchmarks/bench_checkpoint.py [--megabytes N] [--repeats N]

The rival is a bare `safetensors.torch.save_file` of the very tensors that the checkpoint holds
(weights and Adam's slots) into the same folder, which keeps no hash and is not synced to the disk;
and of loading, `load_file` with a copy of each tensor, since it only maps the file. All take turns
in one run. First it is shown that what is saved, in the foreground and behind the run, is the same.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._checkpoint import verify


def make_loop(folder, n_layers, width):
    """A stack of Dense layers that has taken one step, so that its slots are there."""
    batch = torch.randn(1, width), torch.zeros(1, width), torch.ones(1, width)

    def forever():
        while True:
            yield batch

    task = TrainTask(forever(), tl.L2Loss(), optimizers.Adam(1e-4))
    never = {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}
    model = tl.Serial(*(tl.Dense(width) for _ in range(n_layers)))
    loop = Loop(model, task, output_dir=folder, progress=False, random_seed=0, **never)
    loop.run(1)
    return loop


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=200, help="of weights and slots together")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", help="where to write; by default the folder for temporaries")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width = 1024
    n_layers = max(1, args.megabytes * 10**6 // (3 * 4 * width * width))

    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        with contextlib.redirect_stdout(io.StringIO()):
            loop = make_loop(os.path.join(place, "run"), n_layers, width)
        bare = os.path.join(place, "bare.safetensors")
        parts, _ = loop._saver._members.take()
        tensors = {f"{part}.{k}": v for part, ts in parts.items() for k, v in ts.items()}
        n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
        path = os.path.join(place, "run")

        def save_behind():
            loop.save_checkpoint("behind", blocking=False)

        def load():
            with contextlib.redirect_stdout(io.StringIO()):
                loop.load_checkpoint()

        rounds = {
            "bare save_file": lambda: save_file(tensors, bare),
            "save": lambda: loop.save_checkpoint("model"),
            "background: until training goes on": save_behind,
            "background: until it is saved": loop._saver.wait,
            "bare load_file": lambda: [t.clone() for t in load_file(bare).values()],
            "load": load,
        }
        for action in rounds.values():
            action()  # warm up
        equal = are_equal(path, "model", "behind")
        times = {name: [] for name in rounds}
        for _ in range(args.repeats):
            for name, action in rounds.items():
                times[name].append(timed(action))

    ratios = {
        "save / bare save_file": (rounds_of(times, "save", "bare save_file"), "at most 2.5"),
        "stall of a background save / save": (
            rounds_of(times, "background: until training goes on", "save"),
            "at most 0.1",
        ),
        "load / bare load_file": (rounds_of(times, "load", "bare load_file"), ""),
    }
    print(f"torch {torch.__version__}, {args.threads} threads, {n_bytes / 1e6:.0f} MB")
    print(f"saved as it was, in the foreground and behind: {equal}")
    for name, values in times.items():
        print(f"{name:40}{1e3 * statistics.median(values):10.1f} ms")
    row = {"megabytes": n_bytes / 1e6, "equal": equal}
    for name, (values, aim) in ratios.items():
        low, _, high = statistics.quantiles(values, n=4)
        middle = statistics.median(values)
        row[name] = [low, middle, high]
        print(f"{name:40}{middle:10.3f}    ({low:.3f} to {high:.3f})  {aim}")
    row |= {f"{k} (ms)": 1e3 * statistics.median(v) for k, v in times.items()}
    print(json.dumps(row))


def rounds_of(times, one, other):
    return [a / b for a, b in zip(times[one], times[other], strict=True)]


def are_equal(path, one, other):
    """Whether two checkpoints of one folder hold the same."""
    mine, theirs = verify.contents(path, one), verify.contents(path, other)
    same = [verify.is_equal(mine[name], theirs[name]) for name in mine]
    return mine.keys() == theirs.keys() and all(same)


if __name__ == "__main__":
    main()
