"""Attention, its masks, and what tells a transformer where it is.

Without dropout, scores are torch's `scaled_dot_product_attention`'s throughout.
"""

import functools
from typing import Any

import torch

from trax_torch.layers import _predict
from trax_torch.layers._dropout import attend
from trax_torch.layers._positional_encoding import PositionalEncoding, ShiftRight
from trax_torch.layers._promotion import as_float
from trax_torch.layers.base import Layer, Mode, PureLayer
from trax_torch.layers.combinators import Branch, Cache, Parallel, Select, Serial
from trax_torch.layers.core import Dense, is_of_few_rows

__all__ = [
    "Attention",
    "AttentionQKV",
    "CausalAttention",
    "ConfigurableAttention",
    "DotProductAttention",
    "DotProductCausalAttention",
    "EncoderDecoderMask",
    "MergeHeads",
    "PaddingMask",
    "PositionalEncoding",
    "PureAttention",
    "ShiftRight",
    "SplitIntoHeads",
    "attend_to_past",
    "attend_where_shown",
    "checked_dropout",
]


def Attention(
    d_feature: int, n_heads: int = 1, dropout: float = 0.0, mode: Mode = "train"
) -> Layer:
    """Returns a layer of self-attention over the positions that a mask shows.

    Args:
      d_feature: size of the vectors that come in and go out.
      n_heads: number of heads, each of size d_feature / n_heads.
      dropout: the probability that an attention weight is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.

    Returns:
      A layer that maps (vectors, mask) to (vectors, mask). The vectors are (batch, length,
      d_feature); the mask, see `PureAttention`, goes on as it came. Weights in Trax's order: the
      Dense layers of the queries, keys, values, and of the output.

    Raises:
      ValueError: if n_heads does not divide d_feature.

    Source: Trax `layers/attention.py::Attention`; Vaswani et al. 2017, arXiv:1706.03762.
    """
    return Serial(Select([0, 0, 0]), AttentionQKV(d_feature, n_heads, dropout, mode))


def AttentionQKV(
    d_feature: int,
    n_heads: int = 1,
    dropout: float = 0.0,
    mode: Mode = "train",
    cache_KV_in_predict: bool = False,
    q_sparsity: Any = None,
    result_sparsity: Any = None,
) -> Layer:
    """Returns a layer of attention whose queries, keys and values come from where you like.

    Args:
      d_feature: size of the vectors that come out; what comes in may have another.
      n_heads: number of heads, each of size d_feature / n_heads.
      dropout: the probability that an attention weight is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.
      cache_KV_in_predict: in predict mode, keys and values are those of the first call from then
        on, as fits an encoder's output, which stays the same.
      q_sparsity: None maps the queries by a Dense layer; `'noop'` takes them as they are.
      result_sparsity: likewise for what the heads found.

    Returns:
      A layer that maps (queries, keys, values, mask) to (vectors, mask). Queries are (batch, n,
      d_in), keys and values (batch, length, d_in); the mask is as in `PureAttention`. Weights in
      Trax's order: the Dense layers of the queries, keys, values, and of the output.

    Raises:
      ValueError: if n_heads does not divide d_feature, or for Trax's sparse layers.

    Source: Trax `layers/attention.py::AttentionQKV`.
    """
    _check_heads(d_feature, n_heads)

    def dense_unless(name: str, sparsity: Any) -> Layer:
        if sparsity not in (None, "noop"):
            raise ValueError(
                f"{name} is None, for a Dense layer, or 'noop', for none; got {sparsity!r}. Trax's "
                f"sparse layers are not built here."
            )
        return Dense(d_feature) if sparsity is None else Serial()

    def kept_dense() -> Layer:
        return Cache(Dense(d_feature), mode) if cache_KV_in_predict else Dense(d_feature)

    return Serial(
        Parallel(dense_unless("q_sparsity", q_sparsity), kept_dense(), kept_dense()),
        PureAttention(n_heads, dropout, mode),
        dense_unless("result_sparsity", result_sparsity),
    )


