"""Recurrences: layers that take all steps of a sequence, and the cells that take one."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trax_torch.layers import activation_fns, convolution, core
from trax_torch.layers import combinators as cb
from trax_torch.layers._combinators import takes_all_steps
from trax_torch.layers._rnn_cells import GRUCell, LSTMCell
from trax_torch.layers.base import Fn, Layer, Mode, PureLayer

__all__ = [
    "GRU",
    "LSTM",
    "SRU",
    "ConvGRUCell",
    "GRUCell",
    "GeneralGRUCell",
    "InnerSRUCell",
    "LSTMCell",
    "MakeZeroState",
    "MultiRNNCell",
    "ScanSRUCell",
]

Tensors = tuple[torch.Tensor, ...]


def LSTM(
    n_units: int, mode: Mode = "train", return_state: bool = False, initial_state: bool = False
) -> cb.Serial:
    """Returns an LSTM over axis 1: maps (batch, length, d_in) to (batch, length, n_units).

    In predict mode it goes on from where its last call ended.

    Args:
      n_units: size of the output.
      mode: `'train'`, `'eval'` or `'predict'`.
      return_state: gives the last state, (batch, 2 * n_units), as a second output.
      initial_state: takes the first state as a second input; else it is zeros.

    Source: Trax `layers/rnn.py::LSTM`, where d_in must be n_units unless a state comes in.
    """
    return cb.Serial(
        [] if initial_state else cb.Branch([], _zero_state(2 * n_units)),
        cb.Scan(LSTMCell(n_units=n_units), axis=1, mode=mode),
        [] if return_state else cb.Select([0], n_in=2),
        name=f"LSTM_{n_units}",
        sublayers_to_print=[],
    )


def GRU(n_units: int, mode: Mode = "train") -> cb.Serial:
    """Returns a GRU over axis 1: maps (batch, length, d_in) to (batch, length, n_units).

    In predict mode it goes on from where its last call ended.

    Args:
      n_units: size of the output.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/rnn.py::GRU`, where d_in must be n_units.
    """
    return cb.Serial(
        cb.Branch([], _zero_state(n_units)),
        cb.Scan(GRUCell(n_units=n_units), axis=1, mode=mode),
        cb.Select([0], n_in=2),
        name=f"GRU_{n_units}",
        sublayers_to_print=[],
    )


def SRU(n_units: int, activation: Layer | None = None, mode: Mode = "train") -> cb.Serial:
    """Returns a simple recurrent unit over axis 1; maps (batch, length, n_units) to the same shape.

    With [r, f, y] = x w + b, r and f under a sigmoid:  c' = f c + (1 - f) y,
    output = r activation(c') + sqrt(3) (1 - r) x. Only c' waits for the step before.

    Args:
      n_units: size of the inputs and outputs.
      activation: a layer; none by default.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/rnn.py::SRU`; Lei et al. 2017, arXiv:1709.02755.
    """
    sigmoid = activation_fns.Sigmoid()
    return cb.Serial(
        cb.Branch(core.Dense(3 * n_units), []),
        cb.Split(n_items=3),
        cb.Parallel(sigmoid, sigmoid),
        Fn("", _sru_inputs, n_out=3),
        cb.Parallel([], [], cb.Branch(MakeZeroState(), [])),
        ScanSRUCell(mode=mode),
        cb.Select([0], n_in=2),
        activation if activation is not None else [],
        Fn("FinalSRUGate", _sru_output),
        name=f"SRU_{n_units}",
        sublayers_to_print=[],
    )


def InnerSRUCell() -> Layer:
    """Returns the layer of an SRU's step: maps ((1 - f) y, f, c) to the new c, twice."""
    return _InnerSRU()


class _InnerSRU(Layer):
    def __init__(self) -> None:
        super().__init__(n_in=3, n_out=2, name="InnerSRUCell")

    def forward(self, x: Any) -> Any:
        c = torch.addcmul(x[0], x[1], x[2])
        return c, c

    def scan(self, xs: Tensors, carry: Tensors, axis: int) -> tuple[Tensors, Tensors]:
        (c,), cs = carry, []
        for addend, f in zip(*(x.unbind(axis) for x in xs), strict=True):
            c = torch.addcmul(addend, f, c)
            cs.append(c)
        return (torch.stack(cs, dim=axis),), (c,)


def ScanSRUCell(mode: Mode, monkey_patched_mask: None = None) -> cb.Scan:
    """Returns the layer that runs `InnerSRUCell` along axis 1.

    Args:
      mode: `'train'`, `'eval'` or `'predict'`.
      monkey_patched_mask: Trax's way into its Terraformer, which is not built here.

    Raises:
      ValueError: if a mask is given.
    """
    if monkey_patched_mask is not None:
        raise ValueError(
            f"ScanSRUCell takes no mask, which only Trax's Terraformer uses; got "
            f"{monkey_patched_mask!r}. Leave it out."
        )
    return cb.Scan(InnerSRUCell(), axis=1, mode=mode)


