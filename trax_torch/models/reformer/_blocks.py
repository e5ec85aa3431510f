"""The blocks of reversible layers that Reformers are made of; they are shown in `reformer`.

Each works on two streams of vectors: one half of a block adds to the first what it makes of the
second, and the streams change places.
"""

from collections.abc import Callable
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch.models.research import configurable_transformer as ct

Attention = Callable[..., tl.Layer]


def DecoderBlock(
    d_model: int,
    d_ff: int,
    d_attention_key: int,
    d_attention_value: int,
    n_heads: int,
    attention_type: Attention,
    dropout: float,
    ff_activation: Callable[[], tl.Layer],
    ff_dropout: float | None,
    ff_use_sru: Any,
    ff_chunk_size: int,
    ff_sparsity: Any,
    attention_chunk_size: int,
    n_attention_layers: int = 1,
    n_feedforward_layers: int = 1,
    center_layernorm: bool = True,
    use_bfloat16: bool = False,
    mode: tl.Mode = "train",
) -> list[Any]:
    """Returns the reversible layers of a block that writes; they map (x1, x2) to (x1, x2).

    Args:
      d_model: size of x1's and x2's vectors.
      d_ff: size of the feed-forward part's inner vectors.
      d_attention_key: size of a head's queries and keys.
      d_attention_value: size of a head's values.
      n_heads: number of heads.
      attention_type: makes the attention layer, from the arguments of `tl.SelfAttention`.
      dropout: the probability that a value, or an attention weight, is dropped while training.
      ff_activation, ff_dropout, ff_use_sru, ff_chunk_size, ff_sparsity: as for
        `FeedForwardWithOptions`.
      attention_chunk_size: above 0, how many rows of a batch attend at once.
      n_attention_layers: how many attention layers come first.
      n_feedforward_layers: how many feed-forward parts come then.
      center_layernorm: whether normalizations take the mean away.
      use_bfloat16: keeps the feed-forward part's weights in bfloat16.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `models/reformer/reformer.py::DecoderBlock`.
    """

    def attention() -> list[tl.Layer]:
        sizes = (d_model, n_heads, d_attention_key, d_attention_value)
        layer = ct.ApplyAttentionLayer(
            attention_type, *sizes, True, False, dropout, dropout, attention_chunk_size, mode
        )
        half = tl.ReversibleHalfResidual(
            tl.LayerNorm(center=center_layernorm),
            attention_layer=layer,
            name="ReversibleHalfResidualDecoderAttn",
        )
        return [half, tl.ReversibleSwap()]

    def feed_forward() -> list[tl.Layer]:
        sizes = (d_model, d_ff, dropout, [-2], ff_activation, ff_dropout)
        layers = ct.FeedForwardWithOptions(
            *sizes, ff_chunk_size, ff_use_sru, ff_sparsity, center_layernorm, mode, use_bfloat16
        )
        half = tl.ReversibleHalfResidual(layers, name="ReversibleHalfResidualDecoderFF")
        return [half, tl.ReversibleSwap()]

    return [
        *(attention() for _ in range(n_attention_layers)),
        *(feed_forward() for _ in range(n_feedforward_layers)),
    ]


def EncoderBlock(
    d_model: int,
    d_ff: int,
    n_heads: int,
    attention_type: Attention,
    dropout: float,
    ff_activation: Callable[[], tl.Layer],
    ff_dropout: float | None,
    ff_use_sru: Any = 0,
    ff_chunk_size: int = 0,
    ff_sparsity: Any = 0,
    attention_chunk_size: int = 0,
    center_layernorm: bool = True,
    use_bfloat16: bool = False,
    use_two_swaps_per_block: bool = True,
    mode: tl.Mode = "train",
) -> list[tl.Layer]:
    """Returns the reversible layers of a block that reads; they map (x1, x2, mask) to the same.

    The mask is (batch, length), True where there is content. In predict mode the block reads whole
    sequences, as in eval mode.

    Args:
      d_model, d_ff, n_heads, dropout, ff_activation, ff_dropout, ff_use_sru, ff_chunk_size,
        ff_sparsity, attention_chunk_size, center_layernorm, use_bfloat16, mode: as for
        `DecoderBlock`.
      attention_type: makes the attention layer; one that hands on its mask, as `tl.Attention`,
        fits, too.
      use_two_swaps_per_block: whether the streams change places at the end of the block, too.

    Source: Trax `models/reformer/reformer.py::EncoderBlock`.
    """
    if mode == "predict":
        mode = "eval"
    sizes = (d_model, n_heads, d_model // n_heads, d_model // n_heads)
    attention = ct.ApplyAttentionLayer(
        attention_type, *sizes, False, True, dropout, dropout, attention_chunk_size, mode
    )
    if attention.n_out == 2:
        attention = tl.Serial(
            tl.Parallel([], tl.Fn("InsertAxes12", _insert_axes)), attention, tl.Select([0], n_in=2)
        )
    inner = (d_model, d_ff, dropout, [-2], ff_activation, ff_dropout)
    layers = ct.FeedForwardWithOptions(
        *inner, ff_chunk_size, ff_use_sru, ff_sparsity, center_layernorm, mode, use_bfloat16
    )
    return [
        tl.ReversibleHalfResidual(
            tl.LayerNorm(center=center_layernorm),
            attention_layer=attention,
            name="ReversibleHalfResidualEncoderAttn",
        ),
        tl.ReversibleSwap(),
        tl.ReversibleHalfResidual(layers, name="ReversibleHalfResidualEncoderFF"),
        *([tl.ReversibleSwap()] if use_two_swaps_per_block else []),
    ]


def EncoderDecoderBlock(
    d_model: int,
    d_ff: int,
    n_heads: int,
    dropout: float,
    ff_activation: Callable[[], tl.Layer],
    ff_dropout: float | None,
    mode: tl.Mode,
    ff_use_sru: Any = 0,
    ff_chunk_size: int = 0,
    ff_sparsity: Any = 0,
) -> list[tl.Layer]:
    """Returns the reversible layers of a block that writes of what was read.

    They map (x1, x2, vectors, mask) to the same: the vectors are the source's, (batch, length,
    d_model), and the mask tells of its content, (batch, length).

    Args:
      d_model, d_ff, n_heads, dropout, ff_activation, ff_dropout, mode, ff_use_sru, ff_chunk_size,
        ff_sparsity: as for `DecoderBlock`.

    Source: Trax `models/reformer/reformer.py::EncoderDecoderBlock`.
    """
    sizes: dict[str, Any] = {
        "n_heads": n_heads,
        "d_qk": d_model // n_heads,
        "d_v": d_model // n_heads,
        "attention_dropout": dropout,
        "output_dropout": dropout,
        "mode": mode,
    }
    inner = (d_model, d_ff, dropout, [-2], ff_activation, ff_dropout)
    layers = ct.FeedForwardWithOptions(*inner, ff_chunk_size, ff_use_sru, ff_sparsity, mode=mode)
    return [
        tl.ReversibleHalfResidual(
            tl.LayerNorm(), attention_layer=tl.SelfAttention(causal=True, **sizes)
        ),
        tl.ReversibleSwap(),
        tl.ReversibleHalfResidual(
            tl.LayerNorm(), attention_layer=tl.EncDecAttention(cache_KV_in_predict=True, **sizes)
        ),
        tl.ReversibleSwap(),
        tl.ReversibleHalfResidual(layers),
        tl.ReversibleSwap(),
    ]


def _insert_axes(mask: torch.Tensor) -> torch.Tensor:
    return mask[:, None, None, :]
