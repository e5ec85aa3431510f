"""Attention, its masks, and what tells a transformer where it is.

The scores are computed by `torch.nn.functional.scaled_dot_product_attention` throughout.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from trax_torch.layers import _kv_cache
from trax_torch.layers import initializers as init
from trax_torch.layers.base import Layer, PureLayer
from trax_torch.layers.combinators import Branch, Serial
from trax_torch.layers.core import Dense


def CausalAttention(
    d_feature: int,
    n_heads: int = 1,
    dropout: float = 0.0,
    max_inference_length: int = 2048,
    use_dconv: bool = False,
    mode: str = "train",
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

    In predict mode the positions of earlier calls are remembered; new ones are any number at a time.

    Args:
      dropout: the probability that an attention weight is dropped while training.
      max_inference_length: how many positions predict mode remembers, if nothing else says it.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::DotProductCausalAttention`.
    """

    def __init__(self, dropout: float = 0.0, max_inference_length: int = 2048, mode: str = "train"):
        super().__init__(n_in=3)
        if not 0 <= dropout < 1:
            raise ValueError(f"A dropout rate is at least 0 and below 1; got {dropout}.")
        self._dropout = dropout
        self._max_inference_length = max_inference_length
        self._set_mode(mode)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with room for `max_length` positions."""
        self._memory = _kv_cache.KVCache(
            self._max_inference_length if max_length is None else max_length, batch_size
        )

    def forward(self, x: Any) -> torch.Tensor:
        """Maps (queries, keys, values), each (..., length, d_head), to (..., length, d_head)."""
        queries, keys, values = x
        n, start = queries.shape[-2], 0
        if self._memory is not None:
            keys, values, start = self._memory.append(keys, values)  # type: ignore[operator]
        if start and n > 1:
            seen = torch.ones(n, start + n, dtype=torch.bool, device=queries.device).tril(start)
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        dropout = self._dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=n > 1
        )


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


class ShiftRight(Layer):
    """Moves a sequence to the right by `n_positions` and fills up with zeros from the left.

    So a model sees, at each position, what came before it. In predict mode, where what comes in is
    already the past, it passes all on.

    Args:
      n_positions: how far; at least 1.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::ShiftRight`.
    """

    def __init__(self, n_positions: int = 1, mode: str = "train"):
        super().__init__(name=f"ShiftRight({n_positions})")
        if n_positions < 1:
            raise ValueError(f"ShiftRight moves by at least 1 position; got {n_positions}.")
        self._n_positions = n_positions
        self._set_mode(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, ...) to the same shape."""
        if self._memory is not None:
            return x
        n = min(self._n_positions, x.shape[1])
        return torch.cat([torch.zeros_like(x[:, :n]), x[:, : x.shape[1] - n]], dim=1)


class PositionalEncoding(Layer):
    """Adds to each vector of a sequence one that stands for its position.

    Args:
      max_len: the longest sequence it knows positions for.
      dropout: the probability that a position gets no mark while training.
      dropout_broadcast_dims: axes along which marks are dropped together.
      use_bfloat16: keeps the weights in bfloat16.
      start_from_zero_prob: while training, how often positions count from 0; else from a random
        offset, the same for the whole batch.
      max_offset_to_add: the offsets are below this.
      d_feature: size of the table's vectors, if another than the input's; a trained matrix maps
        them to it.
      mode: `'train'`, `'eval'` or `'predict'`.

    Weights in Trax's order: the table alone, shape (max_len, d_feature), which starts as sines and
    cosines and is trained; `(table, matrix)` where `d_feature` is given.

    Raises:
      LayerError: if a sequence is longer than `max_len`.

    Source: Trax `layers/attention.py::PositionalEncoding`; Vaswani et al. 2017.
    """

    def __init__(
        self,
        max_len: int = 2048,
        dropout: float = 0.0,
        dropout_broadcast_dims: Any = (-2,),
        use_bfloat16: bool = False,
        start_from_zero_prob: float = 1.0,
        max_offset_to_add: int = 0,
        d_feature: int | None = None,
        mode: str = "train",
    ):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"A dropout rate is at least 0 and below 1; got {dropout}.")
        self._max_len = max_len
        self._dropout = dropout
        self._dropout_broadcast_dims = tuple(dropout_broadcast_dims)
        self._dtype = torch.bfloat16 if use_bfloat16 else torch.float32
        self._start_from_zero_prob = start_from_zero_prob
        self._max_offset_to_add = max_offset_to_add
        self._d_feature = d_feature
        self._weight_names = "table" if d_feature is None else ("table", "matrix")
        self.table: Any
        self.matrix: Any
        self.register_parameter("table", None)
        self.register_parameter("matrix", None)
        self._set_mode(mode)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Makes the table of sines and cosines, and draws the matrix where there is one."""
        d_in = input_signature.shape[-1]
        d = d_in if self._d_feature is None else self._d_feature
        angles = np.arange(self._max_len)[:, None] * np.exp(
            np.arange(0, d, 2) * -(np.log(10000.0) / d)
        )
        table = np.zeros((self._max_len, d), dtype=np.float32)
        table[:, 0::2] = np.sin(angles)
        table[:, 1::2] = np.cos(angles[:, : d // 2])
        tensor = torch.from_numpy(table).to(self._dtype)
        if self._d_feature is None:
            self.weights = tensor
        else:
            matrix = init.GlorotUniformInitializer()((d, d_in), self.rng)
            self.weights = tensor, matrix.to(self._dtype)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode at position 0."""
        limit = self._max_len if max_length is None else min(max_length, self._max_len)
        self._memory = _kv_cache.Position(limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, d_feature) to the same shape."""
        n, start = x.shape[1], 0
        if self._memory is not None:
            start = self._memory.advance(n)  # type: ignore[operator]
        elif n > self._max_len:
            raise ValueError(
                f"A sequence of {n} positions came, but the model was built for max_len="
                f"{self._max_len}. Cut the sequences, or build it with a larger max_len."
            )
        elif self.training and self._start_from_zero_prob < 1:
            start = self._random_start(n)
        marks = self.table[start : start + n]
        if self._d_feature is not None:
            marks = marks @ self.matrix
        if self.training and self._dropout:
            shape = [1, *marks.shape]
            for axis in self._dropout_broadcast_dims:
                shape[axis] = 1
            keep = torch.empty(shape, dtype=marks.dtype, device=x.device)
            marks = marks * (keep.bernoulli_(1 - self._dropout) / (1 - self._dropout))
        return x + marks

    def _random_start(self, n: int) -> int:
        if n + self._max_offset_to_add > self._max_len:
            raise ValueError(
                f"{n} positions and offsets below {self._max_offset_to_add} need a max_len of at "
                f"least {n + self._max_offset_to_add}; got {self._max_len}."
            )
        if not self._max_offset_to_add or float(torch.rand(())) < self._start_from_zero_prob:
            return 0
        return int(torch.randint(self._max_offset_to_add, ()))

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        named = super()._own_named(kind, tree)
        if (
            kind == "weights" and named["table"].dim() == 3
        ):  # Trax's older files have (1, max_len, d)
            named["table"] = named["table"][0]
        return named


def _check_heads(d_feature: int, n_heads: int) -> None:
    if d_feature % n_heads:
        raise ValueError(
            f"n_heads must divide d_feature, so that heads are of equal size; got d_feature="
            f"{d_feature} and n_heads={n_heads}."
        )


def _split_heads(x: torch.Tensor, n_heads: int, merged: bool) -> torch.Tensor:
    _check_heads(x.shape[-1], n_heads)
    heads = x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
    return heads.flatten(0, 1) if merged else heads


def _merge_heads(x: torch.Tensor, n_heads: int, merged: bool) -> torch.Tensor:
    if merged:
        x = x.unflatten(0, (-1, n_heads))
    return x.transpose(1, 2).flatten(2)
