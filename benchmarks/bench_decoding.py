"""What a token costs: ours, eager and compiled, beside Hugging Face's and CTranslate2's.

    pip install -r benchmarks/requirements-peers.txt  # a rival that is missing is left out
    python benchmarks/bench_decoding.py [--quick] [--model small|gpt2|all] [--threads N]

Trax needs a Python environment of its own, whose interpreter `--trax` names; requirements-trax.txt
says how to make one.

`small` is the model of the design, `gpt2` has GPT-2's size and function. All contenders have the
very same weights. Before anything is timed, logits and greedy tokens are shown to be equal, and all
tokens of ours compiled to those of ours eager, beams included; and each row says how many sequences
(the best beams) have the tokens that ours have. `ours, int8` is what `decoding.quantize` makes of
the model, compiled: another function, with tokens of its own, as CTranslate2's int8 is;
`ours, int8 x 8` rounds activations, too, as that does; `int4` has 4 bits in groups of 64.

A step is the time of a call over its number of tokens, from the start symbol alone, so that each
step makes one position. All contenders take turns, so that what the machine does meanwhile hits
all. The first token is that of a prompt of 64 symbols: cold is the first call for this batch and
number of beams, compilation included, from an empty cache; warm is the median of later calls. Who
compiles at the second token shows it in the next call, of all tokens, which is given in seconds.
The share is the bytes of a step, which are the weights and the filled cache, over its time and the
bandwidth that a large sum or copy has in the same rounds; a model that fits in a cache can exceed
it.
"""

import argparse
import copy
import dataclasses
import functools
import importlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from trax_torch import _nest, models
from trax_torch import layers as tl
from trax_torch.supervised import decoding

PROMPT_LENGTH = 64  # the start symbol included
PEERS = ("hf-dynamic", "hf-static", "hf-compiled", "ct2-float32", "ct2-int8")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model; `activation` is Hugging Face's name for ours."""

    name: str
    vocab: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    activation: str
    n_tokens: int
    max_len: int = 1024


