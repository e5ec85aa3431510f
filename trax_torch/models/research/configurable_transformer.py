"""Parts that transformers are put together from, at the addresses that they have in Trax.

The models of that room are not here; those of `models.reformer` are made of its parts.
"""

from collections.abc import Callable
from typing import Any

from trax_torch import layers as tl


def FeedForwardWithOptions(
    d_model: int,
    d_ff: int,
    dropout: float,
    dropout_shared_axes: Any,
    ff_activation: Callable[[], tl.Layer],
    ff_dropout: float | None,
    ff_chunk_size: int,
    ff_use_sru: Any,
    ff_sparsity: Any,
    center_layernorm: bool = True,
    mode: tl.Mode = "train",
    use_bfloat16: bool = False,
    ff_sparsity_type: str = "1inN",
) -> list[Any]:
    """Returns layers that map each vector of a sequence by itself, a normalization first.

    Args:
      d_model: size of the vectors that come out.
      d_ff: size of the inner vectors.
      dropout: the probability that a value of the output is dropped while training.
      dropout_shared_axes: axes along which values are dropped together.
      ff_activation: makes the activation.
      ff_dropout: the probability that an inner value is dropped; None is `dropout`.
      ff_chunk_size: above 0, how many vectors are mapped at once; their activations are computed
        again in the backward pass.
      ff_use_sru: a number of SRU layers of 32 units beside the mapping, added to it; or a pair,
        (number, units).
      ff_sparsity: Trax's sparse layers; 0 here.
      center_layernorm: whether the normalization takes the mean away.
      mode: `'train'`, `'eval'` or `'predict'`.
      use_bfloat16: keeps the weights of Dense layers in bfloat16.
      ff_sparsity_type: which sparse layer; has no effect with ff_sparsity=0.

    Returns:
      A list of one item, layers that map (batch, length, d_model) to the same shape.

    Raises:
      ValueError: if ff_sparsity is not 0.

    Source: Trax `models/research/configurable_transformer.py::FeedForwardWithOptions`.
    """
    refuse_sparsity("ff_sparsity", ff_sparsity)
    layers: list[Any] = [
        tl.LayerNorm(center=center_layernorm),
        tl.Dense(d_ff, use_bfloat16=use_bfloat16),
        tl.Dropout(rate=dropout if ff_dropout is None else ff_dropout, shared_axes=[-2], mode=mode),
        ff_activation(),
        tl.Dense(d_model, use_bfloat16=use_bfloat16),
        tl.Dropout(rate=dropout, shared_axes=dropout_shared_axes, mode=mode),
    ]
    if ff_chunk_size > 0:
        layers = [tl.BatchLeadingAxes(tl.Chunk(tl.Serial(layers), ff_chunk_size))]
    if ff_use_sru:
        n_layers, n_units = (
            ff_use_sru if isinstance(ff_use_sru, (tuple, list)) else (ff_use_sru, 32)
        )
        block = [
            tl.LayerNorm(center=center_layernorm),
            tl.Dense(n_units),
            [tl.SRU(n_units, mode=mode) for _ in range(n_layers)],
            tl.Dense(d_model),
        ]
        layers = [tl.Residual(block, shortcut=tl.Serial(layers))]
    return [layers]


def ApplyAttentionLayer(
    attention_type: Callable[..., tl.Layer],
    d_model: int,
    n_heads: int,
    d_qk: int,
    d_v: int,
    causal: bool,
    masked: bool,
    attention_dropout: float,
    output_dropout: float,
    attention_chunk_size: int,
    mode: tl.Mode,
) -> tl.Layer:
    """Returns an attention layer of a given type, whichever arguments that takes.

    Args:
      attention_type: makes it, from the arguments of `tl.SelfAttention`; or, if it takes no such
        arguments, from (d_model, n_heads=, dropout=, mode=) as `tl.CausalAttention`.
      d_model: size of the vectors.
      n_heads: number of heads.
      d_qk: size of a head's queries and keys.
      d_v: size of a head's values.
      causal: whether later positions are hidden.
      masked: whether it takes a mask.
      attention_dropout: the probability that an attention weight is dropped while training.
      output_dropout: the probability that a value of the output is.
      attention_chunk_size: above 0, how many rows of a batch are computed at once.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `models/research/configurable_transformer.py::ApplyAttentionLayer`.
    """
    try:
        attention = attention_type(
            n_heads=n_heads,
            d_qk=d_qk,
            d_v=d_v,
            causal=causal,
            masked=masked,
            output_dropout=output_dropout,
            attention_dropout=attention_dropout,
            mode=mode,
        )
    except TypeError:
        attention = attention_type(d_model, n_heads=n_heads, dropout=attention_dropout, mode=mode)
    return tl.Chunk(attention, attention_chunk_size)


