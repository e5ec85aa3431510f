"""`sample RUN`: a trained model writes on from a prompt."""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from trax_torch._command import text_model
from trax_torch._errors import CheckpointError
from trax_torch.supervised import decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run of `train`")
    parser.add_argument("--checkpoint", default="model", help="which of its checkpoints")
    parser.add_argument("--prompt", default="\n", help="what to go on from")
    parser.add_argument("--max-length", type=int, help="tokens to write; by default all that fit")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 writes the likeliest")
    parser.add_argument("--top-k", type=int, help="draws among so many tokens")
    parser.add_argument("--top-p", type=float, help="draws among tokens of so much probability")
    parser.add_argument("--seed", type=int, help="of what is drawn; by default another each time")
    parser.add_argument("--beams", type=int, default=1, help="more than 1: the best of a search")
    parser.add_argument("--int8", action="store_true", help="with weights of 8 bits")


def run(args: argparse.Namespace) -> None:
    """Prints the prompt, and what the model writes after it, as it comes."""
    model = text_model.kept(args.run)
    if model is None:
        raise CheckpointError(
            f"{args.run} has no text_model.json, so it is no folder of a run of `python -m "
            f"trax_torch train TEXT RUN`. Give one that is."
        )
    tokenizer = text_model.tokenizer_of(args.run, model)
    tokens = tokenizer.encode(args.prompt.encode()).astype(np.int64)
    if not len(tokens):
        raise ValueError("A prompt has one token or more; got an empty one. Leave --prompt out.")
    n = min(args.max_length or model.length, model.length - 1)
    tokens = tokens[-(model.length - n) :]
    layer: Any = model.build()
    layer.init_from_file(f"{args.run}/{args.checkpoint}")
    layer.eval()
    if args.int8:
        layer = decoding.quantize(layer)
    print(args.prompt, end="", flush=True)
    for piece in tokenizer.pieces(_tokens(args, layer, tokens[None], n)):
        print(piece, end="", flush=True)
    print()


def _tokens(args: argparse.Namespace, layer: Any, prompt: np.ndarray, n: int) -> Iterator[int]:
    """Yields the tokens that follow, as they are made; those of beams when all are."""
    if args.beams > 1:
        found = decoding.beam_search(layer, prompt, n_beams=args.beams, eos_id=-1, max_length=n)
        yield from found[0, 0].tolist()
        return
    stream = decoding.autoregressive_sample_stream(
        layer,
        prompt,
        temperature=args.temperature,
        max_length=n,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    for token in stream:
        yield int(token[0, 0])