SHAPES = (
    Shape("small", 1000, 256, 1024, 4, 8, "relu", n_tokens=100),
    Shape("gpt2", 50_257, 768, 3072, 12, 12, "gelu_new", n_tokens=32),
    Shape("1b", 32_000, 2048, 8192, 16, 16, "gelu_new", n_tokens=100),  # for a GPU
)
ACTIVATIONS = {"relu": tl.Relu, "gelu_new": tl.FastGelu}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One who decodes.

    `run` maps (prompt, n_tokens, n_beams), a prompt (batch, length) that begins with the start
    symbol 0, to tokens (batch, n_beams, n_tokens), best first; one beam is greedy. `start`, called
    once for a batch size and a number of beams, does what a user would do beforehand.
    """

    name: str
    run: Callable[[torch.Tensor, int, int], torch.Tensor]
    start: Callable[[int, int, int], None] = lambda batch, n_beams, max_length: None
    serves: Callable[[int, int], bool] = lambda batch, n_beams: True


def ours(shape, device, dtype):
    """The model, made of our layers, whose output layer is a copy of its embedding."""
    model = models.TransformerLM(
        shape.vocab,
        shape.d_model,
        shape.d_ff,
        shape.n_layers,
        shape.n_heads,
        shape.max_len,
        dropout=0.0,
        ff_activation=ACTIVATIONS[shape.activation],
    )
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    parts = weights_of(model, shape)
    with torch.no_grad():
        # Marks of positions as small as the embedding's vectors, and livelier blocks than at the
        # start, so that the likeliest token depends on tokens before it.
        generator = torch.Generator().manual_seed(0)
        parts["positions"].normal_(std=shape.d_model**-0.5, generator=generator)
        for block in parts["blocks"]:
            for name in ("v", "o", "ff1", "ff2"):
                block[name][0].mul_(1.5)
        parts["head"][0].copy_(parts["embedding"])
        parts["head"][1].zero_()
    return model.to(device, dtype).eval()


def weights_of(model, shape):
    """Names the parameters, which come in the order of Trax: pairs are (weight, bias)."""
    params = iter(model.parameters())

    def pair():
        return next(params), next(params)

    names = ("norm1", "q", "k", "v", "o", "norm2", "ff1", "ff2")
    parts = {
        "embedding": next(params),
        "positions": next(params),
        "blocks": [{name: pair() for name in names} for _ in range(shape.n_layers)],
        "norm": pair(),
        "head": pair(),
    }
    assert next(params, None) is None
    return parts


def run_ours(model, accelerate, prompt, n_tokens, n_beams):
    settings = {
        "inputs": prompt[:, 1:] if prompt.shape[1] > 1 else None,
        "batch_size": len(prompt),
        "eos_id": -1,
        "max_length": n_tokens,
        "accelerate": accelerate,
    }
    if n_beams == 1:
        return decoding.autoregressive_sample(model, temperature=0.0, **settings)[:, None]
    return decoding.beam_search(model, n_beams=n_beams, length_penalty=0.0, **settings)


def warm_up(model, batch, n_beams, max_length):
    decoding.warmup(model, batch_size=batch, max_length=max_length, n_beams=n_beams)


def our_contenders(model):
    yield Contender("ours, eager", functools.partial(run_ours, model, False))
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # the same weights
    yield Contender(
        "ours, compiled",
        functools.partial(run_ours, twin, True),
        functools.partial(warm_up, twin),
    )
    small = decoding.quantize(model)
    yield Contender(
        "ours, int8",
        functools.partial(run_ours, small, True),
        functools.partial(warm_up, small),
    )
    smaller = decoding.quantize(model, bits=4)
    yield Contender(
        "ours, int4",
        functools.partial(run_ours, smaller, True),
        functools.partial(warm_up, smaller),
    )
    for bits in (8, 4):
        whole = decoding.quantize(model, bits=bits, activations="int8")
        yield Contender(
            f"ours, int{bits} x 8",
            functools.partial(run_ours, whole, True),
            functools.partial(warm_up, whole),
        )


def hugging_face(model, shape, device, dtype):
    """The same function and weights as a GPT2LMHeadModel."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.max_len,
        n_embd=shape.d_model,
        n_inner=shape.d_ff,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        activation_function=shape.activation,
        layer_norm_epsilon=1e-6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).to(device, dtype).eval()
    parts = weights_of(model, shape)
    mine = {"wte.weight": parts["embedding"], "wpe.weight": parts["positions"]}

    def give(name, pair, transposed):
        mine[f"{name}.weight"] = pair[0].T if transposed else pair[0]
        mine[f"{name}.bias"] = pair[1]

    for i, block in enumerate(parts["blocks"]):
        give(f"h.{i}.ln_1", block["norm1"], False)
        qkv = [torch.cat([block[name][j] for name in "qkv"]) for j in (0, 1)]
        give(f"h.{i}.attn.c_attn", qkv, True)
        give(f"h.{i}.attn.c_proj", block["o"], True)
        give(f"h.{i}.ln_2", block["norm2"], False)
        give(f"h.{i}.mlp.c_fc", block["ff1"], True)
        give(f"h.{i}.mlp.c_proj", block["ff2"], True)
    give("ln_f", parts["norm"], False)
    theirs.transformer.load_state_dict(mine)
    theirs.tie_weights()
    return theirs


def run_hugging_face(theirs, settings, prompt, n_tokens, n_beams):
    made = theirs.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=n_tokens,
        num_beams=n_beams,
        num_return_sequences=n_beams,
        length_penalty=0.0,
        **settings,
    )
    return made[:, prompt.shape[1] :].unflatten(0, (len(prompt), n_beams))


def compiled_settings():
    """A static cache compiles by itself on a GPU; on a CPU it has to be asked to."""
    from transformers import CompileConfig

    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    return {"compile_config": config}


