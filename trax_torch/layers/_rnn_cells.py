"""The cells of recurrences: LSTM and GRU; `rnn` shows them.

A cell offers `scan` beside its step: what depends on the inputs alone is computed there for all
steps at once.
"""

from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers import initializers as init
from trax_torch.layers._promotion import as_float
from trax_torch.layers.base import Layer

Tensors = tuple[torch.Tensor, ...]


class LSTMCell(Layer):
    """Takes one step of an LSTM: maps (input, state) to (output, state).

    With [i, j, f, o] = [x, h] w + b:  c' = c sigmoid(f) + sigmoid(i) tanh(j),
    h' = tanh(c') sigmoid(o). The state is [c, h], side by side.

    Args:
      n_units: size of c, of h and of the output; the state is twice as large.
      forget_bias: is added to the first values of b.
      kernel_initializer: `(shape, rng) -> tensor` for w; Glorot uniform by default.
      bias_initializer: likewise for b; normal with deviation 1e-6 by default.

    Weights in Trax's order: `(w, b)`, (d_in + n_units, 4 * n_units) and (4 * n_units,).

    Raises:
      LayerError: if the state is not twice n_units large.

    Source: Trax `layers/rnn.py::LSTMCell`, where the forget bias is added to all of b, not to f
      alone; so it is here. Hochreiter and Schmidhuber 1997.
    """

    _weight_names = ("w", "b")

    def __init__(
        self,
        n_units: int,
        forget_bias: float = 1.0,
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
    ):
        super().__init__(n_in=2, n_out=2)
        self._n_units = n_units
        self._forget_bias = forget_bias
        self._kernel_initializer = kernel_initializer or init.GlorotUniformInitializer()
        self._bias_initializer = bias_initializer or init.RandomNormalInitializer(1e-6)
        self.w: Any
        self.b: Any
        self.register_parameter("w", None)
        self.register_parameter("b", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws w and b."""
        x, state = input_signature
        n = self._n_units
        _check_state("LSTMCell", state, 2 * n, f"c and h, 2 * n_units = {2 * n} together")
        w = self._kernel_initializer((x.shape[-1] + n, 4 * n), self.rng)
        self.weights = w, self._bias_initializer((4 * n,), self.rng) + self._forget_bias

    def forward(self, x: Any) -> Any:
        """Maps (..., d_in) and (..., 2 * n_units) to (..., n_units) and the new state."""
        x, state = (as_float(t, self.w.dtype) for t in x)
        c, h = state.chunk(2, dim=-1)
        c, h = _lstm_step(F.linear(torch.cat([x, h], dim=-1), self.w.t(), self.b), c)
        return h, torch.cat([c, h], dim=-1)

    def scan(self, xs: Tensors, carry: Tensors, axis: int) -> tuple[Tensors, Tensors]:
        """Takes all steps along an axis; see `Scan`."""
        x, state = (as_float(t, self.w.dtype) for t in (*xs, *carry))
        c, h = state.chunk(2, dim=-1)
        if (
            x.dim() == 3
            and axis in (0, 1)
            and x.dtype == h.dtype == self.w.dtype
            and not torch.is_autocast_enabled(x.device.type)
        ):
            y, h, c = torch.lstm(
                x,
                (h.contiguous().unsqueeze(0), c.contiguous().unsqueeze(0)),
                self._torch_weights(),
                has_biases=True,
                num_layers=1,
                dropout=0.0,
                train=torch.is_grad_enabled(),  # in eval mode too: cuDNN's backward asks for it
                bidirectional=False,
                batch_first=axis == 1,
            )
            return (y,), (torch.cat([c[0], h[0]], dim=-1),)
        w_x, w_h = self.w.split([x.shape[-1], self._n_units])
        hs = []
        for step in F.linear(x, w_x.t(), self.b).unbind(axis):
            c, h = _lstm_step(_add_product(step, h, w_h), c)
            hs.append(h)
        return (torch.stack(hs, dim=axis),), (torch.cat([c, h], dim=-1),)

    def _torch_weights(self) -> list[torch.Tensor]:
        """The weights as torch.lstm wants them: gates i, f, j, o, input and state apart."""
        n = self._n_units
        i, j, f, o = self.w.t().split(n)
        ordered = torch.cat([i, f, j, o]).split([self.w.shape[0] - n, n], dim=1)
        b_i, b_j, b_f, b_o = self.b.split(n)
        bias = [b_i, b_f, b_j, b_o, torch.zeros_like(self.b)]
        # In one piece of memory, since cuDNN would else warn and copy it together.
        flat = torch.cat([*(part.reshape(-1) for part in ordered), *bias])
        sizes = [part.numel() for part in ordered] + [4 * n, 4 * n]
        w_x, w_h, b_x, b_h = flat.split(sizes)
        return [w_x.view(4 * n, -1), w_h.view(4 * n, n), b_x, b_h]


class GRUCell(Layer):
    """Takes one step of a GRU: maps (input, state) to (output, state), both the new state.

    With [u, r] = sigmoid([x, h] w1 + b1):  h' = u h + (1 - u) tanh([x, r h] w2 + b2).

    Args:
      n_units: size of the state.
      forget_bias: is added to the first values of b1.
      kernel_initializer: `(shape, rng) -> tensor` for w1 and w2; uniform with limit 0.01 by
        default.
      bias_initializer: likewise for b1 and b2; normal with deviation 1e-6 by default.

    Weights in Trax's order: `(w1, b1, w2, b2)`: (d_in + n_units, 2 * n_units), (2 * n_units,),
    (d_in + n_units, n_units) and (n_units,).

    Raises:
      LayerError: if the state is not n_units large.

    Source: Trax `layers/rnn.py::GRUCell`; Chung et al. 2014, arXiv:1412.3555. `torch.nn.GRU`
      applies r after the product with w2, which is another function.
    """

    _weight_names = ("w1", "b1", "w2", "b2")

    def __init__(
        self,
        n_units: int,
        forget_bias: float = 0.0,
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
    ):
        super().__init__(n_in=2, n_out=2)
        self._n_units = n_units
        self._forget_bias = forget_bias
        self._kernel_initializer = kernel_initializer or init.RandomUniformInitializer(0.01)
        self._bias_initializer = bias_initializer or init.RandomNormalInitializer(1e-6)
        self.w1: Any
        self.b1: Any
        self.w2: Any
        self.b2: Any
        for name in self._weight_names:
            self.register_parameter(name, None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws w1, b1, w2 and b2."""
        x, state = input_signature
        n, rng = self._n_units, self.rng
        _check_state("GRUCell", state, n, f"n_units = {n}")
        d = x.shape[-1] + n
        w1 = self._kernel_initializer((d, 2 * n), rng)
        b1 = self._bias_initializer((2 * n,), rng) + self._forget_bias
        self.weights = (
            w1,
            b1,
            self._kernel_initializer((d, n), rng),
            self._bias_initializer((n,), rng),
        )

    def forward(self, x: Any) -> Any:
        """Maps (..., d_in) and (..., n_units) to the new state, twice."""
        x, h = x
        _, (h,) = self.scan((x.unsqueeze(0),), (h,), 0)
        return h, h

    def scan(self, xs: Tensors, carry: Tensors, axis: int) -> tuple[Tensors, Tensors]:
        """Takes all steps along an axis; see `Scan`."""
        x, h = (as_float(t, self.w1.dtype) for t in (*xs, *carry))
        sizes = [x.shape[-1], self._n_units]
        (w1_x, w1_h), (w2_x, w2_h) = self.w1.split(sizes), self.w2.split(sizes)
        gates = F.linear(x, w1_x.t(), self.b1).unbind(axis)
        candidates = F.linear(x, w2_x.t(), self.b2).unbind(axis)
        hs = []
        for gate, candidate in zip(gates, candidates, strict=True):
            u, r = torch.sigmoid(_add_product(gate, h, w1_h)).chunk(2, dim=-1)
            candidate = torch.tanh(_add_product(candidate, r * h, w2_h))
            h = candidate + u * (h - candidate)
            hs.append(h)
        return (torch.stack(hs, dim=axis),), (h,)


def _check_state(name: str, state: Any, wanted: int, what: str) -> None:
    if state.shape[-1] != wanted:
        raise ValueError(
            f"{name} needs a state whose last axis has {what}; got shape {tuple(state.shape)}."
        )


def _lstm_step(y: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    i, j, f, o = y.chunk(4, dim=-1)
    c = c * torch.sigmoid(f) + torch.sigmoid(i) * torch.tanh(j)
    return c, torch.tanh(c) * torch.sigmoid(o)


def _add_product(addend: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.addmm(addend, x, w) if x.dim() == 2 else addend + x @ w
