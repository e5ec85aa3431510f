"""What a save costs late in a long run, against one early in it.

    python benchmarks/bench_history.py [--evals N] [--repeats N]

Two runs of one tiny model, whose history is all that differs: 1,000 evals in one, 1,000,000 in the
other, of four metrics. They take turns: each records one more eval and saves. Bytes are those that
a save wrote, or appended, to files of checkpoints. It is shown, too, that both histories come back
from their folders as they were.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import tempfile
import time

import torch
from torch import nn

from trax_torch.supervised import EvalTask, Loop, TrainTask

NAMES = ["a", "b", "c", "d"]


def make_loop(folder):
    torch.manual_seed(0)
    model, data = nn.Linear(4, 1), [(torch.randn(4, 4), torch.randn(4, 1))]
    task = TrainTask(data, nn.MSELoss(), torch.optim.Adam(model.parameters()))
    evals = EvalTask(data, [nn.MSELoss()] * len(NAMES), NAMES)
    loop = Loop(model, task, eval_tasks=evals, output_dir=folder, progress=False, random_seed=0)
    loop.run(1)
    return loop


def record_evals(loop, steps):
    """Adds evals to the history, as `Loop` does."""
    for name in NAMES:
        for step in steps:
            loop.history.append("eval", f"metrics/{name}", step, step / 7)


def sizes(folder):
    """The sizes of a folder's files by name; those that a save makes have new names."""
    return {x.name: x.stat().st_size for x in os.scandir(folder) if x.is_file()}


def save(loop):
    """Records one more eval and saves; returns the seconds of the save, and its bytes."""
    record_evals(loop, [123_456_789])
    before = sizes(loop.output_dir)
    start, cpu = time.perf_counter(), time.process_time()
    loop.save_checkpoint("model")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = sizes(loop.output_dir)
    grown = sum(n - before.get(name, 0) for name, n in after.items() if name != "model.json")
    return seconds, cpu, grown + after["model.json"]


def comes_back(loop):
    other = make_loop(None)
    other.load_checkpoint(loop.output_dir)
    return other.history.to_dict() == loop.history.to_dict()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--evals", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--few", type=int, default=1_000, help="of the short one")
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        loops = {}
        for n in (args.few, args.evals):
            with contextlib.redirect_stdout(io.StringIO()):
                loops[n] = make_loop(os.path.join(place, str(n)))
            record_evals(loops[n], range(2, n + 1))
            loops[n].save_checkpoint("model")
        gc.collect()
        found = {n: [] for n in loops}
        for _ in range(args.repeats):
            for n, loop in loops.items():
                found[n].append(save(loop))
        size = sum(v for k, v in sizes(os.path.join(place, str(args.evals))).items() if "hist" in k)
        with contextlib.redirect_stdout(io.StringIO()):
            equal = all(map(comes_back, loops.values()))

    few, many = (list(zip(*found[n], strict=True)) for n in (args.few, args.evals))
    print(f"torch {torch.__version__}, {args.few:,} and {args.evals:,} evals, {size / 1e6:.0f} MB")
    print(f"histories come back as they were: {equal}")
    row = {"evals": [args.few, args.evals], "equal": equal, "history (MB)": size / 1e6}
    for i, (what, unit, scale) in enumerate(
        (("seconds of a save", "ms", 1e3), ("CPU of a save", "ms", 1e3), ("bytes of a save", "", 1))
    ):
        pairs = zip(many[i], few[i], strict=True)
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        short, long = scale * statistics.median(few[i]), scale * statistics.median(many[i])
        print(
            f"{what:20}{short:12.2f} {unit:3}{long:12.2f} {unit:3} ratio {middle:.3f} "
            f"({low:.3f} to {high:.3f}), of medians {long / short:.3f}  at most 1.1"
        )
        row[what] = {"few": short, "many": long, "ratio": middle, "of medians": long / short}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
