"""What a token of a transformers model costs: decoded here, beside its own `generate`.

    python benchmarks/bench_hf_decoding.py [--model gpt2|llama|t5|all] [--size tiny|small] [--quick]

Both have the very same model object. `ours` is `decoding.*` on it after `decoding.warmup`,
`generate` has cache_implementation="static" and is compiled likewise (on a CPU it has to be asked
to); `ours, eager` and `generate, dynamic` compile nothing. Before anything is timed, the tokens of
all are shown to be equal (beams with length_penalty=0), but for ties in float32, of which the share
of equal tokens tells.

A step is the time of a call over its number of tokens, prompt included. All take turns, so that
what the machine does meanwhile hits all; the first turn of each, which compiles, is told apart.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import torch
import transformers

from trax_torch.supervised import decoding

SIZES = {  # d_model, d_ff, layers, heads, vocabulary
    "tiny": (32, 64, 2, 4, 100),
    "small": (256, 1024, 4, 8, 1000),
    "large": (768, 3072, 12, 12, 32_000),
}
SYMBOLS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
PENALTY = {"length_penalty": 0.0}


def model_of(kind, size):
    d_model, d_ff, n_layers, n_heads, vocab = SIZES[size]
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocab,
            n_positions=1024,
            n_embd=d_model,
            n_inner=d_ff,
            n_layer=n_layers,
            n_head=n_heads,
            initializer_range=0.1,
            **SYMBOLS,
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocab,
            hidden_size=d_model,
            intermediate_size=d_ff,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads // 2,
            initializer_range=0.1,
            **SYMBOLS,
        )
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.T5Config(
        vocab_size=vocab,
        d_model=d_model,
        d_kv=d_model // n_heads,
        d_ff=d_ff,
        num_layers=n_layers,
        num_heads=n_heads,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def compiled():
    config = transformers.CompileConfig(mode="default")
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def ours(model, inputs, n_tokens, n_beams, accelerate):
    settings = {"batch_size": len(inputs), "max_length": n_tokens, "accelerate": accelerate}
    settings["eos_id"] = -1
    if n_beams == 1:
        return decoding.autoregressive_sample(model, inputs, temperature=0.0, **settings)
    return decoding.beam_search(model, inputs, n_beams=n_beams, **PENALTY, **settings)[:, 0]


def theirs(model, inputs, n_tokens, n_beams, settings):
    beams = {"num_beams": n_beams, **PENALTY} if n_beams > 1 else {}
    made = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        **beams,
        **settings,
    )
    return made[:, -n_tokens:]


def contenders(model, inputs, n_tokens, n_beams):
    """Who decodes, by name: what makes the tokens."""
    return {
        "ours": lambda: ours(model, inputs, n_tokens, n_beams, True),
        "generate": lambda: theirs(model, inputs, n_tokens, n_beams, compiled()),
        "ours, eager": lambda: ours(model, inputs, n_tokens, n_beams, False),
        "generate, dynamic": lambda: theirs(model, inputs, n_tokens, n_beams, {}),
    }


def seconds(run, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    made = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, made


def measure(kind, model, batch, n_beams, args):
    vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(3, vocab, (batch, args.prompt), generator=generator).to(args.device)
    start = time.perf_counter()
    decoding.warmup(model, batch, args.tokens, inputs=inputs, n_beams=n_beams)
    warmed = time.perf_counter() - start
    runs = contenders(model, inputs, args.tokens, n_beams)
    first, times, made = {}, {name: [] for name in runs}, {}
    for name, run in runs.items():
        first[name], made[name] = seconds(run, args.device)
        _, again = seconds(run, args.device)  # some compile at the second call
        assert torch.equal(again, made[name]), f"{name} gives other tokens in another call"
    first["ours"] += warmed
    same = {n: float((t == made["generate"]).double().mean()) for n, t in made.items()}
    if args.dtype == torch.float64 and min(same.values()) < 1:
        raise SystemExit(f"{kind}, {batch} x {n_beams}: tokens differ: {same}")
    names = list(runs)
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(runs[name], args.device)[0] / args.tokens)
    rows = []
    for name in names:
        low, middle, high = statistics.quantiles(times[name], n=4)
        ratios = [g / t for g, t in zip(times["generate"], times[name], strict=True)]
        rows.append(
            {
                "model": kind,
                "batch": batch,
                "beams": n_beams,
                "tokens": args.tokens,
                "who": name,
                "step_ms": 1e3 * middle,
                "step_ms_quartiles": [1e3 * low, 1e3 * high],
                "times_as_fast_as_generate": statistics.median(ratios),
                "first_s": first[name],
                "same_tokens": same[name],
            }
        )
        print(
            f"{kind:6}{batch:6}{n_beams:6}  {name:18}{1e3 * middle:9.3f} ms"
            f"{f'({1e3 * low:.3f} to {1e3 * high:.3f})':>24}{statistics.median(ratios):8.2f} x"
            f"{first[name]:9.2f} s{same[name]:7.0%}",
            flush=True,
        )
    return rows


def parse():
    parser = argparse.ArgumentParser(
        description="Milliseconds a token of transformers' models: ours and generate's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="all", choices=["gpt2", "llama", "t5", "all"])
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="1 is greedy")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt, or source")
    parser.add_argument("--tokens", type=int, help="in a call; by default 100, quick: 16")
    parser.add_argument("--rounds", type=int, help="by default 15, quick: 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default="float32")
    args = parser.parse_args()
    args.tokens = args.tokens or (16 if args.quick else 100)
    args.rounds = args.rounds or (3 if args.quick else 15)
    args.models = ["gpt2", "llama", "t5"] if args.model == "all" else [args.model]
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        print(
            f"torch {torch.__version__}, transformers {transformers.__version__}, {args.device}, "
            f"{args.dtype}, {args.threads} threads, {args.size}, median (quartiles) of "
            f"{args.rounds} rounds"
        )
        print(
            f"{'model':6}{'batch':>6}{'beams':>6}  {'':18}{'a step':>12}{'(quartiles)':>24}"
            f"{'generate':>10}{'first':>11}{'same':>7}"
        )
        for kind in args.models:
            for batch in args.batches:
                for n_beams in args.beams:
                    torch.compiler.reset()
                    model = model_of(kind, args.size).to(args.device, args.dtype)
                    rows += measure(kind, model, batch, n_beams, args)
    settings = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(args.device),
        "dtype": str(args.dtype),
        "threads": args.threads,
        "size": args.size,
        "rounds": args.rounds,
    }
    print(json.dumps({**settings, "rows": rows}))


if __name__ == "__main__":
    main()
