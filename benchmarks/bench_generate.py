"""Many prompts: tokens a second of `decoding.generate`, against padded batches of the same size.

    python benchmarks/bench_generate.py [--compiled] [--prompts N] [--batches N ...] [--rounds N]

A TransformerLM (vocab 1000, d_model 256, 4 layers, 8 heads) with random weights goes on from 200
prompts of 4 to 200 tokens, by 1 to 200 tokens each, drawn evenly; and once more with outputs of
which most are short, evenly drawn by their logarithms. The rival takes the prompts in their order,
as many as there are rows, pads them to the longest, and goes on until the last has what it needs.
Both are first shown to make the same tokens, in float64, of prompts of their own; of the calls that
are timed, in float32, the share that is equal is told. Ways take turns; time is that of the
processor, one thread, and quartiles are over the rounds. The aim: 2 times the tokens a second.
What can be saved is steps, which are told: evenly drawn outputs are half of the longest on average,
so that no batch of them can save half. Three rounds take five minutes of one idle core.
"""

import argparse
import heapq
import json
import random
import statistics
import time

import torch

from trax_torch import models
from trax_torch.supervised import decoding

VOCAB, LONGEST = 1000, 200


def model_of():
    model = models.TransformerLM(VOCAB, 256, 1024, 4, 8, max_len=2 * LONGEST + 1, dropout=0.0)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=1)
    return model.eval()


def drawn(n, are_even, seed):
    """Returns prompts, how many tokens to make of each, and seeds."""
    draws = random.Random(seed)
    lengths = [draws.randint(4, LONGEST) for _ in range(n)]
    prompts = [torch.tensor([draws.randrange(VOCAB) for _ in range(k)]) for k in lengths]
    if are_even:
        outputs = [draws.randint(1, LONGEST) for _ in range(n)]
    else:
        outputs = [round(LONGEST ** draws.random()) for _ in range(n)]
    return prompts, outputs, list(range(n))


def generated(model, work, batch_size):
    prompts, outputs, seeds = work
    results = decoding.generate(
        model, prompts, batch_size, eos_id=-1, max_length=outputs, seed=seeds
    )
    return [result.tokens for result in results]


def padded(model, work, batch_size):
    found = []
    for i in range(0, len(work[0]), batch_size):
        prompts, outputs, seeds = (part[i : i + batch_size] for part in work)
        tokens = decoding.autoregressive_sample(
            model,
            torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True),
            len(prompts),
            eos_id=-1,
            max_length=max(outputs),
            seed=seeds,
            prompt_lengths=[len(prompt) for prompt in prompts],
        )
        found += [row[:n] for row, n in zip(tokens, outputs, strict=True)]
    return found


WAYS = {"padded": padded, "generate": generated}


def n_steps(outputs, batch_size):
    """Returns how many steps each way takes, whose ratio is what can be saved."""
    groups = [outputs[i : i + batch_size] for i in range(0, len(outputs), batch_size)]
    ends, n_last = [0] * batch_size, 4 * batch_size
    for n in [*outputs[:-n_last], *sorted(outputs[-n_last:], reverse=True)]:
        heapq.heapreplace(ends, ends[0] + n - 1)
    return {"padded": sum(max(group) - 1 for group in groups), "generate": max(ends)}


def equal_share(found):
    """Returns which share of the tokens both ways make alike, by what each has made."""
    one, two = (torch.cat(tokens) for tokens in found.values())
    return float((one == two).float().mean())


def measured(model, name, work, batch_size, n_rounds):
    """Returns rows of a table: tokens a second, and times of the rival's."""
    rates, made = {key: [] for key in WAYS}, {}
    for _ in range(n_rounds):
        for key, way in WAYS.items():
            start = time.process_time()
            made[key] = way(model, work, batch_size)
            rates[key].append(sum(work[1]) / (time.process_time() - start))
    rows, steps = [], n_steps(work[1], batch_size)
    for key, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["padded"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if n_rounds > 1 else ratios * 3
        rows.append(
            {
                "outputs": name,
                "rows": batch_size,
                "way": key,
                "steps": steps[key],
                "tokens a second": round(statistics.median(found)),
                "times": round(middle, 2),
                "quartiles": [round(low, 2), round(high, 2)],
                "equal tokens": round(equal_share(made), 4),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact, work = model_of().double(), drawn(12, True, seed=1)
    share = equal_share({key: way(exact, work, 4) for key, way in WAYS.items()})
    assert share == 1, f"only {share} of the tokens are equal in float64"
    model, rows = model_of(), []
    for batch_size in args.batches:
        if args.compiled:
            longest = torch.zeros(batch_size, LONGEST, dtype=torch.int64)
            asked = {"batch_size": batch_size, "max_length": LONGEST, "inputs": longest}
            decoding.warmup(model, many_prompts=True, **asked)
            decoding.warmup(model, prompt_lengths=[LONGEST] * batch_size, **asked)
        for name, are_even in (("even", True), ("mostly short", False)):
            work = drawn(args.prompts, are_even, seed=0)
            rows += measured(model, name, work, batch_size, args.rounds)
            for row in rows[-len(WAYS) :]:
                print(*row.values(), sep="\t", flush=True)
    print(json.dumps({"benchmark": "generate", "compiled": args.compiled, "rows": rows}))


if __name__ == "__main__":
    main()
