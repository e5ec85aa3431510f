"""What a model that is larger than a rank's memory takes of it: built, gone on with, and loaded.

    python benchmarks/bench_init.py [--megabytes N] [--ranks N] [--runs N] [--only TEXT]

A stack of layers is built for `strategy="fsdp"` with Adam's slots: of torch's modules on the meta
device, and of layers of ours; then also gone on from a checkpoint, and filled from files in Hugging
Face's layout. The rival builds the model with memory on every rank, as one does without the meta
device. Each is done by new processes of this machine, with gloo. Memory is the peak of a process's
resident set beyond what it had after its imports and a tiny run, in shares: the bytes of weights
and slots over the number of ranks; of several runs, each of new processes, the median and quartiles
are told, on the rank with the most. Peaks need Linux. It is shown that the weights are the same.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import tempfile

import torch
import torch.multiprocessing as mp
from bench_sharded import free_port, measured, told
from torch import nn

from trax_torch import _distributed, export, load_weights, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask

AIM = 1.3
WIDTH = 1024


def torchs(n_layers):
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(n_layers)))


def torchs_on_meta(n_layers):
    with torch.device("meta"):
        return torchs(n_layers)


def ours(n_layers):
    return tl.Serial(*(tl.Dense(WIDTH) for _ in range(n_layers)))


def make_loop(folder, model):
    batch = torch.randn(4, WIDTH), torch.zeros(4, WIDTH), torch.ones(4, WIDTH)

    def forever():
        while True:
            yield batch

    task = TrainTask(forever(), tl.L2Loss(), optimizers.Adam(1e-4))
    never = {"checkpoint_at": lambda step: False, "eval_at": lambda step: False}
    settings = {"strategy": "fsdp", "device": "cpu", "progress": False, "random_seed": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        return Loop(model, task, output_dir=folder, save_at_end=False, **settings, **never)


def with_memory(place, n_layers):
    torch.manual_seed(0)
    return make_loop(None, torchs(n_layers))


def built(place, n_layers):
    return make_loop(None, torchs_on_meta(n_layers))


def built_of_ours(place, n_layers):
    return make_loop(None, ours(n_layers))


def gone_on_with(place, n_layers):
    loop = make_loop(os.path.join(place, "run"), torchs_on_meta(n_layers))
    assert loop.step == 1
    return loop


def filled_from_files(place, n_layers):
    loop = make_loop(None, torchs_on_meta(n_layers))
    load_weights(loop.model, os.path.join(place, "files"))
    return loop


WAYS = {
    "built with memory": with_memory,
    "built on the meta device": built,
    "layers of ours, built": built_of_ours,
    "gone on from a checkpoint": gone_on_with,
    "filled from Hugging Face's layout": filled_from_files,
}


def work(rank, args, place, port, way):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    n_layers = max(1, args.megabytes * 10**6 // (3 * 4 * WIDTH * WIDTH))
    tiny = make_loop(None, nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)))
    if way == "saved":
        run = os.path.join(place, "run")
        loop = make_loop(run, torchs_on_meta(n_layers))
        loop.run(1)
        loop.save_checkpoint("model")
        if rank == 0:
            export(run, os.path.join(place, "files"), max_shard_size="200MB")
        torch.distributed.barrier()
        return
    found = []
    seconds, n_bytes = measured(lambda: found.append(WAYS[way](place, n_layers)))
    digest, share = hashlib.sha256(), 0
    for p in found[0].model.parameters():
        own = _distributed.local(p).detach()
        digest.update(own.numpy().tobytes())
        share += 3 * own.nbytes
    with open(os.path.join(place, f"{way} {rank}.json"), "w") as f:
        json.dump([n_bytes, share, digest.hexdigest(), seconds], f)
    del tiny


def measure(args, place):
    """Returns of each way the peak of each run, in shares, by ranks; digests; and all bytes."""
    mp.spawn(work, (args, place, free_port(), "saved"), nprocs=args.ranks)
    ways = [way for way in WAYS if args.only in way]
    rows, digests, whole = {way: [] for way in ways}, {}, 0
    for _ in range(args.runs):
        for way in ways:  # in turns, so that what else the machine does falls on all alike
            mp.spawn(work, (args, place, free_port(), way), nprocs=args.ranks)
            ranks = []
            for rank in range(args.ranks):
                with open(os.path.join(place, f"{way} {rank}.json")) as f:
                    ranks.append(json.load(f))
            whole = sum(share for _, share, _, _ in ranks)
            rows[way].append([n * args.ranks / whole for n, _, _, _ in ranks])
            digests.setdefault(way, []).append([digest for _, _, digest, _ in ranks])
    return rows, digests, whole


def are_equal(digests):
    """Whether weights are the same where they should be, of those ways and runs that there are."""
    alike = (
        ("built with memory", "built on the meta device"),
        ("gone on from a checkpoint", "filled from Hugging Face's layout"),
    )
    runs = [[run for way in ways for run in digests.get(way, ())] for ways in alike]
    return all(run == each[0] for each in runs for run in each)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights and slots together")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="measures the ways in whose name this is")
    parser.add_argument("--folder", help="where to write; by default the folder for temporaries")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        rows, digests, whole = measure(args, place)
    same = are_equal(digests)
    print(f"torch {torch.__version__}, {args.ranks} ranks, {whole / 1e6:.0f} MB in all")
    print(f"the same weights on the meta device as with memory, and by both ways to load: {same}")
    print(f"{args.runs} runs, shares on the rank with the most, median (quartiles)")
    for way, runs in rows.items():
        aim = "" if "memory" in way else f"aim: at most {AIM}"
        print(f"{way:40}{told([max(ranks) for ranks in runs])}  {aim}")
    found = {"megabytes": whole / 1e6, "ranks": args.ranks, "runs": args.runs}
    print(json.dumps({**found, "equal": same, "rows": rows}))


if __name__ == "__main__":
    main()
