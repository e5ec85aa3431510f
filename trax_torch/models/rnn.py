"""Recurrent models, written with `tl.` alone.

The layers are those of Trax in the order of Trax, so that weights trained there fit here.
"""

from collections.abc import Callable
from typing import Any

from trax_torch import layers as tl


def RNNLM(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 2,
    rnn_cell: Callable[..., tl.Layer] = tl.LSTMCell,
    rnn_cell_d_state_multiplier: int = 2,
    dropout: float = 0.1,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a recurrent language model: tokens in, activations of the next tokens out.

    It maps integers (batch, length) to floats (batch, length, vocab_size); the output at a position
    depends on the tokens before it. In predict mode it takes the next tokens of a sequence and
    remembers the past, and its output tells of the token after each.

    Args:
      vocab_size: number of tokens; 0 is also the padding.
      d_model: size of the vectors between layers.
      n_layers: number of cells, one above the other; at least 1.
      rnn_cell: makes a cell, `rnn_cell(n_units=d_model)`.
      rnn_cell_d_state_multiplier: how many times d_model a cell's state is.
      dropout: the probability that a value is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.

    Raises:
      ValueError: if there is no layer, or no such mode.

    Example:
      >>> import torch
      >>> model = RNNLM(vocab_size=16, d_model=8)
      >>> tokens = torch.zeros(1, 5, dtype=torch.int64)
      >>> _ = model.init(tokens)
      >>> model(tokens).shape
      torch.Size([1, 5, 16])

    Source: Trax `models/rnn.py::RNNLM`, which takes n_layers=2 alone.
    """
    if n_layers < 1:
        raise ValueError(f"RNNLM needs at least 1 layer; got n_layers={n_layers}.")
    cells = tl.MultiRNNCell([rnn_cell(n_units=d_model) for _ in range(n_layers)])
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size, d_model),
        tl.Dropout(rate=dropout, mode=mode),
        tl.Branch([], tl.MakeZeroState(depth_multiplier=n_layers * rnn_cell_d_state_multiplier)),
        tl.Scan(cells, axis=1, mode=mode),
        tl.Select([0], n_in=2),
        tl.Dense(vocab_size),
    )


def GRULM(
    vocab_size: int = 256, d_model: int = 512, n_layers: int = 1, mode: tl.Mode = "train"
) -> tl.Layer:
    """Returns a language model of GRUs; its inputs, outputs and modes are those of `RNNLM`.

    Args:
      vocab_size: number of tokens; 0 is also the padding.
      d_model: size of the vectors between layers.
      n_layers: number of GRUs.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `models/rnn.py::GRULM`.
    """
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size, d_model),
        [tl.GRU(d_model, mode=mode) for _ in range(n_layers)],
        tl.Dense(vocab_size),
    )


def LSTMSeq2SeqAttn(
    input_vocab_size: int = 256,
    target_vocab_size: int = 256,
    d_model: int = 512,
    n_encoder_layers: int = 2,
    n_decoder_layers: int = 2,
    n_attention_heads: int = 1,
    attention_dropout: float = 0.0,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a model of LSTMs that maps one token sequence to another, with attention between.

    It maps (source, target), integers (batch, source length) and (batch, target length), to
    (log-probabilities, target): floats (batch, target length, target_vocab_size), in nats, each
    position's from the targets before it. In predict mode it takes the next target tokens; the
    source comes with each call, to tell what is padding, but is read at the first one alone.

    Args:
      input_vocab_size: number of source tokens; 0 is also the padding.
      target_vocab_size: number of target tokens.
      d_model: size of the vectors between layers.
      n_encoder_layers: number of LSTMs that read the source.
      n_decoder_layers: number of LSTMs after attention; one stands before it.
      n_attention_heads: number of attention heads; divides d_model.
      attention_dropout: the probability that an attention weight is dropped while training.
      mode: `'train'`, `'eval'` or `'predict'`.

    Raises:
      ValueError: if n_attention_heads does not divide d_model, or there is no such mode.

    Source: Trax `models/rnn.py::LSTMSeq2SeqAttn`; Bahdanau et al. 2014, arXiv:1409.0473. There the
      encoder runs again at every step of predict mode; here it stands in a `Cache`.
    """
    encoder = tl.Serial(
        tl.Embedding(input_vocab_size, d_model),
        [tl.LSTM(d_model) for _ in range(n_encoder_layers)],
    )
    pre_attention_decoder = tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(target_vocab_size, d_model),
        tl.LSTM(d_model, mode=mode),
    )
    attention = tl.AttentionQKV(
        d_model,
        n_heads=n_attention_heads,
        dropout=attention_dropout,
        mode=mode,
        cache_KV_in_predict=True,
    )
    return tl.Serial(
        tl.Select([0, 1, 0, 1]),
        tl.Parallel(tl.Cache(encoder, mode=mode), pre_attention_decoder),
        tl.Fn("PrepareAttentionInputs", _attention_inputs, n_out=4),
        tl.Residual(attention),
        tl.Select([0, 2]),
        [tl.LSTM(d_model, mode=mode) for _ in range(n_decoder_layers)],
        tl.Dense(target_vocab_size),
        tl.LogSoftmax(),
    )


def _attention_inputs(encoded: Any, decoded: Any, source: Any) -> Any:
    """Returns queries, keys, values, and a mask (batch, 1, 1, source length) of what is content."""
    return decoded, encoded, encoded, (source != 0)[:, None, None, :]
