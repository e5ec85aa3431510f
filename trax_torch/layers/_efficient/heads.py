"""Attention whose heads have weights of their own: what its kinds have in common."""

from typing import Any

import torch

from trax_torch.layers._dropout import kept
from trax_torch.layers._efficient.groups import check_parallel
from trax_torch.layers.attention import checked_dropout
from trax_torch.layers.base import Layer
from trax_torch.layers.core import promote


class HeadByHead(Layer):
    """Attention whose heads have weights of their own; what its kinds have in common.

    Args:
      n_in: number of inputs; the last one is a mask if `masked`.
      names: of the weights, in Trax's order; 'w_...' map vectors, 'b_...' are added.
      n_heads: number of heads.
      d_qk: size of queries and keys.
      d_v: size of values.
      masked: whether a mask comes in.
      attention_dropout: the probability that an attention weight is dropped while training, alike
        in all rows and heads.
      output_dropout: likewise for a feature of the output, alike at all positions.
      n_parallel_heads: how many heads are computed at once; see `SelfAttention`.
    """

    def __init__(
        self,
        n_in: int,
        names: tuple[str, ...],
        n_heads: int,
        d_qk: int,
        d_v: int,
        masked: bool,
        attention_dropout: float,
        output_dropout: float,
        n_parallel_heads: int | None,
    ):
        super().__init__(n_in=n_in)
        self._n_heads, self._d_qk, self._d_v, self._masked = n_heads, d_qk, d_v, masked
        self._attention_dropout = checked_dropout(attention_dropout)
        self._output_dropout = checked_dropout(output_dropout)
        self._n_parallel_heads = check_parallel(n_heads, n_parallel_heads)
        self._weight_names = names
        for name in names:
            self.register_parameter(name, None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the matrices as if those of all heads were one, as Glorot did; biases are 0."""
        came = input_signature if isinstance(input_signature, (tuple, list)) else [input_signature]
        d_out, d_in = came[0].shape[-1], came[1 if self._takes_two else 0].shape[-1]
        made = []
        for name in self._weight_names:
            d_from = d_out if name in ("w_q", "w_o") else d_in
            d_head = self._d_v if name in ("w_v", "w_o", "b_v") else self._d_qk
            if name.startswith("b"):
                made.append(torch.zeros(self._n_heads, d_head))
                continue
            shape = (d_head, d_from) if name == "w_o" else (d_from, d_head)
            limit = (6 / (d_from + d_head * self._n_heads)) ** 0.5
            drawn = torch.empty(self._n_heads, *shape).uniform_(-limit, limit, generator=self.rng)
            made.append(drawn)
        self.weights = tuple(made)

    _takes_two = False  # whether keys and values come of another input than queries

    def inputs(self, x: Any) -> tuple[Any, ...]:
        """Returns the inputs, with a mask of booleans (batch, length), or None for it."""
        items = tuple(x) if isinstance(x, (tuple, list)) else (x,)
        if len(items) != self._n_in:
            raise ValueError(
                f"{self._name} takes {self._n_in} inputs, {'the' if self._masked else 'no'} mask "
                f"included; got {len(items)}. masked= says whether there is one."
            )
        if not self._masked:
            return *items, None
        *vectors, mask = items
        if mask.shape != vectors[-1].shape[:2]:
            raise ValueError(
                f"{self._name} takes a mask (batch, length) of its keys, here "
                f"{tuple(vectors[-1].shape[:2])}, True where there is content; got "
                f"{tuple(mask.shape)}. tokens != 0 makes one."
            )
        return *vectors, mask if mask.dtype == torch.bool else mask != 0

    def own_weights(self) -> dict[str, torch.Tensor]:
        # Taken now: a backward pass that computes again may find others in their place.
        return {name: getattr(self, name) for name in self._weight_names}

    def keep(self, n: int, m: int, like: torch.Tensor) -> torch.Tensor | None:
        """Returns what weights of n queries and m keys are multiplied with, or None."""
        rate = self._attention_dropout
        return kept((n, m), rate, like) if self.training and rate else None

    def finished(self, x: torch.Tensor) -> torch.Tensor:
        rate = self._output_dropout
        return x * kept(x.shape[-1:], rate, x) if self.training and rate else x


def names_of(share_qk: bool, bias: bool) -> tuple[str, ...]:
    """Returns the names of the weights in Trax's order."""
    k = () if share_qk else ("k",)
    matrices = [f"w_{letter}" for letter in ("q", *k, "v", "o")]
    return (*matrices, *(f"b_{letter}" for letter in ("q", *k, "v") if bias))


def by_head(
    x: torch.Tensor, own: dict[str, torch.Tensor], letter: str, heads: slice
) -> torch.Tensor:
    """Returns queries, keys or values of some heads, (batch, heads, length, d).

    Args:
      x: floats (batch, length, d_model).
      own: the weights by name.
      letter: 'q', 'k' or 'v'.
      heads: which.
    """
    w, b = own[f"w_{letter}"][heads], own.get(f"b_{letter}")
    x, w, b = promote(x, w, None if b is None else b[heads])
    result: torch.Tensor = (x.flatten(0, 1) @ w).unflatten(1, x.shape[:2]).transpose(0, 1)
    return result if b is None else result + b[:, None, :]


def joined(found: torch.Tensor, w_o: torch.Tensor) -> torch.Tensor:
    """Returns the sum of what heads found, (batch, heads, length, d_v), each mapped by its w_o."""
    return found.transpose(1, 2).flatten(2) @ w_o.flatten(0, 1).to(found.dtype)