def ctranslate2(theirs, folder, compute_type, args):
    """The model in CTranslate2, where the name of a symbol is its number."""
    from ctranslate2 import Generator
    from ctranslate2.converters.transformers import GPT2Loader

    if not os.path.exists(folder):
        loader = GPT2Loader()
        spec = loader.get_model_spec(theirs)
        loader.set_vocabulary(spec, [str(i) for i in range(theirs.config.vocab_size)])
        spec.config.layer_norm_epsilon = theirs.config.layer_norm_epsilon
        spec.config.bos_token = spec.config.unk_token = "0"
        spec.config.eos_token = str(theirs.config.vocab_size - 1)  # one is needed; never reached
        spec.validate()
        spec.optimize()
        os.makedirs(folder)
        spec.save(folder)
    return Generator(folder, device="cpu", compute_type=compute_type, intra_threads=args.threads)


def run_ctranslate2(generator, prompt, n_tokens, n_beams):
    results = generator.generate_batch(
        [[str(token) for token in row] for row in prompt.tolist()],
        beam_size=n_beams,
        num_hypotheses=n_beams,
        length_penalty=0.0,
        max_length=n_tokens,
        min_length=n_tokens,
        include_prompt_in_result=False,
    )
    return torch.tensor([result.sequences_ids for result in results])


def peer_contenders(model, shape, args, folder):
    """Returns the rivals that are there, and notes on who is not and on what was compared."""
    contenders, notes = [], []
    absent = {module: is_absent(module) for module in ("transformers", "ctranslate2")}
    if absent["transformers"]:  # it makes the model for CTranslate2 too
        return [], [f"{', '.join(args.peers)}: transformers is not installed"]
    theirs = hugging_face(model, shape, args.device, args.dtype)
    difference = largest_difference(model, theirs, shape)
    notes.append(f"{shape.name}: logits differ by {difference:.1e} of their spread at most")
    if difference > (1e-4 if args.dtype == torch.float32 else 0.1):
        raise SystemExit(f"This is not the same function. {notes[-1]}")
    prompt = random_prompt(shape, 2, 16, args.device)
    mine = run_ours(model, False, prompt, 16, 1)
    if args.dtype == torch.float32 and not torch.equal(
        mine, run_hugging_face(theirs, {}, prompt, 16, 1)
    ):
        raise SystemExit(f"{shape.name}: greedy tokens differ from those of transformers.")
    for name in args.peers:
        kind, _, flavor = name.partition("-")
        if kind == "hf":
            settings = compiled_settings() if flavor == "compiled" else {}
            if flavor != "dynamic":
                settings["cache_implementation"] = "static"
            run = functools.partial(run_hugging_face, theirs, settings)
        elif absent["ctranslate2"] or args.device.type != "cpu" or args.dtype != torch.float32:
            notes.append(
                f"{name}: "
                + (
                    "is not installed"
                    if absent["ctranslate2"]
                    else "is compared on a CPU in float32"
                )
            )
            continue
        else:
            run = functools.partial(run_ctranslate2, ctranslate2(theirs, folder, flavor, args))
        if name == "hf-compiled":  # beam search in transformers runs the model uncompiled
            contenders.append(Contender(name, run, serves=lambda batch, n_beams: n_beams == 1))
        else:
            contenders.append(Contender(name, run))
    return contenders, notes


