"""What tells a transformer where it is: the shift to the right, and the marks of positions.

Trax keeps them in `layers/attention.py`, and so they are shown there.
"""

from typing import Any

import numpy as np
import torch

from trax_torch.layers import _predict
from trax_torch.layers import initializers as init
from trax_torch.layers._dropout import kept
from trax_torch.layers.base import Layer, Mode


class ShiftRight(Layer):
    """Moves a sequence to the right by `n_positions` and fills up with zeros from the left.

    So a model sees, at each position, what came before it. In predict mode, where what comes in is
    already the past, it passes all on.

    Args:
      n_positions: how far; at least 1.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `layers/attention.py::ShiftRight`.
    """

    def __init__(self, n_positions: int = 1, mode: Mode = "train"):
        super().__init__(name=f"ShiftRight({n_positions})")
        if n_positions < 1:
            raise ValueError(f"ShiftRight moves by at least 1 position; got {n_positions}.")
        self._n_positions = n_positions
        self._set_mode(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, ...) to the same shape."""
        if self._memory is not None:
            return x.view_as(x)  # an object of its own, by which decoding knows what was shifted
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
      stepwise: whether predict mode goes on from the positions of earlier calls. False is for
        sequences that come whole, such as an encoder's: each call counts from 0.

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
        mode: Mode = "train",
        *,
        stepwise: bool = True,
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
        self._stepwise = stepwise
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
        if not self._stepwise:
            return
        limit = self._max_len if max_length is None else min(max_length, self._max_len)
        self._memory = _predict.Position(limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, length, d_feature) to the same shape."""
        n, start = x.shape[1], 0
        memory: Any = self._memory
        moment: Any = getattr(memory, "moment", None)
        if moment is not None:
            pass
        elif memory is not None:
            start = memory.advance(n)
        elif n > self._max_len:
            raise ValueError(
                f"A sequence of {n} positions came, but the model was built for max_len="
                f"{self._max_len}. Cut the sequences, or build it with a larger max_len."
            )
        if moment is not None:
            marks = self.table[moment.positions]
        elif self.training and self._start_from_zero_prob < 1 and self._max_offset_to_add:
            marks = self.table[self._random_positions(n)]
        else:
            marks = self.table[start : start + n]
        if self._d_feature is not None:
            marks = marks @ self.matrix
        if self.training and self._dropout:
            shape = [1, *marks.shape]
            for axis in self._dropout_broadcast_dims:
                shape[axis] = 1
            marks = marks * kept(shape, self._dropout, marks)
        result: torch.Tensor = x + marks
        return result

    def _random_positions(self, n: int) -> torch.Tensor:
        """Returns n positions in a row, from 0 or a random offset on; as a tensor, to compile."""
        if n + self._max_offset_to_add > self._max_len:
            raise ValueError(
                f"{n} positions and offsets below {self._max_offset_to_add} need a max_len of at "
                f"least {n + self._max_offset_to_add}; got {self._max_len}."
            )
        device = self.table.device
        offset = torch.randint(self._max_offset_to_add, (), device=device)
        moves = torch.rand((), device=device) >= self._start_from_zero_prob
        return offset * moves + torch.arange(n, device=device)

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        named = super()._own_named(kind, tree)
        if (
            kind == "weights" and named["table"].dim() == 3
        ):  # Trax's older files have (1, max_len, d)
            named["table"] = named["table"][0]
        return named
