"""Reformer models: reversible transformers, with attention to long sequences.

The layers are those of Trax in the order of Trax, so that weights trained there fit here. Kitaev et
al. 2020, arXiv:2001.04451.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.models.reformer._blocks import Attention as _Attention
from trax_torch.models.reformer._blocks import DecoderBlock as DecoderBlock
from trax_torch.models.reformer._blocks import EncoderBlock as EncoderBlock
from trax_torch.models.reformer._blocks import EncoderDecoderBlock as EncoderDecoderBlock
from trax_torch.models.research import configurable_transformer as ct


def ReformerLM(
    vocab_size: int,
    d_model: int = 512,
    d_ff: int = 2048,
    d_attention_key: int = 64,
    d_attention_value: int = 64,
    n_layers: int = 6,
    n_heads: int = 8,
    dropout: float = 0.1,
    max_len: int = 2048,
    attention_type: _Attention | Sequence[_Attention] = tl.SelfAttention,
    pos_type: str | None = None,
    pos_axial_shape: Any = (),
    pos_d_axial_embs: Any = None,
    pos_start_from_zero_prob: float = 1.0,
    pos_max_offset_to_add: int = 0,
    ff_activation: Callable[[], tl.Layer] = tl.FastGelu,
    ff_use_sru: Any = 0,
    ff_chunk_size: int = 0,
    ff_sparsity: Any = 0,
    loss_sparsity_type: str = "mult",
    loss_sparsity: int = 0,
    loss_d_lowrank: int = 0,
    loss_sparsity_prob: float | None = None,
    attention_chunk_size: int = 0,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a reversible transformer language model: tokens in, activations of the next out.

    It maps integers (batch, length) to floats (batch, length, vocab_size); the output at a position
    depends on the tokens before it. In predict mode it takes the next tokens of a sequence and
    remembers the past, and its output tells of the token after each.

    However deep it is, training keeps no activations of its blocks: the backward pass computes
    them again. With `tl.LSHSelfAttention`, a long sequence costs n log n.

    Args:
      vocab_size: number of tokens; 0 is also the padding.
      d_model: size of the vectors in each of the two streams between blocks.
      d_ff: size of the feed-forward part's inner vectors.
      d_attention_key: size of a head's queries and keys.
      d_attention_value: size of a head's values.
      n_layers: number of blocks.
      n_heads: number of attention heads.
      dropout: the probability that a value, or an attention weight, is dropped while training.
      max_len: the longest sequence.
      attention_type: makes a block's attention layer, from the arguments of `tl.SelfAttention`; or
        several such, which blocks take in turn.
      pos_type, pos_axial_shape, pos_d_axial_embs, pos_start_from_zero_prob, pos_max_offset_to_add:
        as for `PositionalEncoder`.
      ff_activation, ff_use_sru, ff_chunk_size, ff_sparsity: as for `FeedForwardWithOptions`.
      loss_sparsity, loss_sparsity_prob: of Trax's sparse layers; 0 and None here.
      loss_sparsity_type, loss_d_lowrank: have no effect without them.
      attention_chunk_size: above 0, how many rows of a batch attend at once.
      mode: `'train'`, `'eval'` or `'predict'`.

    Raises:
      ValueError: if the attention types do not divide the blocks evenly, or for Trax's sparse
        layers.

    Example:
      >>> model = ReformerLM(vocab_size=16, d_model=32, d_ff=64, n_layers=2, n_heads=2)
      >>> tokens = torch.zeros(1, 5, dtype=torch.int64)
      >>> _ = model.init(tokens)
      >>> model(tokens).shape
      torch.Size([1, 5, 16])

    Source: Trax `models/reformer/reformer.py::ReformerLM`.
    """
    marks = (pos_axial_shape, pos_d_axial_embs, pos_start_from_zero_prob, pos_max_offset_to_add)
    ct.refuse_sparsity("loss_sparsity", loss_sparsity)
    ct.refuse_sparsity("loss_sparsity_prob", loss_sparsity_prob)
    sizes = (d_model, d_ff, d_attention_key, d_attention_value, n_heads)
    ff = (ff_activation, ff_use_sru, ff_chunk_size, ff_sparsity)
    rest = _options(dropout, *ff, attention_chunk_size, mode)
    blocks = [DecoderBlock(*sizes, kind, **rest) for kind in _in_turn(attention_type, n_layers)]
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size, d_model),
        _dropout(dropout, mode),
        ct.PositionalEncoder(mode, dropout, max_len, pos_type, *marks),
        tl.Dup(),
        tl.ReversibleSerial(blocks),
        tl.Concatenate(),
        tl.LayerNorm(),
        _dropout(dropout, mode),
        tl.Dense(vocab_size),
    )


