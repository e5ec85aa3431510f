"""What the first compiled step of decoding costs, from empty caches and in a second process.

    python benchmarks/bench_cold_start.py [--model small|gpt2|all] [--runs 3] [--beams 1] [--int8]

Each run is a new process whose caches are new folders, those of torch's compiled headers included,
and then another one that finds them. `--ways kept` keeps the step in a folder, from which the
second loads it; `whole` is the step without blocks that are compiled once for all. A model is
built, and then `decoding.warmup` is timed: importing the compiler is in it, importing torch is not.
Beside the seconds on the clock are those of processors, the C++ compiler's included, which depend
less on what else runs on the machine; loads are given. Tokens are shown to be those of the
uncompiled model. A table of medians for people, a last line of JSON for scripts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

N_TOKENS = 12


def child(args):
    """Warms one model up, and prints what that took."""
    import bench_decoding as bench
    import torch

    from trax_torch.supervised import decoding
    from trax_torch.supervised._generation import compiled_step

    torch.set_num_threads(args.threads)
    if args.way == "whole":
        compiled_step.rows_of_blocks = lambda layer: []
    kept = {"folder": os.path.join(os.environ["TMPDIR"], "kept")} if args.way == "kept" else {}
    device = torch.device("cpu")
    shape = next(shape for shape in bench.SHAPES if shape.name == args.model)
    model = bench.ours(shape, device, torch.float32)
    if args.int8:
        model = decoding.quantize(model)
    prompt = bench.random_prompt(shape, 1, 8, device)
    want = bench.run_ours(model, False, prompt, N_TOKENS, args.beams)
    start, before = time.perf_counter(), os.times()
    decoding.warmup(model, max_length=164, n_beams=args.beams, **kept)
    seconds, after = time.perf_counter() - start, os.times()
    same = torch.equal(bench.run_ours(model, True, prompt, N_TOKENS, args.beams), want)
    python = after.user + after.system - before.user - before.system
    compiler = after.children_user + after.children_system
    compiler -= before.children_user + before.children_system
    print(json.dumps({"wall": seconds, "python": python, "compiler": compiler, "same": same}))


def measure(args, model, way, folder):
    """Returns what a new process took, whose caches lie in a folder."""
    settings = {"TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"), "TMPDIR": folder}
    command = [sys.executable, __file__, "--child", "--model", model, "--way", way]
    command += ["--beams", str(args.beams), "--threads", str(args.threads)]
    command += ["--int8"] if args.int8 else []
    done = subprocess.run(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.strip().splitlines()[-1])
    if not result["same"]:
        raise SystemExit(f"{model}, {way}: compiled tokens differ from uncompiled ones.")
    return result


def parse():
    parser = argparse.ArgumentParser(
        description="Seconds of the first compiled step, cold and in a second process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="all", help="small, gpt2, or all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--int8", action="store_true", help="of a quantized model")
    parser.add_argument("--ways", nargs="+", default=["blocks"], help="blocks, kept, whole")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--way", default="blocks", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse()
    if args.child:
        child(args)
        return
    names = ("small", "gpt2") if args.model == "all" else (args.model,)
    found = {}
    loads = [os.getloadavg()[0]]
    print("seconds; medians of", args.runs, "runs; of processors: Python's, and the C++ compiler's")
    print(f"{'model':8}{'way':8}{'process':10}{'wall':>8}{'Python':>8}{'C++':>8}  (all walls)")
    for run in range(args.runs):
        for name in names:
            for way in args.ways[:: 1 if run % 2 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    for process in ("first", "second"):
                        result = measure(args, name, way, folder)
                        found.setdefault((name, way, process), []).append(result)
        loads.append(os.getloadavg()[0])
    rows = []
    for (name, way, process), results in sorted(found.items()):
        row = {key: statistics.median(r[key] for r in results) for key in results[0]}
        walls = [r["wall"] for r in results]
        rows.append({"model": name, "way": way, "process": process, **row, "walls": walls})
        times = "".join(f"{row[key]:8.1f}" for key in ("wall", "python", "compiler"))
        print(f"{name:8}{way:8}{process:10}{times}  {[round(wall, 1) for wall in walls]}")
    import torch

    machine = {"processor": platform.processor(), "loads": loads, "torch": torch.__version__}
    print(json.dumps({**machine, "beams": args.beams, "int8": args.int8, "rows": rows}))


if __name__ == "__main__":
    main()
