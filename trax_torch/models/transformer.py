"""Transformer models, written with `tl.` alone.

The layers are those of Trax in the order of Trax, so that weights trained there fit here.
"""

from collections.abc import Callable
from typing import Any

from trax_torch import layers as tl


def TransformerLM(
    vocab_size: int,
    d_model: int = 512,
    d_ff: int = 2048,
    n_layers: int = 6,
    n_heads: int = 8,
    max_len: int = 2048,
    dropout: float = 0.1,
    dropout_shared_axes: Any = None,
    mode: str = "train",
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
) -> tl.Layer:
    """Returns a transformer language model: tokens in, activations of the next tokens out.

    It maps integers (batch, length) to floats (batch, length, vocab_size); the output at a position
    depends on the tokens before it. In predict mode it takes the next tokens of a sequence and
    remembers the past, and its output tells of the token after each.

    Args:
      vocab_size: number of tokens; 0 is also the padding.
      d_model: size of the vectors between blocks.
      d_ff: size of the feed-forward part's inner vectors.
      n_layers: number of blocks.
      n_heads: number of attention heads; divides d_model.
      max_len: the longest sequence.
      dropout: the probability that a value is dropped while training.
      dropout_shared_axes: axes along which values are dropped together.
      mode: `'train'`, `'eval'` or `'predict'`.
      ff_activation: makes the feed-forward part's activation.

    Raises:
      ValueError: if n_heads does not divide d_model, or there is no such mode.

    Example:
      >>> import torch
      >>> model = TransformerLM(vocab_size=16, d_model=32, d_ff=64, n_layers=2, n_heads=2)
      >>> tokens = torch.zeros(1, 5, dtype=torch.int64)
      >>> _ = model.init(tokens)
      >>> model(tokens).shape
      torch.Size([1, 5, 16])

    Source: Trax `models/transformer.py::TransformerLM`; Vaswani et al. 2017, arXiv:1706.03762.
    """

    def Dropout() -> tl.Layer:
        return tl.Dropout(rate=dropout, shared_axes=dropout_shared_axes, mode=mode)

    def decoder_block() -> list[tl.Layer]:
        return [
            tl.Residual(
                tl.LayerNorm(),
                tl.CausalAttention(d_model, n_heads=n_heads, dropout=dropout, mode=mode),
                Dropout(),
            ),
            tl.Residual(
                tl.LayerNorm(),
                _feed_forward(d_model, d_ff, Dropout, ff_activation),
                Dropout(),
            ),
        ]

    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size, d_model),
        Dropout(),
        tl.PositionalEncoding(max_len=max_len, mode=mode),
        [decoder_block() for _ in range(n_layers)],
        tl.LayerNorm(),
        tl.Dense(vocab_size),
    )


def _feed_forward(
    d_model: int,
    d_ff: int,
    Dropout: Callable[[], tl.Layer],
    activation: Callable[[], tl.Layer],
) -> list[tl.Layer]:
    return [tl.Dense(d_ff), activation(), Dropout(), tl.Dense(d_model)]
