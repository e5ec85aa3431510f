"""`train TEXT RUN`: a language model of one's own text, with the settings of the example."""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trax_torch import _distributed, optimizers
from trax_torch import layers as tl
from trax_torch._command import text_model
from trax_torch.examples.stdlib_lm import Windows, read_texts
from trax_torch.supervised import EvalTask, Loop, TrainTask, lr_schedules, share_of

_SIZES = ("length", "d_model", "d_ff", "n_layers", "n_heads", "dropout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    own = text_model.TextModel()
    parser.add_argument("text", metavar="TEXT", help="a file or folder to learn from")
    parser.add_argument("run", metavar="RUN", help="a folder for checkpoints and logs")
    parser.add_argument("--steps", type=int, default=900, help="how many steps to train in all")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evals and saves")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")
    of_run = parser.add_argument_group(
        "the model", "A run that goes on keeps what it began with; these are then left out."
    )
    of_run.add_argument(
        "--tokenizer",
        choices=("bytes", "bpe"),
        help=f"by default {own.tokenizer}; bpe is trained on the text, and needs tokenizers",
    )
    of_run.add_argument("--vocab-size", type=int, help="tokens of bpe at most; by default 2048")
    for name in _SIZES:
        default = getattr(own, name)
        what = "tokens in a window" if name == "length" else f"as {name} of TransformerLM"
        of_run.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), help=f"{what}; by default {default}"
        )


def run(args: argparse.Namespace) -> None:
    """Trains, measures and saves."""
    trained_on, held_out = (part.tobytes() for part in read_texts(args.text))
    model, tokenizer = _model_of(args, trained_on)
    tokens, held = tokenizer.encode(trained_on), tokenizer.encode(held_out)
    if min(len(tokens), len(held)) < 2:
        raise ValueError(f"There is too little text in {args.text}: {len(tokens)} tokens.")
    per_byte = len(held) / len(held_out)
    loop = _loop(args, model, tokens, held, per_byte)
    if loop.is_chief:
        text_model.keep(args.run, model, tokenizer)
        print(
            f"Training on {len(tokens):,} tokens of {len(trained_on):,} bytes, held out: "
            f"{len(held):,}."
        )
    loop.run(until=args.steps)
    measured = loop.history.get("eval", "metrics/bits per byte")
    if loop.is_chief and measured:
        step, bits = measured[-1]
        print(f"\nHeld out at step {step}: {bits:.3f} bits per byte.")
        print(f"To have it write: python -m trax_torch sample {args.run} --prompt TEXT")


def _model_of(
    args: argparse.Namespace, data: bytes
) -> tuple[text_model.TextModel, text_model.Tokenizer]:
    """Returns the model that the folder keeps, or the one asked for, and its tokenizer."""
    asked: dict[str, Any] = {
        name: getattr(args, name)
        for name in (*_SIZES, "tokenizer", "vocab_size")
        if getattr(args, name) is not None
    }
    there = text_model.kept(args.run)
    if there is not None:
        other = [n for n, x in asked.items() if n != "vocab_size" and getattr(there, n) != x]
        if other:
            was = ", ".join(f"{n}={asdict(there)[n]!r}" for n in other)
            raise ValueError(
                f"The run in {args.run} began with {was}; got "
                f"{', '.join(f'{n}={asked[n]!r}' for n in other)}. Leave that out, or give another "
                f"folder."
            )
        return there, text_model.tokenizer_of(args.run, there)
    if asked.get("tokenizer", "bytes") == "bytes":
        if "vocab_size" in asked:
            raise ValueError(
                "Bytes are 256 tokens. Leave --vocab-size out, or add --tokenizer bpe."
            )
        return replace(text_model.TextModel(), **asked), text_model.Tokenizer()
    if _distributed.launched()[1] > 1:
        raise ValueError(
            "A tokenizer is trained by one process. Begin the run without torchrun, by --steps 0."
        )
    tokenizer = text_model.trained(data, asked.get("vocab_size", 2048))
    asked["vocab_size"] = tokenizer.vocab_size
    return replace(text_model.TextModel(), **asked), tokenizer


def _loop(
    args: argparse.Namespace,
    model: text_model.TextModel,
    tokens: np.ndarray,
    held: np.ndarray,
    per_byte: float,
) -> Loop[tl.Layer]:
    """Returns the run, as the example has it; its evals are in bits per byte of text."""
    task = TrainTask(
        labeled_data=share_of(Windows(tokens, args.batch_size, model.length, args.seed)),
        loss_layer=tl.WeightedCategoryCrossEntropy(),
        optimizer=optimizers.Adam(weight_decay_rate=0.0, clip_grad_norm=1.0),
        lr_schedule=lr_schedules.warmup_and_rsqrt_decay(100, args.learning_rate),
        n_steps_per_checkpoint=args.eval_every,
    )
    windows = Windows(held, args.batch_size, model.length, args.seed + 1)
    batches = [next(windows) for _ in range(4)]  # the same at each eval

    def to_bits(nats: torch.Tensor) -> torch.Tensor:
        return nats / math.log(2) * per_byte

    evals = EvalTask(
        labeled_data=share_of(batches),
        metrics=[
            tl.Serial(tl.WeightedCategoryCrossEntropy(), tl.PureLayer(to_bits, name="ToBits")),
            tl.WeightedCategoryAccuracy(),
        ],
        metric_names=["bits per byte", "accuracy"],
        sample_batch=batches[0],
    )
    return Loop(
        model.build(),
        task,
        eval_tasks=evals,
        output_dir=str(Path(args.run).expanduser()),
        random_seed=args.seed,
        device=args.device,
    )
