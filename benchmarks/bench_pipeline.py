"""What it takes to go on in a pipeline, against drawing what went by; and what places cost.

    python benchmarks/bench_pipeline.py [--batches N] [--repeats N] [--source loader]

A pipeline of a shuffled dataset, a function, a shuffle buffer, buckets and weights gives N batches.
With `--source loader` it begins with a shuffling DataLoader, whose one pass has as many rows.
Then new ones go to that place by its state, as a checkpoint's file gives it back, and draw one
batch; the time of drawing is that of the N batches, of which parts are timed for its quartiles.
First it is shown that what comes next is what the pipeline that was not cut gives. The second
figure is a batch of the pipeline against one of the same stages written as plain generators, which
keep no place, in turns.
"""

import argparse
import itertools
import json
import statistics
import time

import numpy as np
import torch

from trax_torch import data
from trax_torch.supervised._checkpoint.packing import pack, unpack

N_PARTS = 20


class Rows:
    """Sentences of 1 to 64 numbers, made when they are asked for."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return np.arange(i, i + 1 + i * 37 % 64), i % 10


def shorter(example):
    return example[0][:48], example[1]


SETTINGS = {"boundaries": [8, 16, 32], "batch_sizes": [16, 8, 8, 4], "length_keys": [0]}


def as_it_is(example):
    return example


def loader(n):
    order = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(
        Rows(n), None, shuffle=True, generator=order, collate_fn=as_it_is
    )


SOURCES = {
    "examples": lambda n: data.Examples(Rows(n), shuffle=True, seed=0),
    "loader": loader,
}


def make(n, source):
    return data.Serial(
        SOURCES[source](n),
        lambda g: map(shorter, g),
        data.Shuffle(1024, seed=1),
        data.BucketByLength(**SETTINGS),
        data.AddLossWeights(),
    )()


def make_plain(n):
    """The same by generators that keep no place."""

    def examples():
        rows = Rows(n)
        for epoch in itertools.count():
            for i in np.random.RandomState(epoch).permutation(n).tolist():
                yield rows[i]

    def shuffled(given, size, random):
        queue = list(itertools.islice(given, size))
        for example in given:
            i = random.randint(size)
            yield queue[i]
            queue[i] = example

    def bucketed(given, boundaries, batch_sizes):
        buckets = [[] for _ in batch_sizes]
        for example in given:
            n = len(example[0])
            i = min(i for i, most in enumerate([*boundaries, np.inf]) if n <= most)
            buckets[i].append(example)
            if len(buckets[i]) == batch_sizes[i]:
                most = boundaries[i] if i < len(boundaries) else None
                yield tuple(
                    data.inputs.pad_to_max_dims(x, most) for x in zip(*buckets[i], strict=True)
                )
                buckets[i] = []

    def weighted(given):
        for x, y in given:
            yield x, y, np.ones(y.shape, np.float32)

    random = np.random.RandomState(1)
    mixed = shuffled(map(shorter, examples()), 1024, random)
    return weighted(bucketed(mixed, SETTINGS["boundaries"], SETTINGS["batch_sizes"]))


def draw(pipeline, n):
    """Returns the seconds, of this process, that n batches take."""
    start = time.process_time()
    for _ in itertools.islice(pipeline, n):
        pass
    return time.process_time() - start


def resume(n, source, place):
    """Returns a pipeline at a place, and the seconds, of this process, to its first batch."""
    start = time.process_time()
    pipeline = make(n, source)
    pipeline.load_state_dict(place())
    first = next(pipeline)
    return pipeline, first, time.process_time() - start


def quartiles(values):
    return statistics.quantiles(values, n=4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--examples", type=int, default=300_000, help="of the dataset")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--source", choices=SOURCES, default="examples")
    args = parser.parse_args()
    if args.source == "loader":  # one pass; a batch has fewer than 6 rows on the whole
        args.examples = 6 * (args.batches + 1000)

    whole = make(args.examples, args.source)
    part = args.batches // N_PARTS
    parts = [draw(whole, part) for _ in range(N_PARTS)]
    drawn = sum(parts)
    tensors = {}
    packed = pack(whole.state_dict(), "data", tensors)
    size = len(json.dumps(packed)) + sum(t.nbytes for t in tensors.values())
    expected = list(itertools.islice(whole, 100))
    equal, seconds = True, []
    for _ in range(args.repeats):
        pipeline, first, taken = resume(args.examples, args.source, lambda: unpack(packed, tensors))
        seconds.append(taken)
        for mine, other in zip(itertools.chain([first], pipeline), expected, strict=False):
            equal &= all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))

    shares = [100 * s / drawn for s in seconds]
    costs, plain, ours = [], make_plain(args.examples), make(args.examples, args.source)
    draw(plain, part), draw(ours, part)
    for _ in range(args.repeats):
        costs.append(draw(ours, part // 4) / draw(plain, part // 4))

    print(f"{args.batches:,} batches; what comes next is what would have come: {equal}")
    row = {"batches": args.batches, "equal": equal, "state (bytes)": size}
    for what, unit, values in (
        (f"drawing {part:,} batches", "s", parts),
        ("going on", "ms", [1e3 * s for s in seconds]),
        ("going on, of drawing all", "%", shares),
        ("a batch, of a plain one", "", costs),
    ):
        low, middle, high = quartiles(values)
        print(f"{what:26}{middle:10.3f} {unit:3}({low:.3f} to {high:.3f})")
        row[what] = [low, middle, high]
    print(f"{'drawing all':26}{drawn:10.3f} s   state {size / 1e3:.0f} kB   aim at most 1%")
    print(json.dumps(row | {"drawing all (s)": drawn}))


if __name__ == "__main__":
    main()