class PureAttention(Layer):
    """Splits queries, keys and values into heads, attends, and merges what the heads found.

    It maps (queries, keys, values, mask) to (vectors, mask). A mask is True or not 0 where a
    position may be seen: (batch, 1, 1, length), or (batch, 1, n, length) with a row for each query;
    None shows all. A query that sees nothing attends to all positions evenly.

    Args:
      n_heads: number of heads.
      dropout: the probability that an attention weight is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::PureAttention`.
    """

    def __init__(self, n_heads: int = 1, dropout: float = 0.0, mode: Mode = "train"):
        super().__init__(n_in=4, n_out=2)
        self._n_heads = n_heads
        self._dropout = checked_dropout(dropout)
        self._set_mode(mode)

    def forward(self, x: Any) -> Any:
        """Maps queries (batch, n, d), keys and values (batch, length, d) to (batch, n, d)."""
        queries, keys, values, mask = x
        q, k, v = (_split_heads(t, self._n_heads, merged=False) for t in (queries, keys, values))
        found = _attend(q, k, v, mask, self._dropout if self.training else 0.0)
        return _merge_heads(found, self._n_heads, merged=False), mask


class DotProductAttention(Layer):
    """Attends head by head: maps per-head (queries, keys, values, mask) to per-head vectors.

    Args:
      dropout: the probability that an attention weight is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::DotProductAttention`.
    """

    def __init__(self, dropout: float = 0.0, mode: Mode = "train"):
        super().__init__(n_in=4)
        self._dropout = checked_dropout(dropout)
        self._set_mode(mode)

    def forward(self, x: Any) -> torch.Tensor:
        """Maps queries (..., n, d_head), keys and values (..., length, d_head) to (..., n, d_head).

        The mask broadcasts to (..., n, length); what it means, and None, is as in `PureAttention`.
        """
        queries, keys, values, mask = x
        return _attend(queries, keys, values, mask, self._dropout if self.training else 0.0)


def CausalAttention(
    d_feature: int,
    n_heads: int = 1,
    dropout: float = 0.0,
    max_inference_length: int = 2048,
    use_dconv: bool = False,
    mode: Mode = "train",
) -> Layer:
    """Returns a layer of self-attention in which no position sees a later one.

    Args:
      d_feature: size of the vectors that come in and go out.
      n_heads: number of heads, each of size d_feature / n_heads.
      dropout: the probability that an attention weight is dropped while training.
      max_inference_length: how many positions predict mode remembers, if nothing else says it.
      use_dconv: Trax's depthwise convolutions of the queries, keys and values; refused here.
      mode: `'train'`, `'eval'` or `'predict'`.

    Returns:
      A layer that maps (batch, length, d_feature) to the same shape. Weights in Trax's order: the
      Dense layers of the queries, keys, values, and of the output.

    Raises:
      ValueError: if n_heads does not divide d_feature.

    Source: Trax `layers/attention.py::CausalAttention`; Vaswani et al. 2017, arXiv:1706.03762.
    """
    _check_heads(d_feature, n_heads)
    if use_dconv:
        raise ValueError(
            "CausalAttention has no depthwise convolutions; build it without use_dconv."
        )
    return ConfigurableAttention(
        Dense(d_feature),
        Dense(d_feature),
        Dense(d_feature),
        Dense(d_feature),
        DotProductCausalAttention(dropout, max_inference_length, mode),
        n_heads=n_heads,
    )


def ConfigurableAttention(
    q_layer: Any,
    k_layer: Any,
    v_layer: Any,
    final_layer: Any,
    qkv_attention_layer: Layer,
    n_heads: int = 1,
) -> Layer:
    """Returns a layer of self-attention made of given parts.

    Args:
      q_layer, k_layer, v_layer: map the input (batch, length, d) to queries, keys and values.
      final_layer: maps what the heads found, side by side, to the output.
      qkv_attention_layer: maps per-head (queries, keys, values), each
        (batch, n_heads, length, d_head), to (batch, n_heads, length, d_head).
      n_heads: number of heads.

    Source: Trax `layers/attention.py::ConfigurableAttention`. There batch and heads are one axis
      inside; here they are two, which the fast kernels and the cache want.
    """
    split = functools.partial(SplitIntoHeads, n_heads, merged_batch_and_head=False)
    return Serial(
        Branch([q_layer, split()], [k_layer, split()], [v_layer, split()]),
        qkv_attention_layer,
        MergeHeads(n_heads, merged_batch_and_head=False),
        final_layer,
    )