def PositionalEncoder(
    mode: tl.Mode,
    dropout: float = 0.0,
    max_len: int = 2048,
    pos_type: str | None = None,
    pos_axial_shape: Any = None,
    pos_d_axial_embs: Any = None,
    pos_start_from_zero_prob: float = 1.0,
    pos_max_offset_to_add: int = 0,
    use_bfloat16: bool = False,
) -> tl.Layer:
    """Returns a layer that marks positions.

    Args:
      mode: `'train'`, `'eval'` or `'predict'`.
      dropout: the probability that a position gets no mark while training.
      max_len: the longest sequence.
      pos_type: None for `tl.PositionalEncoding`, 'no' for no marks.
      pos_axial_shape, pos_d_axial_embs: of Trax's axial marks; have no effect where pos_type is
        None, as there.
      pos_start_from_zero_prob: while training, how often positions count from 0.
      pos_max_offset_to_add: else they count from an offset below this.
      use_bfloat16: keeps the weights in bfloat16.

    Raises:
      ValueError: for Trax's other types.

    Source: Trax `models/research/configurable_transformer.py::PositionalEncoder`.
    """
    if pos_type == "no":
        return tl.Serial()
    if pos_type:
        raise ValueError(
            f"pos_type is None, for the marks of tl.PositionalEncoding, or 'no', for none; got "
            f"{pos_type!r}, which is not built here."
        )
    return tl.PositionalEncoding(
        max_len=max_len,
        dropout=dropout,
        use_bfloat16=use_bfloat16,
        start_from_zero_prob=pos_start_from_zero_prob,
        max_offset_to_add=pos_max_offset_to_add,
        mode=mode,
    )


def EmbeddingAndPositionalEncodings(
    input_vocab_size: int | None,
    d_model: int,
    mode: tl.Mode,
    embedding_dropout: float,
    dropout_shared_axes: Any,
    max_len: int,
    output_vocab_size: int | None = None,
    pos_type: str | None = None,
    pos_axial_shape: Any = None,
    pos_d_axial_embs: Any = None,
    pos_start_from_zero_prob: float = 1.0,
    pos_max_offset_to_add: int = 0,
    use_bfloat16: bool = False,
) -> tuple[tl.Layer, tl.Layer, int]:
    """Returns what makes vectors of a source's tokens, and of a target's.

    Args:
      input_vocab_size: number of the source's tokens; None takes vectors, which a Dense layer maps
        to d_model.
      d_model: size of the vectors.
      mode: `'train'`, `'eval'` or `'predict'`; the source comes whole.
      embedding_dropout: the probability that a value is dropped while training.
      dropout_shared_axes: axes along which values are dropped together.
      max_len: the longest sequence.
      output_vocab_size: number of the target's tokens; None is for tokens of one vocabulary, and
        source and target share one embedding then.
      pos_type, pos_axial_shape, pos_d_axial_embs, pos_start_from_zero_prob, pos_max_offset_to_add:
        as for `PositionalEncoder`.
      use_bfloat16: keeps the weights in bfloat16.

    Returns:
      `(in_encoder, out_encoder, output_vocab_size)`, the last one as it is used.

    Raises:
      ValueError: if neither vocabulary has a size.

    Source: Trax `models/research/configurable_transformer.py::EmbeddingAndPositionalEncodings`.
    """
    n_out = output_vocab_size or input_vocab_size
    if not n_out:
        raise ValueError(
            "A target has tokens, so output_vocab_size, or input_vocab_size for both, is needed; "
            "got neither."
        )
    in_mode: tl.Mode = "eval" if mode == "predict" else mode

    def embedder(vocab_size: int | None, mode: tl.Mode) -> list[tl.Layer]:
        return [
            tl.Embedding(vocab_size, d_model, use_bfloat16=use_bfloat16)
            if vocab_size
            else tl.Dense(d_model, use_bfloat16=use_bfloat16),
            tl.Dropout(rate=embedding_dropout, shared_axes=dropout_shared_axes, mode=mode),
        ]

    def marks(mode: tl.Mode) -> tl.Layer:
        return PositionalEncoder(
            mode,
            embedding_dropout,
            max_len,
            pos_type,
            pos_axial_shape,
            pos_d_axial_embs,
            pos_start_from_zero_prob,
            pos_max_offset_to_add,
            use_bfloat16,
        )

    in_embedder = embedder(input_vocab_size, in_mode)
    out_embedder = in_embedder if output_vocab_size is None else embedder(output_vocab_size, mode)
    return tl.Serial(in_embedder, marks(in_mode)), tl.Serial(out_embedder, marks(mode)), n_out


def refuse_sparsity(name: str, value: Any) -> None:
    """Raises ValueError if one of Trax's sparse layers is asked for."""
    if value:
        raise ValueError(
            f"Trax's sparse layers are not built here, so {name} is 0; got {value!r}. Leave it out."
        )