def ReformerShortenLM(
    vocab_size: int,
    shorten_factor: int = 1,
    d_embedding: int = 256,
    d_model: int = 512,
    d_ff: int = 2048,
    d_attention_key: int = 64,
    d_attention_value: int = 64,
    n_layers: int = 6,
    n_heads: int = 8,
    dropout: float = 0.1,
    max_len: int = 2048,
    attention_type: _Attention | Sequence[_Attention] = tl.SelfAttention,
    pos_type: str | None = None,
    pos_axial_shape: Any = (),
    pos_d_axial_embs: Any = None,
    ff_activation: Callable[[], tl.Layer] = tl.FastGelu,
    ff_use_sru: Any = 0,
    ff_chunk_size: int = 0,
    ff_sparsity: Any = 0,
    attention_chunk_size: int = 0,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a `ReformerLM` whose blocks see `shorten_factor` positions as one.

    It maps integers (batch, length), a multiple of `shorten_factor`, to floats (batch, length,
    vocab_size). An SRU at the end tells the positions apart again.

    Args:
      vocab_size: number of tokens; 0 is also the padding.
      shorten_factor: how many positions become one.
      d_embedding: size of a token's vector, at the beginning and at the end.
      d_model, d_ff, d_attention_key, d_attention_value, n_layers, n_heads, dropout, max_len,
        attention_type, pos_type, pos_axial_shape, pos_d_axial_embs, ff_activation, ff_use_sru,
        ff_chunk_size, ff_sparsity, attention_chunk_size: as for `ReformerLM`.
      mode: `'train'` or `'eval'`.

    Raises:
      ValueError: for predict mode, or as `ReformerLM`.
      LayerError: if the length is no multiple of `shorten_factor`.

    Source: Trax `models/reformer/reformer.py::ReformerShortenLM`.
    """
    if mode == "predict":
        raise ValueError(
            "ReformerShortenLM sees several positions as one, so it cannot go on from one to the "
            "next; got mode='predict'. Decode in eval mode."
        )
    sizes = (d_model, d_ff, d_attention_key, d_attention_value, n_heads)
    ff = (ff_activation, ff_use_sru, ff_chunk_size, ff_sparsity)
    rest = _options(dropout, *ff, attention_chunk_size, mode)
    blocks = [DecoderBlock(*sizes, kind, **rest) for kind in _in_turn(attention_type, n_layers)]
    return tl.Serial(
        tl.ShiftRight(),
        tl.Embedding(vocab_size, d_embedding),
        _dropout(dropout, mode),
        ct.PositionalEncoder(mode, dropout, max_len, pos_type, pos_axial_shape, pos_d_axial_embs),
        tl.Dup(),
        # Shifted further, since the last of the positions that become one must see none of theirs.
        tl.ShiftRight(n_positions=shorten_factor - 1) if shorten_factor > 1 else [],
        tl.PureLayer(functools.partial(_shorten, factor=shorten_factor), name="Shorten"),
        tl.Dense(d_model),
        tl.Dup(),
        tl.ReversibleSerial(blocks),
        tl.Select([0], n_in=2),
        tl.LayerNorm(),
        _dropout(dropout, mode),
        tl.Dense(shorten_factor * d_embedding),
        tl.PureLayer(functools.partial(_prolong, factor=shorten_factor), name="ProlongBack"),
        tl.Concatenate(),
        tl.CausalConv(d_embedding),
        tl.Relu(),
        tl.SRU(d_embedding),
        tl.Dense(vocab_size),
    )


def Reformer(
    input_vocab_size: int,
    output_vocab_size: int | None = None,
    d_model: int = 512,
    d_ff: int = 2048,
    n_encoder_layers: int = 6,
    n_decoder_layers: int = 6,
    n_heads: int = 8,
    dropout: float = 0.1,
    max_len: int = 2048,
    ff_activation: Callable[[], tl.Layer] = tl.Relu,
    ff_dropout: float | None = None,
    mode: tl.Mode = "train",
    pos_type: str | None = None,
    pos_axial_shape: Any = None,
    pos_d_axial_embs: Any = None,
    ff_use_sru: Any = 0,
    ff_chunk_size: int = 0,
    ff_sparsity: Any = 0,
) -> tl.Layer:
    """Returns a reversible transformer that reads one sequence and writes another.

    It maps (source, target), integers (batch, n) and (batch, m) with 0 for padding, to
    (activations, target): floats (batch, m, output_vocab_size), and the target as it came, for the
    loss. The activations at a position depend on the whole source and on the target before it.

    In predict mode it takes the source and the next tokens of the target, and remembers the past.
    The source is read at the first call; later ones bring it again, for its padding alone.

    Args:
      input_vocab_size: number of the source's tokens.
      output_vocab_size: number of the target's tokens; None is for tokens of one vocabulary, and
        source and target share one embedding then.
      n_encoder_layers: number of blocks that read.
      n_decoder_layers: number of blocks that write.
      d_model, d_ff, n_heads, dropout, max_len, mode, pos_type, pos_axial_shape, pos_d_axial_embs,
        ff_activation, ff_dropout, ff_use_sru, ff_chunk_size, ff_sparsity: as for `ReformerLM`.

    Raises:
      ValueError: for Trax's sparse layers.

    Source: Trax `models/reformer/reformer.py::Reformer`, whose predict mode cannot be built.
    """
    marks = (pos_type, pos_axial_shape, pos_d_axial_embs)
    in_encoder, out_encoder, output_vocab_size = ct.EmbeddingAndPositionalEncodings(
        input_vocab_size, d_model, mode, dropout, [-2], max_len, output_vocab_size, *marks
    )
    sizes, rest = (d_model, d_ff, n_heads), (dropout, ff_activation, ff_dropout)
    options: dict[str, Any] = {"mode": mode, "ff_use_sru": ff_use_sru}
    options |= {"ff_chunk_size": ff_chunk_size, "ff_sparsity": ff_sparsity}
    readers = [
        EncoderBlock(*sizes, tl.SelfAttention, *rest, **options) for _ in range(n_encoder_layers)
    ]
    writers = [EncoderDecoderBlock(*sizes, *rest, **options) for _ in range(n_decoder_layers)]
    encoder = tl.Serial(
        in_encoder,
        tl.Dup(),
        tl.ReversibleSerial(readers),
        tl.Fn("XYAvg", _average),
        tl.LayerNorm(),
    )
    return tl.Serial(
        tl.Select([0, 1, 1]),  # source target target: the last for the loss
        tl.Branch([], [tl.PaddingMask(), tl.Fn("RemoveAxes12", _remove_axes)]),
        tl.Cache(encoder, mode),  # vectors_e mask target target
        tl.Select([2, 0, 1]),  # target vectors_e mask target
        tl.ShiftRight(mode=mode),
        out_encoder,
        tl.Dup(),  # x1 x2 vectors_e mask target
        tl.ReversibleSerial(writers),
        tl.Fn("XYAvg", _average),
        tl.LayerNorm(),
        tl.Select([0], n_in=3),  # drops the encoder's vectors and the mask
        tl.Dense(output_vocab_size),
    )


def _dropout(rate: float, mode: tl.Mode) -> tl.Layer:
    return tl.Dropout(rate=rate, shared_axes=[-2], mode=mode)


def _options(
    dropout: float,
    ff_activation: Callable[[], tl.Layer],
    ff_use_sru: Any,
    ff_chunk_size: int,
    ff_sparsity: Any,
    attention_chunk_size: int,
    mode: tl.Mode,
) -> dict[str, Any]:
    """Returns what a `DecoderBlock` takes by name; inner values are dropped like others."""
    return {**locals(), "ff_dropout": dropout}


def _in_turn(attention_type: Any, n_layers: int) -> list[_Attention]:
    """Returns the attention type of each block."""
    kinds = attention_type if isinstance(attention_type, (tuple, list)) else [attention_type]
    if not kinds or n_layers % len(kinds):
        raise ValueError(
            f"Blocks take attention types in turn, so their number divides n_layers; got "
            f"{len(kinds)} types for {n_layers} layers."
        )
    return [kinds[i % len(kinds)] for i in range(n_layers)]


def _shorten(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Puts the vectors of `factor` positions side by side, as one."""
    if x.shape[1] % factor:
        raise ValueError(
            f"{factor} positions become one, so lengths are multiples of shorten_factor={factor}; "
            f"got {x.shape[1]} positions. Pad the sequences."
        )
    return x.reshape(x.shape[0], x.shape[1] // factor, factor * x.shape[2])


def _prolong(x: torch.Tensor, factor: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1] * factor, x.shape[2] // factor)


def _remove_axes(mask: torch.Tensor) -> torch.Tensor:
    return mask.squeeze(1).squeeze(1)


def _average(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x + y) / 2
