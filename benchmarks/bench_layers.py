"""Layers against the plain PyTorch spelling of the same computation, forward and backward.

    python benchmarks/bench_layers.py [--repeats N] [--threads N]

- transformer block: causal attention and feed-forward, each with layer norm and a residual, against
  an nn.Module that says the same with nn.LayerNorm, nn.Linear and scaled_dot_product_attention;
- GRU: against the same equations with one matmul for all inputs and a Python loop over time, and,
  for reference, against nn.GRU, whose equations differ a little;
- Adafactor's step: against a loop over tensors (see bench_optimizers.py, which has all optimizers).

Ours and the plain spelling have the same weights and must agree before anything is timed. They run
in turn within each round, and a ratio is the median over rounds.
"""

import argparse
import json
import statistics
import time

import bench_optimizers
import torch
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import optimizers

MAX_RATIO = 1.05


class PlainBlock(nn.Module):
    def __init__(self, d, d_ff, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList([nn.LayerNorm(d, eps=1e-6) for _ in range(2)])
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, d_ff), nn.Linear(d_ff, d)

    def forward(self, x):
        y = self.norms[0](x)
        q, k, v = (
            f(y).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norms[1](x))))


def block(batch=8, length=128, d=256, d_ff=1024, n_heads=8):
    x = torch.randn(batch, length, d)
    ours = tl.Serial(
        tl.Residual(tl.LayerNorm(), tl.CausalAttention(d, n_heads=n_heads)),
        tl.Residual(tl.LayerNorm(), tl.Dense(d_ff), tl.Relu(), tl.Dense(d)),
    )
    ours.init(x, rng=0)
    plain = PlainBlock(d, d_ff, n_heads)
    mine = list(ours.parameters())
    norms, attention, feed_forward = (0, 1, 10, 11), range(2, 10), range(12, 16)
    theirs = [*plain.norms.parameters()]
    theirs += [p for f in (plain.q, plain.k, plain.v, plain.out) for p in f.parameters()]
    theirs += [*plain.up.parameters(), *plain.down.parameters()]
    order = [*norms, *attention, *feed_forward]
    for i, p in zip(order, theirs, strict=True):
        p.data.copy_(mine[i].data)
    return x, ours, {"plain": plain}


class PlainGRU(nn.Module):
    """Trax's equations: gates of [x, h], candidate of [x, reset * h]."""

    def __init__(self, w1, b1, w2, b2):
        super().__init__()
        n = b2.shape[0]
        self.n = n
        d = w1.shape[0] - n
        self.x_weights = nn.Parameter(torch.cat([w1[:d], w2[:d]], dim=1))
        self.bias = nn.Parameter(torch.cat([b1, b2]))
        self.gates = nn.Parameter(w1[d:].clone())
        self.candidate = nn.Parameter(w2[d:].clone())

    def forward(self, x):
        n = self.n
        inputs = F.linear(x, self.x_weights.t(), self.bias)
        gates_x, candidate_x = inputs.split([2 * n, n], dim=-1)
        h, out = x.new_zeros(x.shape[0], n), []
        for gx, cx in zip(gates_x.unbind(1), candidate_x.unbind(1), strict=True):
            update, reset = torch.sigmoid(torch.addmm(gx, h, self.gates)).chunk(2, dim=-1)
            candidate = torch.tanh(torch.addmm(cx, reset * h, self.candidate))
            h = update * h + (1 - update) * candidate
            out.append(h)
        return torch.stack(out, dim=1)


def gru(batch=16, length=64, d=128):
    x = torch.randn(batch, length, d)
    ours = tl.GRU(d)
    ours.init(x, rng=0)
    for p in ours.parameters():
        p.data = torch.randn_like(p) * 0.1
    flat = [w.detach() for w in tl.flatten_weights_and_state(ours.weights, ())[0]]
    return x, ours, {"plain": PlainGRU(*flat), "nn.GRU": nn.GRU(d, d, batch_first=True)}


def step_of(module, x, grad):
    def run():
        module.zero_grad(set_to_none=True)
        y = module(x)
        (y[0] if isinstance(y, tuple) else y).backward(grad)

    return run


def time_in_turn(steps, repeats):
    times = {name: [] for name in steps}
    for _ in range(3):
        for run in steps.values():
            run()
    for r in range(repeats):
        for name in list(steps)[:: 1 if r % 2 else -1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def row(name, times):
    ratios = [a / b for a, b in zip(times["ours"], times["plain"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "what": name,
        **{f"{k}_ms": statistics.median(v) for k, v in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
    }


def layer_row(name, make, repeats):
    x, ours, rivals = make()
    grad = torch.randn_like(ours(x))
    assert torch.allclose(ours(x), rivals["plain"](x), atol=1e-5), f"{name} differs"
    steps = {"ours": step_of(ours, x, grad)}
    steps |= {k: step_of(m, x, grad) for k, m in rivals.items()}
    return row(name, time_in_turn(steps, repeats))


def adafactor_row(repeats):
    mine, theirs = bench_optimizers.parameters(), bench_optimizers.parameters()
    optimizer = optimizers.Adafactor(0.05).bind(mine)
    plain = bench_optimizers.plain_adafactor(theirs)
    for _ in range(3):
        optimizer.step(), plain()
    difference = bench_optimizers.largest_difference(mine, theirs)
    assert difference < 1e-4, f"Adafactor differs by {difference}"
    return row("Adafactor step", time_in_turn({"ours": optimizer.step, "plain": plain}, repeats))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [
        layer_row("transformer block", block, args.repeats),
        layer_row("GRU", gru, args.repeats),
        adafactor_row(args.repeats),
    ]
    print(f"torch {torch.__version__}, {args.threads} threads, {args.repeats} rounds")
    print(f"{'':20}{'ours':>10}{'plain':>10}{'nn.GRU':>10}{'ratio':>8}  (quartiles)   aim")
    for r in rows:
        low, high = r["ratio_quartiles"]
        reference = f"{r['nn.GRU_ms']:7.2f} ms" if "nn.GRU_ms" in r else ""
        met = "met" if r["ratio"] <= MAX_RATIO else f"missed ({MAX_RATIO})"
        print(
            f"{r['what']:20}{r['ours_ms']:7.2f} ms{r['plain_ms']:7.2f} ms{reference:>10}"
            f"{r['ratio']:8.2f}  ({low:.2f} to {high:.2f})  {met}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