class DotProductCausalAttention(Layer):
    """Attends from each position to itself and those before, head by head.

    In predict mode the positions of earlier calls are remembered; new ones come in any number.

    Args:
      dropout: the probability that an attention weight is dropped while training.
      max_inference_length: how many positions predict mode remembers, if nothing else says it.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::DotProductCausalAttention`.
    """

    def __init__(
        self, dropout: float = 0.0, max_inference_length: int = 2048, mode: Mode = "train"
    ):
        super().__init__(n_in=3)
        self._dropout = checked_dropout(dropout)
        self._max_inference_length = max_inference_length
        self._set_mode(mode)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with room for `max_length` positions."""
        self._memory = _predict.KVCache(
            self._max_inference_length if max_length is None else max_length, batch_size
        )

    def forward(self, x: Any) -> torch.Tensor:
        """Maps (queries, keys, values), each (..., length, d_head), to (..., length, d_head)."""
        queries, keys, values = map(as_float, x)
        if self._memory is not None:
            return attend_to_past(self._memory, queries, keys, values)
        dropout = self._dropout if self.training else 0.0
        return attend(queries, keys, values, dropout=dropout, is_causal=queries.shape[-2] > 1)


def SplitIntoHeads(n_heads: int, merged_batch_and_head: bool = True) -> PureLayer:
    """Returns a layer that cuts vectors into heads.

    Args:
      n_heads: number of heads.
      merged_batch_and_head: gives (batch * n_heads, length, d_head); else
        (batch, n_heads, length, d_head).

    Returns:
      A layer that takes (batch, length, d_feature).
    """
    f = functools.partial(_split_heads, n_heads=n_heads, merged=merged_batch_and_head)
    return PureLayer(f, name="SplitIntoHeads")


def MergeHeads(n_heads: int, merged_batch_and_head: bool = True) -> PureLayer:
    """Returns the layer that undoes `SplitIntoHeads` of the same arguments."""
    f = functools.partial(_merge_heads, n_heads=n_heads, merged=merged_batch_and_head)
    return PureLayer(f, name="MergeHeads")


def PaddingMask(pad: int = 0) -> PureLayer:
    """Returns a layer that marks where a sequence has content.

    It maps (batch, length) to booleans (batch, 1, 1, length), False where the item is `pad`.

    Raises:
      LayerError: if what comes has not two axes.

    Example:
      >>> PaddingMask()(torch.tensor([[5, 3, 0]]))
      tensor([[[[ True,  True, False]]]])

    Source: Trax `layers/attention.py::PaddingMask`.
    """
    return PureLayer(functools.partial(_padding_mask, pad=pad), name=f"PaddingMask({pad})")


def EncoderDecoderMask() -> PureLayer:
    """Returns a layer that gives a source's mask a row for each position of the target.

    It maps (vectors, mask), (batch, n, d) and (batch, 1, 1, length), to a mask (batch, 1, n,
    length) of the mask's type, a view without storage of its own.

    Raises:
      LayerError: if the vectors have not three axes.

    Source: Trax `layers/attention.py::EncoderDecoderMask`, which gives floats.
    """
    return PureLayer(_encoder_decoder_mask, n_in=2, name="EncoderDecoderMask")


def _check_heads(d_feature: int, n_heads: int) -> None:
    if d_feature % n_heads:
        raise ValueError(
            f"n_heads must divide d_feature, so that heads are of equal size; got d_feature="
            f"{d_feature} and n_heads={n_heads}."
        )


def attend_to_past(
    memory: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attends from new positions to all that a `KVCache` remembers, and remembers them, too.

    Args:
      memory: the cache.
      queries, keys, values: of the new positions, each (..., n, d_head).

    Returns:
      Floats (..., n, d_head).
    """
    keys, values, visible = memory.append(keys, values)
    n = queries.shape[-2]
    if torch.compiler.is_compiling() and is_of_few_rows(queries, n):
        return _written_out(queries, keys, values, visible)
    return attend(queries, keys, values, visible, is_causal=visible is None and n > 1)


