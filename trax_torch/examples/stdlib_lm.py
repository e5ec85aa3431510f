"""Trains a byte-level language model on Python's own standard library, and lets it write.

    python -m trax_torch.examples.stdlib_lm

It needs no download: the text is the source code that ships with Python, or any text of yours
(`--text`). Stopped, and run again with the same `--output-dir`, it goes on. On several devices,
each process takes its rows of every batch:

    torchrun --nproc-per-node=2 -m trax_torch.examples.stdlib_lm
"""

import argparse
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, decoding, lr_schedules, share_of

HELD_OUT_EVERY = 20  # one file in so many is kept for evals


def main(argv: list[str] | None = None) -> float:
    """Trains, evaluates, saves, and completes a prompt.

    Args:
      argv: command-line arguments; by default the process's.

    Returns:
      The last held-out loss, in bits per byte.
    """
    args = parse(argv)
    train_text, held_out_text = read_texts(args.text)
    model = models.TransformerLM(
        vocab_size=256,
        d_model=args.d_model,
        d_ff=args.d_ff,
        n_layers=args.n_layers,
        n_heads=args.n_heads,
        max_len=args.length,
        dropout=args.dropout,
    )
    train_task = TrainTask(
        labeled_data=share_of(Windows(train_text, args.batch_size, args.length, args.seed)),
        loss_layer=tl.WeightedCategoryCrossEntropy(),
        optimizer=optimizers.Adam(weight_decay_rate=0.0, clip_grad_norm=1.0),
        lr_schedule=lr_schedules.warmup_and_rsqrt_decay(100, args.learning_rate),
        n_steps_per_checkpoint=args.eval_every,
    )
    held_out = Windows(held_out_text, args.batch_size, args.length, args.seed + 1)
    eval_batches = [next(held_out) for _ in range(4)]  # the same at each eval
    eval_task = EvalTask(
        labeled_data=share_of(eval_batches),
        metrics=[
            tl.Serial(tl.WeightedCategoryCrossEntropy(), tl.PureLayer(nats_to_bits, name="ToBits")),
            tl.WeightedCategoryAccuracy(),
        ],
        metric_names=["bits per byte", "accuracy"],
        sample_batch=eval_batches[0],
    )
    loop = Loop(
        model,
        train_task,
        eval_tasks=eval_task,
        output_dir=args.output_dir,
        random_seed=args.seed,
        device=args.device,
    )
    if loop.is_chief:
        print(f"Training on {train_text.size:,} bytes, held out: {held_out_text.size:,} bytes.")
    loop.run(until=args.steps)

    measured = loop.history.get("eval", "metrics/bits per byte")
    step, bits = measured[-1] if measured else (loop.step, math.nan)
    if loop.is_chief:
        print(f"\nHeld out at step {step}: {bits:.3f} bits per byte (untrained: 8).")
        print(f"\nA sample at temperature {args.temperature}:\n")
        print(complete(model, args.prompt, args.length, args.temperature, args.seed))
        print(f"\nCheckpoints and TensorBoard files are in {Path(args.output_dir).resolve()}")
    return bits


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the command line's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch.examples.stdlib_lm",
        description="Train a byte-level TransformerLM on Python's standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", help="a file or folder to learn from instead")
    parser.add_argument("--output-dir", default="stdlib_lm", help="checkpoints and logs go here")
    parser.add_argument("--steps", type=int, default=900, help="how many steps to train in all")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evals and saves")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="windows in a batch, of all ranks"
    )
    parser.add_argument("--length", type=int, default=128, help="bytes in a window")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--d-ff", type=int, default=512)
    parser.add_argument("--n-layers", type=int, default=3)
    parser.add_argument("--n-heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 writes the likeliest")
    parser.add_argument("--prompt", default="def __init__(self, ", help="what to complete")
    return parser.parse_args(argv)


def read_texts(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bytes to train on and those held out, split by file (one file: by its end).

    Raises:
      SystemExit: if there is nothing to read.
    """
    root = Path(path or sysconfig.get_path("stdlib")).expanduser()
    if not root.exists():
        raise SystemExit(f"There is no such file or folder: {root}. Give a text to learn from.")
    if root.is_file():
        data = np.frombuffer(root.read_bytes(), dtype=np.uint8)
        cut = data.size - data.size // HELD_OUT_EVERY
        texts = data[:cut], data[cut:]
    else:
        pattern = "*" if path else "*.py"
        files = sorted(p for p in root.rglob(pattern) if p.is_file() and _is_wanted(p, root, path))
        parts = (
            b"\n".join(f.read_bytes() for i, f in enumerate(files) if _is_held_out(i) == held_out)
            for held_out in (False, True)
        )
        trained, held_out_text = (np.frombuffer(part, dtype=np.uint8) for part in parts)
        texts = (trained, held_out_text)
    if min(text.size for text in texts) < 2:
        raise SystemExit(
            f"There is too little text in {root}: two files, or one long one, at least."
        )
    return texts


def _is_wanted(file: Path, root: Path, path: str | None) -> bool:
    """Leaves out what was installed beside the standard library, and its tests."""
    folders = set(file.relative_to(root).parts[:-1])
    return path is not None or not folders & {"site-packages", "test", "tests", "idlelib"}


def _is_held_out(index: int) -> bool:
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


class Windows:
    """Batches of random windows of a text; batch n is the same whenever it is asked for.

    Args:
      text: bytes.
      batch_size: windows in a batch.
      length: bytes in a window.
      seed: of the places.
    """

    def __init__(self, text: np.ndarray, batch_size: int, length: int, seed: int):
        self._text = np.tile(text, -(-(length + 1) // text.size)) if text.size <= length else text
        self._batch_size = batch_size
        self._length = length
        self._seed = seed
        self._n = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._n])
        self._n += 1
        starts = rng.integers(0, self._text.size - self._length + 1, self._batch_size)
        window = self._text[starts[:, None] + np.arange(self._length)].astype(np.int64)
        return window, window, np.ones(window.shape, dtype=np.float32)

    def state_dict(self) -> dict[str, int]:
        """Returns the position, for checkpoints."""
        return {"n": self._n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self._n = state["n"]


def nats_to_bits(x: torch.Tensor) -> torch.Tensor:
    """Returns a loss in bits."""
    return x / math.log(2)


def complete(model: tl.Layer, prompt: str, length: int, temperature: float, seed: int) -> str:
    """Returns `prompt` with what the model writes after it, `length` bytes at the most in all."""
    start = np.frombuffer(prompt.encode(), dtype=np.uint8).astype(np.int64)[None]
    start = start[:, -(length - 1) :]
    room = length - start.shape[1]
    tokens = decoding.autoregressive_sample(
        model, start, temperature=temperature, eos_id=0, max_length=room, seed=seed
    )
    return prompt + bytes(tokens[0].tolist()).decode(errors="replace")


if __name__ == "__main__":
    main()
