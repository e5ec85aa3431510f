"""How long an optimizer's step takes, against a plain loop over tensors and against torch's own.

Run: python benchmarks/bench_optimizers.py [--repeats 30] [--threads 1]

The parameters are those of a TransformerLM of about 5 million (vocab 1000, d_model 256, d_ff 1024,
6 layers). Three optimizers take part in each row, in turn within each round:

- ours: the recipe, bound;
- plain: the same rule, written below as a loop over tensors, with in-place operations where they
  offer themselves; ours must agree with it before anything is timed;
- torch: the optimizer of that name in torch.optim with its default implementation, whose rule may
  differ in details.

A ratio is the median over rounds of ours / rival within the round, so that a busy machine slows
both. The share is the time in which the machine could read each gradient and read and write each
weight and slot once, at the speed of a copy, over the time that ours takes; above 100% where the
cache holds part of them.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from trax_torch import optimizers

Step = Callable[[], None]
MAX_RATIO = 1.05  # of ours to plain


def shapes(vocab=1000, d_model=256, d_ff=1024, n_layers=6):
    vector, square = (d_model,), (d_model, d_model)
    attention = [vector, vector, *[square, vector] * 4]
    feed_forward = [vector, vector, (d_model, d_ff), (d_ff,), (d_ff, d_model), vector]
    blocks = [*attention, *feed_forward] * n_layers
    return [(vocab, d_model), *blocks, vector, vector, (d_model, vocab), (vocab,)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator) * 0.05) for s in shapes()]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 0.01
    return params


def plain_sgd(params, lr=0.01):
    @torch.no_grad()
    def step():
        for p in params:
            p.add_(p.grad, alpha=-lr)

    return step


def plain_momentum(params, lr=0.01, mass=0.9, decay=1e-5):
    velocities = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step():
        for p, v in zip(params, velocities, strict=True):
            v.mul_(mass).add_(p.grad)
            p.mul_(1 - decay).add_(p.grad.add(v, alpha=mass), alpha=-lr)

    return step


def plain_rms_prop(params, lr=0.001, gamma=0.9, eps=1e-8):
    averages = [torch.ones_like(p) for p in params]

    @torch.no_grad()
    def step():
        for p, a in zip(params, averages, strict=True):
            a.mul_(gamma).addcmul_(p.grad, p.grad, value=1 - gamma)
            p.addcdiv_(p.grad, a.sqrt().add_(eps), value=-lr)

    return step


def plain_adam(params, lr=0.0001, decay=1e-5, b1=0.9, b2=0.999, eps=1e-5):
    slots = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    t = 0

    @torch.no_grad()
    def step():
        nonlocal t
        t += 1
        for p, (m, v) in zip(params, slots, strict=True):
            m.mul_(b1).add_(p.grad, alpha=1 - b1)
            v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            divisor = (v / (1 - b2 ** (t + 1))).sqrt_().add_(eps)
            p.mul_(1 - decay).addcdiv_(m, divisor, value=-lr / (1 - b1 ** (t + 1)))

    return step


def plain_adafactor(params, lr=0.05, decay=1e-5, eps1=1e-16, eps2=1e-3):
    slots = [
        (p.new_zeros(p.shape[:-1]), p.new_zeros(p.shape[:-2] + p.shape[-1:]))
        if p.dim() >= 2
        else (torch.zeros_like(p),)
        for p in params
    ]
    t = 0

    @torch.no_grad()
    def step():
        nonlocal t
        t += 1
        d = 1 - (t + 1) ** -0.8
        for p, slot in zip(params, slots, strict=True):
            g = p.grad
            squares = g * g
            if len(slot) == 2:
                row, col = slot
                row.mul_(d).add_(squares.mean(-1), alpha=1 - d)
                col.mul_(d).add_(squares.mean(-2), alpha=1 - d)
                y = g * (row.mean(-1, keepdim=True) / (row + eps1)).sqrt_().unsqueeze(-1)
                y.mul_((col + eps1).rsqrt_().unsqueeze(-2))
            else:
                slot[0].mul_(d).add_(squares, alpha=1 - d)
                y = g * (slot[0] + eps1).rsqrt_()
            y.div_(y.square().mean().sqrt_().clamp_(min=1.0))
            y.mul_(lr * p.square().mean().sqrt_().clamp_(min=eps2))
            p.mul_(1 - decay).sub_(y)

    return step


def plain_sm3(params, lr=0.01, momentum=0.9):
    slots = [([p.new_zeros(n) for n in p.shape], torch.zeros_like(p)) for p in params]

    @torch.no_grad()
    def step():
        for p, (vectors, m) in zip(params, slots, strict=True):
            g = p.grad
            if p.dim() == 2:
                moment = torch.minimum(vectors[0].unsqueeze(1), vectors[1].unsqueeze(0))
                moment.addcmul_(g, g)
                torch.amax(moment, dim=1, out=vectors[0])
                torch.amax(moment, dim=0, out=vectors[1])
            else:
                moment = vectors[0].addcmul_(g, g)
            m.lerp_(g / moment.sqrt().add_(1e-16), 1 - momentum)
            p.add_(m, alpha=-lr)

    return step


ROWS: dict[str, tuple[Callable, Callable | None]] = {
    "SGD": (plain_sgd, torch.optim.SGD),
    "Momentum": (plain_momentum, lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True)),
    "RMSProp": (plain_rms_prop, torch.optim.RMSprop),
    "Adam": (plain_adam, torch.optim.AdamW),
    "Adafactor": (plain_adafactor, torch.optim.Adafactor),
    "SM3": (plain_sm3, None),
}


def largest_difference(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> float:
    """Returns the largest difference, relative to each tensor's largest value."""
    with torch.no_grad():
        pairs = zip(ours, plain, strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def time_in_turn(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Returns milliseconds of each step, by name, one of each per round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(repeats + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            elapsed = (time.perf_counter() - start) * 1e3
            if i >= 3:
                times[name].append(elapsed)
    return times


def bytes_per_millisecond() -> float:
    """Returns the speed of a copy of 64 MiB, reading and writing counted."""
    source = torch.randn(2**24)
    target = torch.empty_like(source)
    best = min(time_in_turn({"copy": lambda: target.copy_(source)}, 10)["copy"])
    return 2 * source.nbytes / best


def least_bytes(params: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> int:
    slots = [v for state in optimizer.state.values() for v in state.values()]
    kept = sum(v.nbytes for v in slots if isinstance(v, torch.Tensor))
    return sum(3 * p.nbytes for p in params) + 2 * kept


def measure(name: str, repeats: int, speed: float) -> dict[str, float | None]:
    make_plain, make_torch = ROWS[name]
    ours, plain = parameters(), parameters()
    bound = getattr(optimizers, name)().bind(ours)
    steps: dict[str, Step] = {"ours": bound.step, "plain": make_plain(plain)}
    for _ in range(3):
        for step in steps.values():
            step()
    difference = largest_difference(ours, plain)
    if difference > 1e-5:
        raise SystemExit(f"{name} differs from its plain spelling by {difference:.1e}.")

    if make_torch is not None:
        steps["torch"] = make_torch(parameters()).step
    times = time_in_turn(steps, repeats)
    median = {k: statistics.median(v) for k, v in times.items()}
    low, _, high = statistics.quantiles(times["ours"], n=4)

    def ratio(rival: str) -> float | None:
        if rival not in times:
            return None
        return statistics.median(a / b for a, b in zip(times["ours"], times[rival], strict=True))

    return {
        "difference": difference,
        "ours_ms": median["ours"],
        "ours_iqr_ms": high - low,
        "plain_ms": median["plain"],
        "torch_ms": median.get("torch"),
        "to_plain": ratio("plain"),
        "to_torch": ratio("torch"),
        "share_of_copy_speed": least_bytes(ours, bound) / speed / median["ours"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # glibc hands freed memory back to the system and takes it again, page by page, unless a larger
    # piece has been freed before, as in any training process; else chance decides who pays for it.
    torch.empty(2**22)
    n = sum(torch.Size(s).numel() for s in shapes())
    speed = bytes_per_millisecond()
    print(f"{n:,} weights in {len(shapes())} tensors, {args.threads} threads, torch")
    print(f"{torch.__version__}, {platform.machine()}; a copy moves {speed / 1e6:.1f} GB/s\n")
    print("optimizer   ours ms (spread)  plain ms  torch ms  to plain  to torch  share  differs")
    rows = {}
    for name in ROWS:
        row = rows[name] = measure(name, args.repeats, speed)
        torch_ms = "-" if row["torch_ms"] is None else f"{row['torch_ms']:.2f}"
        to_torch = "-" if row["to_torch"] is None else f"{row['to_torch']:.2f}"
        print(
            f"{name:10} {row['ours_ms']:8.2f} ({row['ours_iqr_ms']:5.2f}) {row['plain_ms']:11.2f}"
            f" {torch_ms:>9} {row['to_plain']:9.2f} {to_torch:>9}"
            f" {row['share_of_copy_speed']:6.0%} {row['difference']:8.0e}"
        )
    slow = [name for name, row in rows.items() if row["to_plain"] > MAX_RATIO]
    print(f"\nslower than {MAX_RATIO} plain: {', '.join(slow) or 'none'}")
    print(json.dumps({"bench": "optimizers", "n_weights": n, "threads": args.threads, **rows}))


if __name__ == "__main__":
    main()