def MultiRNNCell(cells: Sequence[Layer]) -> cb.Serial:
    """Returns cells one above the other as one cell, whose state is theirs, side by side.

    Each takes (input, state) and gives (output, state); states are of one size. Cells that take all
    steps of a `Scan` at once do so here too, one cell after another.

    Source: Trax `models/rnn.py::RNNLM`, which has it inside.
    """
    cells = tuple(cells)
    kind = _Stacked if all(takes_all_steps(type(cell)) for cell in cells) else cb.Serial
    return kind(
        cb.Parallel([], cb.Split(n_items=len(cells))),
        cb.SerialWithSideOutputs(cells),
        cb.Parallel([], cb.Concatenate(n_items=len(cells))),
        name="Serial",
    )


class _Stacked(cb.Serial):
    """Cells that all take all steps at once."""

    def scan(self, xs: Tensors, carry: Tensors, axis: int) -> tuple[Tensors, Tensors]:
        """Takes all steps along an axis; see `Scan`."""
        cells = self.sublayers[1].sublayers[::2]  # a Select stands after each
        states = []
        for cell, state in zip(cells, carry[0].chunk(len(cells), dim=-1), strict=True):
            xs, (state,) = cell.scan(xs, (state,), axis)
            states.append(state)
        return xs, (torch.cat(states, dim=-1),)


def ConvGRUCell(n_units: int, kernel_size: tuple[int, int] = (3, 3)) -> cb.Serial:
    """Returns a GRU cell without input whose products are convolutions.

    It maps states (batch, height, width, n_units) to the next.

    Args:
      n_units: number of channels.
      kernel_size: the convolutions' window.

    Source: Trax `layers/rnn.py::ConvGRUCell`; Ballas et al. 2015, arXiv:1511.06432.
    """
    return GeneralGRUCell(
        candidate_transform=functools.partial(
            convolution.Conv, filters=n_units, kernel_size=kernel_size, padding="SAME"
        )
    )


def GeneralGRUCell(
    candidate_transform: Callable[[], Layer],
    memory_transform_fn: Callable[[], Layer] | None = None,
    gate_nonlinearity: Callable[[], Layer] = activation_fns.Sigmoid,
    candidate_nonlinearity: Callable[[], Layer] = activation_fns.Tanh,
    dropout_rate_c: float = 0.1,
    sigmoid_bias: float = 0.5,
) -> cb.Serial:
    """Returns a GRU cell without input, made of given parts: maps a state to the next.

    With transforms T of weights of their own: u = gate(T(s) + bias), r = gate(T'(s) + bias),
    c = nonlinearity(T''(r s)); s' = u memory(s) + (1 - u) c.

    Args:
      candidate_transform: makes a transform; called three times.
      memory_transform_fn: makes the transform of the state that is kept; by default it is kept as
        it is.
      gate_nonlinearity: makes the gates' activation.
      candidate_nonlinearity: makes the candidate's activation.
      dropout_rate_c: the probability that a value of the candidate is dropped while training.
      sigmoid_bias: is added before the gates' activation; above 0, states are kept at first.

    Source: Trax `layers/rnn.py::GeneralGRUCell`.
    """

    def gate() -> list[Layer]:
        add_bias = functools.partial(torch.add, other=sigmoid_bias)
        bias = PureLayer(add_bias, name=f"AddSigmoidBias({sigmoid_bias})")
        return [candidate_transform(), bias, gate_nonlinearity()]

    update = gate()
    candidate = [
        cb.Dup(),
        gate(),
        cb.Multiply(),
        candidate_transform(),
        candidate_nonlinearity(),
        core.Dropout(rate=dropout_rate_c),
    ]
    memory: Any = [] if memory_transform_fn is None else memory_transform_fn()
    return cb.Serial(cb.Branch(memory, update, candidate), cb.Gate())


def MakeZeroState(depth_multiplier: int = 1) -> PureLayer:
    """Returns a layer that makes a first state of zeros for sequences.

    Args:
      depth_multiplier: how many times larger than the sequence's vectors the state is.

    Returns:
      A layer that maps (batch, length, d) to zeros (batch, depth_multiplier * d).

    Raises:
      LayerError: if the input does not have three axes.

    Source: Trax `layers/rnn.py::MakeZeroState`.
    """
    return PureLayer(
        functools.partial(_zeros, depth=None, multiplier=depth_multiplier), name="MakeZeroState"
    )


def _zero_state(depth: int) -> PureLayer:
    return PureLayer(functools.partial(_zeros, depth=depth, multiplier=1), name="MakeZeroState")


def _zeros(x: torch.Tensor, depth: int | None, multiplier: int) -> torch.Tensor:
    if x.dim() != 3:
        raise ValueError(
            f"A recurrence runs over sequences of vectors, (batch, length, d); got shape "
            f"{tuple(x.shape)}. Put an Embedding before it, or add the missing axis."
        )
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    size = multiplier * x.shape[-1] if depth is None else depth
    return x.new_zeros(x.shape[0], size, dtype=dtype)


def _sru_inputs(r: Any, f: Any, y: Any) -> Any:
    return y * (1.0 - f), f, r


def _sru_output(c: Any, r: Any, x: Any) -> Any:
    return c * r + x * (1 - r) * math.sqrt(3)
