"""What saving and loading in pieces costs each rank, against bringing whole tensors together.

    python benchmarks/bench_sharded.py [--megabytes N] [--repeats N] [--ranks N]

The rival is what `strategy="fsdp"` did before: every rank brings every tensor together, the chief
writes them, and sends all of them to all ranks when they are loaded. Ranks are processes of this
machine, with gloo. Memory is the peak of a process's resident set beyond what it had before, and is
told in shares: the bytes of weights and Adam's slots over the number of ranks. Peaks need Linux.
First it is shown that what is loaded either way is the same.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import random
import socket
import statistics
import tempfile
import time
from unittest import mock

import torch
import torch.multiprocessing as mp

from trax_torch import _distributed, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._checkpoint import Members, shards, storage, verify

AIMS = {
    "save: peak memory (shares)": "at most 1.15",
    "background save: peak memory (shares)": "at most 1.15",
    "load: peak memory (shares)": "at most 1.15",
    "bytes written by a rank (shares)": "0.95 to 1.05",
    "save / gathered save": "at most 0.4",
    "background save / gathered save": "at most 0.4",
}
WIDTH = 1024


def make_loop(folder, n_layers, n_steps=0):
    """A stack of Dense layers of which each rank has a part."""
    torch.manual_seed(0)
    batch = torch.randn(4, WIDTH), torch.zeros(4, WIDTH), torch.ones(4, WIDTH)

    def forever():
        while True:
            yield batch

    task = TrainTask(forever(), tl.L2Loss(), optimizers.Adam(1e-4))
    never = {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}
    model = tl.Serial(*(tl.Dense(WIDTH) for _ in range(n_layers)))
    settings = {"strategy": "fsdp", "device": "cpu", "progress": False, "random_seed": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        loop = Loop(model, task, output_dir=folder, save_at_end=False, **settings, **never)
        loop.run(n_steps)
    return loop


def gather_and_save(loop, name):
    """Saves as it was done before: whole tensors on every rank, files by the chief."""
    checkpointer = loop._saver
    parts, _ = checkpointer._members.take()
    whole = {
        part: {k: _distributed.whole(tensor) for k, tensor in tensors.items()}
        for part, tensors in parts.items()
    }
    info = storage.read_manifest(loop.output_dir, "model")["info"]
    checkpointer._saver.save([name], whole, info, loop.history, blocking=True)


def measured(action):
    """Returns the seconds of an action, and the bytes by which memory grew meanwhile at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    torch.distributed.barrier()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        action()
    return time.perf_counter() - start, memory("VmHWM") - before


def memory(name):
    with open("/proc/self/status") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith(name))


def free_port():
    """Returns a port that nobody listens at, below those that the system hands out by itself."""
    for port in random.sample(range(12000, 32000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as stores do
            s.bind(("", port))
            return port
    raise OSError("of a hundred ports none was free")


def told(values, quartiles=True):
    """Returns a median, and in brackets quartiles, or the least and most; these of two values."""
    low, high = min(values), max(values)
    if quartiles and len(values) > 2:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):8.3f}  ({low:.3f} to {high:.3f})"


def work(rank, args, place, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    n_layers = max(1, args.megabytes * 10**6 // (3 * 4 * WIDTH * WIDTH))
    run = os.path.join(place, "run")
    loop = make_loop(run, n_layers, n_steps=1)
    found = {}
    for _ in range(args.repeats + 1):
        rounds = {
            "save": lambda: loop.save_checkpoint("model"),
            "gathered save": lambda: gather_and_save(loop, "gathered"),
            "background save": lambda: loop.save_checkpoint("behind", blocking=False),
        }
        for name, action in rounds.items():
            seconds, n_bytes = measured(action)
            _, later = measured(loop._saver.wait)
            found.setdefault(name, []).append((seconds, n_bytes + max(later, 0)))
        for name, basename in (("load", "model"), ("gathered load", "gathered")):
            fresh = make_loop(None, n_layers)
            with contextlib.ExitStack() as stack:
                if name != "load":  # all of it is read by the chief, and sent to all
                    way = {"return_value": shards.like_nothing}
                    stack.enter_context(mock.patch.object(Members, "like", **way))
                result = measured(lambda b=basename, f=fresh: f.load_checkpoint(run, b))
            found.setdefault(name, []).append(result)
            del fresh
    if rank == 0:
        found["equal"] = are_equal(run)
    with open(os.path.join(place, f"{rank}.json"), "w") as f:
        json.dump(found, f)


def are_equal(run):
    """Whether what was saved in pieces, in both ways, is what was brought together."""
    parts = [storage.read(run, name)[0] for name in ("gathered", "model", "behind")]
    return all(
        verify.is_equal(tensor, other[part][name])
        for part in ("weights", "opt_slots0")
        for name, tensor in parts[0][part].items()
        for other in parts[1:]
    )


def written(run, n_ranks):
    """How many bytes each rank wrote of 'model'."""
    manifest = storage.read_manifest(run, "model")
    counts = [0] * n_ranks
    counts[0] += sum(entry["size"] for entry in manifest["files"].values())
    for part in manifest["shards"].values():
        for entry in part["files"]:
            counts[int(entry["name"].split(".rank")[1].split(".")[0])] += entry["size"]
    return counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights and slots together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--folder", help="where to write; by default the folder for temporaries")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        mp.spawn(work, (args, place, free_port()), nprocs=args.ranks)
        ranks = []
        for rank in range(args.ranks):
            with open(os.path.join(place, f"{rank}.json")) as f:
                ranks.append(json.load(f))
        run = os.path.join(place, "run")
        counts = written(run, args.ranks)
        parts, _ = storage.read(run, "model")
    whole = sum(t.nbytes for p in ("weights", "opt_slots0") for t in parts[p].values())
    share = whole / args.ranks

    print(f"torch {torch.__version__}, {args.ranks} ranks, {whole / 1e6:.0f} MB in all")
    print(f"saved in pieces as brought together: {ranks[0]['equal']}")
    rows = {"bytes written by a rank (shares)": [n / share for n in counts]}
    names = ("save", "background save", "gathered save", "load", "gathered load")
    for name in names:  # the rank with the most
        peaks = [max(each[name][i][1] for each in ranks) for i in range(args.repeats + 1)]
        # A background save's copy is made in the memory of the one before, so the first counts.
        peaks = peaks[:1] if name == "background save" else peaks[1:]
        rows[f"{name}: peak memory (shares)"] = [n / share for n in peaks]
    seconds = {
        name: [max(each[name][i][0] for each in ranks) for i in range(1, args.repeats + 1)]
        for name in names  # the first warms up
    }
    for name, rival in (
        *(("save", "gathered save"), ("background save", "gathered save")),
        ("load", "gathered load"),
    ):
        rows[f"{name} / {rival}"] = [
            a / b for a, b in zip(seconds[name], seconds[rival], strict=True)
        ]
    for name, values in rows.items():
        print(f"{name:44}{told(values, 'bytes' not in name)}  {AIMS.get(name, '')}")
    for name, values in seconds.items():
        print(f"{name:44}{statistics.median(values):8.2f} s")
    print(json.dumps({"megabytes": whole / 1e6, "rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
