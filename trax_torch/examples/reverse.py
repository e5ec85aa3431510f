"""Trains an encoder-decoder to write words backwards, and lets it answer.

    python -m trax_torch.examples.reverse

It needs no download: the words are random letters, made on the fly. It takes a minute, and turns
nearly all words right that it has not seen: one letter by letter, as the tokens come, and many at
once by beam search. Stopped, and run again with the same `--output-dir`, it goes on.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, decoding, lr_schedules

PAD, END, FIRST_LETTER = 0, 1, 2
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
VOCAB_SIZE = FIRST_LETTER + len(ALPHABET)
HELD_OUT_EVERY = 10  # about one word in so many is kept for evals, and never trained on


def main(argv: list[str] | None = None) -> float:
    """Trains, evaluates, saves, and turns words that it was not trained on.

    Args:
      argv: command-line arguments; by default the process's.

    Returns:
      The share of those words that the likeliest beam turned right.
    """
    args = parse(argv)
    model = models.Transformer(
        VOCAB_SIZE,
        d_model=args.d_model,
        d_ff=args.d_ff,
        n_encoder_layers=args.n_layers,
        n_decoder_layers=args.n_layers,
        n_heads=args.n_heads,
        max_len=args.length + 1,
        dropout=args.dropout,
    )
    train_task = TrainTask(
        labeled_data=Words(args.batch_size, args.length, args.seed),
        loss_layer=tl.WeightedCategoryCrossEntropy(),
        optimizer=optimizers.Adam(weight_decay_rate=0.0, clip_grad_norm=1.0),
        lr_schedule=lr_schedules.warmup_and_rsqrt_decay(args.warmup, args.learning_rate),
        n_steps_per_checkpoint=args.eval_every,
    )
    eval_batch = next(Words(args.n_words, args.length, args.seed, held_out=True))
    eval_task = EvalTask(
        labeled_data=[eval_batch],
        metrics=[tl.WeightedCategoryCrossEntropy(), tl.MaskedSequenceAccuracy()],
        metric_names=["loss", "sequence accuracy"],
        sample_batch=eval_batch,
    )
    loop = Loop(
        model,
        train_task,
        eval_tasks=eval_task,
        output_dir=args.output_dir,
        random_seed=args.seed,
        device=args.device,
    )
    loop.run(until=args.steps)

    sources = eval_batch[0]
    print(f"\nAt step {loop.step}, a word it has not seen, letter by letter:\n")
    print(f"{spell(sources[0])} -> ", end="", flush=True)
    for letter in stream(model, sources[:1]):
        print(letter, end="", flush=True)

    print(f"\n\nMore of them, the likeliest of {args.n_beams} beams:\n")
    answers, scores = decoding.beam_search(
        model,
        sources,
        batch_size=len(sources),
        n_beams=args.n_beams,
        eos_id=END,
        max_length=args.length + 1,
        return_scores=True,
    )
    words = [(spell(s), spell(a)) for s, a in zip(sources, answers[:, 0].tolist(), strict=True)]
    for (word, answer), score in zip(words[:10], scores[:10, 0].tolist(), strict=True):
        mark = "" if answer == word[::-1] else f"   wrong: {word[::-1]}"
        print(f"{word:>{args.length}} -> {answer:{args.length}} {score:8.3f}{mark}")
    right = sum(answer == word[::-1] for word, answer in words) / len(words)
    print(f"\n{right:.1%} of {len(words)} words are right.")
    print(f"Checkpoints and TensorBoard files are in {Path(args.output_dir).resolve()}")
    return right


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the command line's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch.examples.reverse",
        description="Train an encoder-decoder Transformer to write words backwards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output-dir", default="reverse", help="checkpoints and logs go here")
    parser.add_argument("--steps", type=int, default=1000, help="how many steps to train in all")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evals and saves")
    parser.add_argument("--batch-size", type=int, default=64, help="words in a batch")
    parser.add_argument("--length", type=int, default=12, help="letters in the longest words")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--d-ff", type=int, default=128)
    parser.add_argument("--n-layers", type=int, default=1, help="of the encoder and the decoder")
    parser.add_argument("--n-heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest")
    parser.add_argument("--warmup", type=int, default=100, help="steps up to the highest rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")
    parser.add_argument("--n-words", type=int, default=200, help="held-out words to turn")
    parser.add_argument("--n-beams", type=int, default=4)
    return parser.parse_args(argv)


class Words:
    """Batches of random words and their reversals; batch n is the same whenever it is asked for.

    A batch is (source, target, weights), each (batch_size, length or length + 1), padded with 0:
    letters, the same backwards with an end symbol, and 1 where the target counts.

    Args:
      batch_size: words in a batch.
      length: letters in the longest words; the shortest have one.
      seed: of the letters.
      held_out: gives the words that are never trained on instead of the others.
    """

    def __init__(self, batch_size: int, length: int, seed: int, held_out: bool = False):
        self._batch_size = batch_size
        self._length = length
        self._seed = seed
        self._held_out = held_out
        self._n = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, self._n, int(self._held_out)])
        self._n += 1
        source = np.zeros((0, self._length), dtype=np.int64)
        while len(source) < self._batch_size:
            drawn = self._draw(rng)
            source = np.concatenate([source, drawn[is_held_out(drawn) == self._held_out]])
        source = source[: self._batch_size]
        target = np.zeros((self._batch_size, self._length + 1), dtype=np.int64)
        for row, word in zip(target, source, strict=True):
            n = np.count_nonzero(word)
            row[:n], row[n] = word[:n][::-1], END
        return source, target, (target != PAD).astype(np.float32)

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        letters = rng.integers(FIRST_LETTER, VOCAB_SIZE, (self._batch_size, self._length))
        lengths = rng.integers(1, self._length + 1, (self._batch_size, 1))
        return np.where(np.arange(self._length) < lengths, letters, PAD)

    def state_dict(self) -> dict[str, int]:
        """Returns the position, for checkpoints."""
        return {"n": self._n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self._n = state["n"]


def is_held_out(source: np.ndarray) -> np.ndarray:
    """Returns which words (batch, length) are kept for evals; the word alone decides."""
    result: np.ndarray = (source @ np.arange(1, source.shape[1] + 1) ** 2) % HELD_OUT_EVERY == 0
    return result


def spell(tokens: Any) -> str:
    """Returns tokens as letters, up to padding or the end symbol."""
    letters = itertools.takewhile(lambda t: t >= FIRST_LETTER, tokens)
    return "".join(ALPHABET[t - FIRST_LETTER] for t in letters)


def stream(model: tl.Layer, source: np.ndarray) -> Iterator[str]:
    """Yields the answer's letters to a word (1, length), each as soon as the model has made it."""
    n_letters = source.shape[1]
    tokens = decoding.autoregressive_sample_stream(
        model, source, temperature=0.0, max_length=n_letters
    )
    for token in itertools.islice(tokens, n_letters):
        if token < FIRST_LETTER:
            return
        yield spell(token[0].tolist())


if __name__ == "__main__":
    main()