def attend_where_shown(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool = False,
) -> torch.Tensor:
    """Attends to keys that a mask shows; if `causal`, to none later than the query.

    Args:
      queries: floats (batch, heads, n, d_head).
      keys, values: floats (batch, heads, length, d_head).
      mask: booleans (batch, length), or None for all.
      causal: hides later keys; there are as many as queries then.

    Returns:
      Floats (batch, heads, n, d_head). A query that sees nothing attends to all evenly.
    """
    if mask is None:
        return attend(queries, keys, values, is_causal=causal)
    visible = mask[:, None, None, :]
    if causal:
        n = queries.shape[-2]
        visible = visible & torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
    return _attend(queries, keys, values, visible, 0.0)


def checked_dropout(dropout: float) -> float:
    """Returns a dropout rate; ValueError if it is none."""
    if not 0 <= dropout < 1:
        raise ValueError(f"A dropout rate is at least 0 and below 1; got {dropout}.")
    return dropout


def _attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Attends where the mask is not 0; a query that sees nothing attends evenly."""
    queries, keys, values = as_float(queries), as_float(keys), as_float(values)
    if mask is None:
        return attend(queries, keys, values, None, dropout)
    n, length = queries.shape[-2], keys.shape[-2]
    # Written out, since the compiler does not find a size of its own in a tuple of sizes.
    fits = mask.shape[-1] == length or mask.shape[-1] == 1
    if not (fits and (mask.shape[-2] == n or mask.shape[-2] == 1)):
        raise ValueError(
            f"A mask for {n} queries and {length} keys ends in the axes ({n} or 1, {length}); got "
            f"the shape {tuple(mask.shape)}. PaddingMask makes one of the keys' tokens."
        )
    visible = mask if mask.dtype == torch.bool else mask != 0
    # A score of -1e9 everywhere is the same score everywhere. So is the score of a query of zeros,
    # and that holds in half precision too, where -1e9 is -inf and its softmax NaN.
    blind = ~visible.any(dim=-1, keepdim=True)
    return attend(queries.masked_fill(blind, 0.0), keys, values, visible | blind, dropout)


def _written_out(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor | None
) -> torch.Tensor:
    """Attends in a form of which the compiler makes loops of its own."""
    scores = (queries[..., :, None, :] * keys[..., None, :, :]).sum(-1)
    scores = scores * queries.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    weights = scores.softmax(-1)
    result: torch.Tensor = (weights[..., None] * values[..., None, :, :]).sum(-2)
    return result


def _padding_mask(x: torch.Tensor, pad: int) -> torch.Tensor:
    if x.dim() != 2:
        raise ValueError(
            f"PaddingMask takes sequences of tokens, (batch, length); got a tensor of shape "
            f"{tuple(x.shape)}. Put it before the embedding."
        )
    return (x != pad)[:, None, None, :]


def _encoder_decoder_mask(xs: Any) -> torch.Tensor:
    vectors, mask = xs
    if vectors.dim() != 3:
        raise ValueError(
            f"EncoderDecoderMask takes a decoder's vectors, (batch, n, d), and the source's mask; "
            f"got vectors of shape {tuple(vectors.shape)}. Put it after the embedding."
        )
    batch, length = mask.shape[0], mask.shape[-1]
    result: torch.Tensor = mask.reshape(batch, 1, 1, length).expand(
        batch, 1, vectors.shape[1], length
    )
    return result


def _split_heads(x: torch.Tensor, n_heads: int, merged: bool) -> torch.Tensor:
    _check_heads(x.shape[-1], n_heads)
    heads = x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
    result: torch.Tensor = heads.flatten(0, 1) if merged else heads
    return result


def _merge_heads(x: torch.Tensor, n_heads: int, merged: bool) -> torch.Tensor:
    if merged:
        x = x.unflatten(0, (-1, n_heads))
    return x.transpose(1, 2).flatten(2)