class Trax:
    """Trax in a process of its own, with the same weights."""

    def __init__(self, python, model, shape, folder, threads):
        weights = os.path.join(folder, f"{shape.name}.npz")
        np.savez(weights, *(t.detach().numpy() for t in _nest.leaves(model.weights)))
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trax_rival.py")
        flags = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
        self._process = subprocess.Popen(
            [python, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )
        self._ask({"shape": dataclasses.asdict(shape), "weights": weights})

    def run(self, prompt, n_tokens, n_beams):
        request = {"prompt": prompt.tolist(), "n_tokens": n_tokens, "n_beams": n_beams}
        return torch.tensor(self._ask(request))

    def end(self):
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("Trax's process ended; run trax_rival.py by hand to see why.")
        return json.loads(answer)


def is_absent(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return True
    return False


def largest_difference(model, theirs, shape):
    """Of logits, over their spread; ours put the start symbol before the tokens themselves."""
    device = next(model.parameters()).device
    tokens = torch.randint(shape.vocab, (2, 32), device=device)
    with torch.no_grad():
        mine = model(tokens).float()
        start = torch.zeros_like(tokens[:, :1])
        other = theirs(torch.cat([start, tokens[:, :-1]], dim=1)).logits.float()
    return float((mine - other).abs().max() / other.std())


class Memory:
    """Measures bytes a second: a sum (read) or a copy (read and write) of 512 MiB, the faster."""

    def __init__(self, device):
        self.device = device
        self.x = torch.ones(2**27, device=device)
        self.y = torch.empty_like(self.x)
        self.rate()  # the pages are there from then on

    def rate(self):
        read = self.x.nbytes / seconds(self.x.sum, self.device)
        return max(read, 2 * self.x.nbytes / seconds(self.copy, self.device))

    def copy(self):
        self.y.copy_(self.x)


def seconds(run, device):
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bytes_of_step(model, shape, n_rows, n_tokens):
    """Weights that a step reads, and the cache, which is half full on average."""
    parts = weights_of(model, shape)
    weights = sum(p.nbytes for p in model.parameters())
    weights -= parts["embedding"].nbytes + parts["positions"].nbytes  # of these a few vectors
    size = parts["embedding"].element_size()
    return weights + n_rows * n_tokens / 2 * 2 * shape.n_layers * shape.d_model * size


def random_prompt(shape, batch, length, device):
    """Symbols (batch, length), the first of them the start symbol."""
    prompt = torch.randint(shape.vocab, (batch, length), generator=torch.Generator().manual_seed(1))
    prompt[:, 0] = 0
    return prompt.to(device)


def measure(shape, model, contenders, batch, n_beams, args, memory):
    """Times all contenders in turns and returns their rows."""
    n_tokens = max(4, shape.n_tokens // 5) if args.quick else args.tokens or shape.n_tokens
    contenders = [c for c in contenders if c.serves(batch, n_beams)]
    prompt = random_prompt(shape, batch, PROMPT_LENGTH, args.device)
    cold, cold_call, warm, steps, made, rates = {}, {}, {}, {}, {}, []
    for c in contenders:

        def first(c=c):
            c.start(batch, n_beams, PROMPT_LENGTH + n_tokens)
            c.run(prompt, 1, n_beams)

        def call(c=c):
            made[c.name] = c.run(prompt, n_tokens, n_beams).cpu()

        cold[c.name] = seconds(first, args.device)
        cold_call[c.name] = seconds(call, args.device)
        c.run(prompt[:, :1], n_tokens, n_beams)
        warm[c.name], steps[c.name] = [], []
    if args.dtype == torch.float32 and not torch.equal(made["ours, eager"], made["ours, compiled"]):
        raise SystemExit(
            f"{shape.name}, {batch} x {n_beams}: compiled tokens differ from eager ones."
        )
    tokens = {name: best[:, 0] for name, best in made.items()}
    for repeat in range(args.rounds):
        rates.append(memory.rate())
        turn = repeat % len(contenders)
        for c in contenders[turn:] + contenders[:turn]:
            if repeat < 3:
                first = functools.partial(c.run, prompt, 1, n_beams)
                warm[c.name].append(seconds(first, args.device))
            run = functools.partial(c.run, prompt[:, :1], n_tokens, n_beams)
            steps[c.name].append(seconds(run, args.device) / n_tokens)

    rate = statistics.median(rates)
    n_bytes = bytes_of_step(model, shape, batch * n_beams, n_tokens)
    reference = tokens[contenders[0].name]
    rows = []
    for c in contenders:
        times = steps[c.name]
        quartiles = statistics.quantiles(times, n=4)
        is_ours = c.name.startswith("ours")
        rivals = [other for other in contenders if is_ours and not other.name.startswith("ours")]
        rows.append(
            {
                "model": shape.name,
                "batch": batch,
                "beams": n_beams,
                "tokens": n_tokens,
                "who": c.name,
                "step_ms": 1e3 * statistics.median(times),
                "step_ms_quartiles": [1e3 * quartiles[0], 1e3 * quartiles[2]],
                "times_as_fast_as": {
                    other.name: statistics.median(
                        theirs / mine for theirs, mine in zip(steps[other.name], times, strict=True)
                    )
                    for other in rivals
                },
                "bandwidth": rate,
                "share_of_bandwidth": None
                if "int8" in c.name or "int4" in c.name
                else n_bytes / statistics.median(times) / rate,
                "first_cold_ms": 1e3 * cold[c.name],
                "first_warm_ms": 1e3 * statistics.median(warm[c.name]),
                "call_cold_s": cold_call[c.name],
                "same_rows": int((tokens[c.name] == reference).all(dim=1).sum()),
                "same_tokens": float((tokens[c.name] == reference).double().mean()),
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row):
    low, high = row["step_ms_quartiles"]
    share = row["share_of_bandwidth"]
    same = f"{row['same_rows']}/{row['batch']}"
    ratios = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in row["times_as_fast_as"].items())
    return (
        f"{row['model']:6}{row['batch']:6}{row['beams']:6}  {row['who']:15}{row['step_ms']:9.2f} ms"
        f"{f'({low:.2f} to {high:.2f})':>20}{'' if share is None else f'{share:.0%}':>7}"
        f"{row['first_cold_ms']:10.1f}{row['first_warm_ms']:10.1f}{row['call_cold_s']:8.2f} s"
        f"{same:>7}  {ratios}"
    )


def trax_serves(batch, n_beams):
    return n_beams == 1 or batch == 1


def parse():
    parser = argparse.ArgumentParser(
        description="Milliseconds a token: ours, Hugging Face's transformers, CTranslate2.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="all", help="small, gpt2, all (both), or 1b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="1 is greedy")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--trax", metavar="PYTHON", help="the interpreter of Trax's environment")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, help="in a call; by default 100, gpt2: 32")
    parser.add_argument("--rounds", type=int, help="by default 7, quick: 3")
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default="float32")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 7)
    wanted = {"all": ("small", "gpt2")}.get(args.model, (args.model,))
    args.shapes = [shape for shape in SHAPES if shape.name in wanted]
    if not args.shapes:
        parser.error(f"--model is small, gpt2, all or 1b; got {args.model}.")
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
        memory = Memory(args.device)
        print(
            f"torch {torch.__version__}, {args.device}, {args.dtype}, {args.threads} threads, "
            f"median (quartiles) of {args.rounds} rounds, memory now {memory.rate() / 1e9:.1f} GB/s"
        )
        for shape in args.shapes:
            model = ours(shape, args.device, args.dtype)
            rivals, remarks = peer_contenders(model, shape, args, os.path.join(folder, shape.name))
            contenders = [*our_contenders(model), *rivals]
            trax = None
            if args.trax:
                trax = Trax(args.trax, model, shape, folder, args.threads)
                contenders.append(Contender("trax", trax.run, serves=trax_serves))
            print(*(note for note in remarks if note not in notes), sep="\n")
            notes += [note for note in remarks if note not in notes]
            print(
                f"{'model':6}{'batch':>6}{'beams':>6}  {'':15}{'a step':>12}{'(quartiles)':>20}"
                f"{'share':>7}{'1st cold':>10}{'warm, ms':>10}{'then all':>10}{'same':>7}"
                "  times as fast as"
            )
            for batch in args.batches:
                for n_beams in args.beams:
                    rows += measure(shape, model, contenders, batch, n_beams, args, memory)
            if trax is not None:
                trax.end()
    settings = {
        "torch": torch.__version__,
        "device": str(args.device),
        "dtype": str(args.dtype),
        "threads": args.threads,
        "rounds": args.rounds,
        "notes": notes,
    }
    print(json.dumps({**settings, "rows": rows}))


if __name__ == "__main__":
    main()
