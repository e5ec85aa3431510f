"""Transformer models, written with `tl` alone.

The layers are those of Trax in the order of Trax, so that weights trained there fit here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trax_torch import layers as tl


def TransformerEncoder(
    vocab_size: int,
    n_classes: int = 10,
    d_model: int = 512,
    d_ff: int = 2048,
    n_layers: int = 6,
    n_heads: int = 8,
    max_len: int = 2048,
    dropout: float = 0.1,
    dropout_shared_axes: Any = None,
    mode: tl.Mode = "train",
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
) -> tl.Layer:
    """Returns a transformer encoder that classifies: tokens in, activations of the classes out.

    It maps integers (batch, length), 0 for padding, to floats (batch, n_classes). It sees a
    sequence whole, so predict mode is eval mode.

    Args:
      vocab_size: number of tokens.
      n_classes: number of classes.
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

    Source: Trax `models/transformer.py::TransformerEncoder`. The mean over positions counts
      padding, as there.
    """
    parts = _Parts(d_model, d_ff, n_heads, dropout, dropout_shared_axes, mode, ff_activation)
    return tl.Serial(
        tl.Branch([], tl.PaddingMask()),  # tokens masks
        tl.Embedding(vocab_size, d_model),
        parts.dropout_layer(),
        tl.PositionalEncoding(max_len=max_len, mode=mode, stepwise=False),
        [parts.encoder_block() for _ in range(n_layers)],
        tl.Select([0], n_in=2),  # drops the masks
        tl.LayerNorm(),
        tl.Mean(axis=1),
        tl.Dense(n_classes),
    )


def TransformerDecoder(
    vocab_size: int | None = None,
    d_model: int = 512,
    d_ff: int = 2048,
    n_layers: int = 6,
    n_heads: int = 8,
    max_len: int = 2048,
    dropout: float = 0.1,
    dropout_shared_axes: Any = None,
    mode: tl.Mode = "train",
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
) -> tl.Layer:
    """Returns a transformer decoder without a head: a sequence in, a vector for each position out.

    It maps integers (batch, length), or vectors (batch, length, d) where `vocab_size` is None, to
    floats (batch, length, d_model). The output at a position depends on what came up to and at it;
    nothing is shifted. In predict mode it takes the next positions of a sequence and remembers the
    past.

    Args:
      vocab_size: number of tokens; None takes vectors, which a Dense layer maps to d_model.
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

    Source: Trax `models/transformer.py::TransformerDecoder`, which in predict mode gives each
      call's first position the mark of position 0; here positions go on.
    """
    parts = _Parts(d_model, d_ff, n_heads, dropout, dropout_shared_axes, mode, ff_activation)
    return tl.Serial(
        tl.Dense(d_model) if vocab_size is None else tl.Embedding(vocab_size, d_model),
        parts.dropout_layer(),
        tl.PositionalEncoding(max_len=max_len, mode=mode),
        [parts.decoder_block() for _ in range(n_layers)],
        tl.LayerNorm(),
    )


def TransformerLM(
    vocab_size: int,
    d_model: int = 512,
    d_ff: int = 2048,
    n_layers: int = 6,
    n_heads: int = 8,
    max_len: int = 2048,
    dropout: float = 0.1,
    dropout_shared_axes: Any = None,
    mode: tl.Mode = "train",
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
    *,
    layer_norm_epsilon: float = 1e-6,
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
      layer_norm_epsilon: see `tl.LayerNorm`; GPT-2 has 1e-5.

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
    parts = _Parts(
        d_model,
        d_ff,
        n_heads,
        dropout,
        dropout_shared_axes,
        mode,
        ff_activation,
        layer_norm_epsilon,
    )
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size, d_model),
        parts.dropout_layer(),
        tl.PositionalEncoding(max_len=max_len, mode=mode),
        [parts.decoder_block() for _ in range(n_layers)],
        tl.LayerNorm(epsilon=layer_norm_epsilon),
        tl.Dense(vocab_size),
    )


def Transformer(
    input_vocab_size: int,
    output_vocab_size: int | None = None,
    d_model: int = 512,
    d_ff: int = 2048,
    n_encoder_layers: int = 6,
    n_decoder_layers: int = 6,
    n_heads: int = 8,
    max_len: int = 2048,
    dropout: float = 0.1,
    dropout_shared_axes: Any = None,
    mode: tl.Mode = "train",
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
) -> tl.Layer:
    """Returns a transformer that reads one sequence and writes another.

    It maps (source, target), integers (batch, n) and (batch, m) with 0 for padding, to
    (activations, target): floats (batch, m, output_vocab_size), and the target as it came, for the
    loss. The activations at a position depend on the whole source and on the target before it.

    In predict mode it takes the source and the next tokens of the target, and remembers the past.
    The source is read at the first call; later ones bring it again, for its padding alone. Source
    and target may each have up to `max_len` tokens.

    Args:
      input_vocab_size: number of the source's tokens.
      output_vocab_size: number of the target's tokens; None is for tokens of one vocabulary, and
        source and target share one embedding then.
      d_model: size of the vectors between blocks.
      d_ff: size of the feed-forward part's inner vectors.
      n_encoder_layers: number of blocks that read.
      n_decoder_layers: number of blocks that write.
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
      >>> model = Transformer(16, d_model=32, d_ff=64, n_encoder_layers=2, n_decoder_layers=2,
      ...     n_heads=2)
      >>> tokens = torch.ones(1, 5, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64)
      >>> _ = model.init(tokens)
      >>> logits, targets = model(tokens)
      >>> logits.shape, targets.shape
      (torch.Size([1, 3, 16]), torch.Size([1, 3]))

    Source: Trax `models/transformer.py::Transformer`; Vaswani et al. 2017, arXiv:1706.03762.
    """
    parts = _Parts(d_model, d_ff, n_heads, dropout, dropout_shared_axes, mode, ff_activation)
    in_embedder = tl.Embedding(input_vocab_size, d_model)
    if output_vocab_size is None:
        out_embedder, output_vocab_size = in_embedder, input_vocab_size
    else:
        out_embedder = tl.Embedding(output_vocab_size, d_model)
    # The source comes whole, so that predict mode neither counts its positions nor limits them.
    encoder = tl.Serial(
        in_embedder,
        parts.dropout_layer(),
        tl.PositionalEncoding(max_len=max_len, mode=mode, stepwise=False),
        [parts.encoder_block() for _ in range(n_encoder_layers)],
        tl.LayerNorm(),
    )
    return tl.Serial(
        tl.Select([0, 1, 1]),  # source target target: the last for the loss
        tl.Branch([], tl.PaddingMask()),  # source masks target target
        tl.Cache(encoder, mode),  # vectors_e masks target target
        tl.Select([2, 1, 0]),  # target masks vectors_e target
        tl.ShiftRight(mode=mode),
        out_embedder,
        parts.dropout_layer(),
        tl.PositionalEncoding(max_len=max_len, mode=mode),
        tl.Branch([], tl.EncoderDecoderMask()),  # vectors_d masks vectors_e target
        [parts.encoder_decoder_block() for _ in range(n_decoder_layers)],
        tl.LayerNorm(),
        tl.Select([0], n_in=3),  # drops masks and the encoder's vectors
        tl.Dense(output_vocab_size),
    )


@dataclass(frozen=True)
class _Parts:
    """The blocks that the models of this room are made of, for one choice of sizes."""

    d_model: int
    d_ff: int
    n_heads: int
    dropout: float
    dropout_shared_axes: Any
    mode: tl.Mode
    ff_activation: Callable[[], tl.Layer]
    epsilon: float = 1e-6

    def dropout_layer(self) -> tl.Layer:
        return tl.Dropout(rate=self.dropout, shared_axes=self.dropout_shared_axes, mode=self.mode)

    def encoder_block(self) -> list[tl.Layer]:
        """Maps (vectors, masks) to the same."""
        attention = tl.Attention(self.d_model, self.n_heads, self.dropout, self.mode)
        return [self._residual(attention), self._residual(self._feed_forward())]

    def decoder_block(self) -> list[tl.Layer]:
        """Maps vectors to vectors."""
        attention = tl.CausalAttention(
            self.d_model, n_heads=self.n_heads, dropout=self.dropout, mode=self.mode
        )
        return [self._residual(attention), self._residual(self._feed_forward())]

    def encoder_decoder_block(self) -> list[tl.Layer]:
        """Maps (vectors_d, masks, vectors_e) to the same."""
        # Trax drops no weights of this attention, whatever the rate.
        causal = tl.CausalAttention(self.d_model, n_heads=self.n_heads, mode=self.mode)
        cross = tl.AttentionQKV(
            self.d_model, self.n_heads, self.dropout, self.mode, cache_KV_in_predict=True
        )
        return [
            self._residual(causal),
            self._residual(
                tl.Select([0, 2, 2, 1, 2]),  # vectors_d vectors_e vectors_e masks vectors_e
                cross,
            ),
            self._residual(self._feed_forward()),
        ]

    def _residual(self, *layers: Any) -> tl.Layer:
        return tl.Residual(tl.LayerNorm(epsilon=self.epsilon), *layers, self.dropout_layer())

    def _feed_forward(self) -> list[tl.Layer]:
        return [
            tl.Dense(self.d_ff),
            self.ff_activation(),
            self.dropout_layer(),
            tl.Dense(self.d_model),
        ]
