"""What it takes to go to a place in the data, against drawing all that came before it.

    python benchmarks/bench_resume.py [--batches N] [--repeats N] [--kinds TEXT] [--tiny]

A shuffling DataLoader of 32 rows a batch, seeded, goes to batch 100,000 of a run, in two ways, in
turns: "drawn again", as every kind of data can, and as places of earlier versions are gone to; and
"gone to", by the indices of the pass under way. Both then give the same batches, to the last bit,
as does one that was never stopped. The aim: at most 1% of the time.

Kinds: many passes through few rows; one pass through as many rows as there are; rows that draw
random numbers; workers, which persist or not.
"""

import argparse
import json
import statistics
import time

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from trax_torch._digest import digest
from trax_torch.data._streams import BatchStream

SIZE = 32


class Noisy(Dataset):
    """Rows with noise on them."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + torch.rand(())


def kinds(n):
    """Yields names, makers of loaders, and how many batches go by."""

    def loader(data, **kwargs):
        order = torch.Generator().manual_seed(1)
        return DataLoader(data, SIZE, shuffle=True, generator=order, **kwargs)

    few, many = torch.randn(50_000, 8), torch.randn(SIZE * (n + 100), 8)
    yield "many passes", lambda: loader(TensorDataset(few, few[:, 0])), n
    yield "one pass", lambda: loader(TensorDataset(many, many[:, 0])), n
    yield "rows that draw", lambda: loader(Noisy(few)), n
    yield "2 workers", lambda: loader(Noisy(few), num_workers=2), n
    yield (
        "2 that persist",
        lambda: loader(Noisy(few), num_workers=2, persistent_workers=True),
        n,
    )


def stream_of(make):
    torch.manual_seed(0)
    stream = BatchStream(make(), "data")
    stream.next()
    stream.key(0, "data")
    return stream


def next_ones(stream):
    return [digest(stream.next()) for _ in range(8)]


def seconds_to(make, position):
    """Returns how long a new stream takes to a position, and the batches after it."""
    stream = stream_of(make)
    start = time.perf_counter()
    stream.seek(position)
    return time.perf_counter() - start, next_ones(stream)


def compare(make, n, repeats):
    """Returns seconds of both ways, several times each, and their ratios."""
    stream = stream_of(make)
    while stream.n_taken < n:
        stream.next()
    position = stream.position()
    want = next_ones(stream)
    del stream
    old, new = [], []
    without = {key: value for key, value in position.items() if key != "pass"}
    for _ in range(repeats):
        for seconds, place in ((old, without), (new, position)):
            taken, found = seconds_to(make, place)
            assert found == want, "the batches differ"
            seconds.append(taken)
    return old, new, [b / a for a, b in zip(old, new, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", default="", help="those alone whose names hold this text")
    parser.add_argument("--tiny", action="store_true", help="to try this script")
    args = parser.parse_args()
    n, repeats = (300, 2) if args.tiny else (args.batches, args.repeats)
    results = []
    print(
        "| data | batches | drawn again | gone to | share, median (quartiles) |\n"
        + "| --- " * 5
        + "|"
    )
    for name, make, n_batches in kinds(n):
        if args.kinds not in name:
            continue
        old, new, shares = compare(make, n_batches, repeats)
        low, middle, high = statistics.quantiles(shares, n=4)
        print(
            f"| {name} | {n_batches} | {statistics.median(old):.2f} s "
            f"| {statistics.median(new) * 1000:.1f} ms "
            f"| {middle:.2%} ({low:.2%} to {high:.2%}) |",
            flush=True,
        )
        results.append({"data": name, "batches": n_batches, "old": old, "new": new})
    print(json.dumps({"torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
