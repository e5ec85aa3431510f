"""What a model is made of, as a table: its layers, what they give, and their weights.

Shapes come from a pass of shapes, so nothing is computed.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _tables, shapes
from trax_torch.layers._protocol.shape_pass import ShapePass
from trax_torch.layers._protocol.trees import tensors_of

_HEAD = ("layer", "gives", "weights", "bytes")


@dataclass(frozen=True)
class Row:
    """One layer of a `Summary`, with all that is in it.

    Attributes:
      level: in how many others it is.
      name: what it prints as; behind the attribute that holds it, in modules of PyTorch's kind.
      gives: the shapes of what it gives, and the types of what is not float32; "" where no shapes
        were asked for, or it was not called.
      n_weights: how many numbers its parameters have.
      n_bytes: of parameters and buffers.
    """

    level: int
    name: str
    gives: str
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class Summary:
    """A model's layers, as a table when it is printed; see `Layer.summary`.

    Attributes:
      rows: the model's own, then those of its layers, depth first.
      n_weights: how many numbers its parameters have, n_trained: how many of them are trained.
      n_state: how many its buffers have, such as BatchNorm's statistics.
      n_bytes: of parameters and buffers.
    """

    rows: tuple[Row, ...]
    n_weights: int
    n_trained: int
    n_state: int
    n_bytes: int

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            ("  " * r.level + r.name, r.gives, f"{r.n_weights:,}", f"{r.n_bytes:,}")
            for r in self.rows
        ]

    def _total(self) -> str:
        state = f", {self.n_state:,} numbers of state" if self.n_state else ""
        trained = "all" if self.n_trained == self.n_weights else f"{self.n_trained:,}"
        size = _tables.amount(self.n_bytes)
        return f"{self.n_weights:,} weights, {trained} trained{state}; {size}"

    def __str__(self) -> str:
        return f"{_tables.table(_HEAD, self._cells(), numbers=(2, 3))}\n{self._total()}"

    __repr__ = __str__

    def __rich__(self) -> Any:
        """Returns the table that `rich.print` shows."""
        from rich.markup import escape
        from rich.table import Table

        made = Table(caption=self._total())
        for i, name in enumerate(_HEAD):
            made.add_column(name, justify="right" if i > 1 else "left", no_wrap=i != 1)
        for cells in self._cells():
            made.add_row(*map(escape, cells))
        return made


class Summarized(nn.Module):
    """A layer that can tell what it is made of."""

    def summary(self, input_signature: Any = None, depth: int | None = None) -> Summary:
        """Returns a table of the layers inside: what each gives, and its weights and bytes.

        A row counts all that is in its layer, and weights that are shared once; the first row is
        the model's. Nothing is computed, and the model stays as it was: without weights, if it has
        none.

        Args:
          input_signature: as for `init`; None leaves out what layers give.
          depth: in how many others a layer may be, to be shown; None for any.

        Returns:
          A `Summary`, which prints as a table, by `rich.print` as one of rich's, and has rows.

        Raises:
          LayerError: if the layer cannot take inputs of this signature.
          ValueError: if the layer has no weights yet, and no signature says of what shape.

        Example:
          >>> from trax_torch import layers as tl
          >>> tl.Serial(tl.Dense(3), tl.Relu()).summary(shapes.ShapeDtype((8, 2)))
          layer      gives   weights  bytes
          ---------------------------------
          Serial     (8, 3)        9     36
            Dense_3  (8, 3)        9     36
            Relu     (8, 3)        0      0
          9 weights, all trained; 36 bytes
        """
        return summary_of(self, input_signature, depth)


def summary_of(layer: Any, input_signature: Any, depth: int | None) -> Summary:
    """Returns the summary of a layer; see `Layer.summary`."""
    if not layer.is_initialized:
        if input_signature is None:
            raise ValueError(
                f"{layer.name} has no weights yet, so nothing can be told of them. Give the "
                f"signature of its inputs, summary(ShapeDtype((batch, length), np.int64)), say."
            )
        layer = copy.deepcopy(layer)
        layer.init(input_signature, rng=0)
    given = {} if input_signature is None else _given(layer, input_signature)
    parameters, buffers = tensors_of(layer, "weights"), tensors_of(layer, "state")
    trained = [p for p in parameters.values() if p.requires_grad]
    rows = tuple(_rows(layer, layer.name, given, 0, depth))
    return Summary(
        rows,
        _n_numbers(parameters.values()),
        _n_numbers(trained),
        _n_numbers(buffers.values()),
        rows[0].n_bytes,
    )


def _given(layer: Any, input_signature: Any) -> dict[int, str]:
    """Returns what each module gives, by its id, in words; that of the last call of several."""
    given: dict[int, str] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        given[id(module)] = _in_words(output)

    hooks = [module.register_forward_hook(note) for module in layer.modules()]
    try:
        with ShapePass(layer, None) as shape_pass:
            given[id(layer)] = _in_words(shape_pass.run(layer, input_signature))
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _in_words(output: Any) -> str:
    tensors = [x for x in _nest.leaves(output) if isinstance(x, torch.Tensor)]
    words = [_shape_in_words(shapes.signature(x)) for x in tensors[:4]]
    return ", ".join([*words, "..."] if len(tensors) > 4 else words)


def _shape_in_words(signature: Any) -> str:
    kind = "" if signature.dtype == torch.float32 else f" {signature.dtype}"
    return f"{signature.shape}{kind}".replace("torch.", "")


def _rows(
    module: Any, name: str, given: dict[int, str], level: int, depth: int | None
) -> Iterator[Row]:
    parameters = list(tensors_of(module, "weights").values())
    tensors = [*parameters, *tensors_of(module, "state").values()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    yield Row(level, name, given.get(id(module), ""), _n_numbers(parameters), size)
    if depth is None or level < depth:
        for key, inner in _inside(module):
            own = getattr(inner, "_name", None)
            kind = own or type(inner).__name__
            label = kind if own or key.isdecimal() else f"{key}: {kind}"
            yield from _rows(inner, label, given, level + 1, depth)


def _inside(module: Any) -> list[tuple[str, Any]]:
    """Returns what is shown in a module, with the attributes that hold it, in order of use."""
    if hasattr(module, "_is_elementwise"):  # a foreign module in the Layer protocol
        module = module.module
    order = getattr(module, "_order", ())
    rest = [n for n in module._modules if n not in order and n != "_memory"]
    found = [(name, module._modules[name]) for name in (*order, *rest)]
    return [(name, inner) for name, inner in found if inner is not None]


def _n_numbers(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)
