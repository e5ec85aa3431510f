"""Scan and Cache: layers made of a layer that remember, in predict mode, what it gave."""

import contextlib
import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trax_torch import _nest, _torch_private
from trax_torch.layers import _predict, _reversible, base
from trax_torch.layers._protocol import has_hooks
from trax_torch.layers.base import Layer, Mode, as_layer


class Scan(Layer):
    """Applies a layer to the slices along an axis, one after another, with a carry between them.

    The layer takes (inputs..., carry...) and gives (outputs..., new carry...). Scan takes its
    inputs with one more axis, and the first carry; it gives the outputs of all steps, stacked along
    that axis, and the last carry.

    In predict mode the carry is remembered: the next call goes on from it, and not from the carry
    that it brings.

    Args:
      layer: what is applied. If its class offers `scan(xs, carry, axis)`, which takes and returns
        two tuples, that is asked to take all steps at once; it must equal `forward`, step by step.
      axis: along which the inputs are sliced. 0 steps give empty outputs and the first carry.
      n_carry: how many of the layer's inputs, and of its outputs, are the carry; 0 maps the layer
        over the slices.
      remat: keeps no activations of a step for the backward pass, and computes them again there.
      mode: `'train'`, `'eval'` or `'predict'`.

    Raises:
      ValueError: if the layer does not take `n_carry` items and one more, or gives fewer.

    Example:
      >>> running_sum = base.Fn('Add', lambda x, total: (x + total, x + total), n_out=2)
      >>> Scan(running_sum)((torch.tensor([1, 2, 3]), torch.tensor(0)))
      (tensor([1, 3, 6]), tensor(6))

    Source: Trax `layers/combinators.py::Scan`. There slices along an axis above 1 come transposed.
    """

    def __init__(
        self,
        layer: Any,
        axis: int = 0,
        n_carry: int = 1,
        remat: bool = False,
        mode: Mode = "train",
    ):
        layer = as_layer(layer)
        super().__init__(n_in=layer.n_in, n_out=layer.n_out)
        if n_carry < 0 or layer.n_in <= n_carry or layer.n_out < n_carry:
            raise ValueError(
                f"Scan needs a layer that takes one input at least and n_carry={n_carry} more, and "
                f"gives {n_carry} at least; got {layer.name} with n_in={layer.n_in} and n_out="
                f"{layer.n_out}. n_carry=0 maps a layer without carry."
            )
        self._axis = axis
        self._n_carry = n_carry
        self._remat = remat
        self._takes_all_steps = takes_all_steps(type(layer))
        self._set_sublayers([layer])
        self._set_mode(mode)

    @property
    def sublayer(self) -> Any:
        """The layer that is applied."""
        return self._modules["0"]

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode without a carry; a carry has no length, so `max_length` is free."""
        if self._n_carry:
            self._memory = _predict.Carry(can_branch=self._axis == 1)
        else:
            super().init_cache(batch_size, max_length)

    def forward(self, x: Any) -> Any:
        """Returns the stacked outputs and the last carry."""
        layer: Any = self._modules["0"]
        items = tuple(x) if isinstance(x, (tuple, list)) else (x,)
        n_xs = self._n_in - self._n_carry
        xs, carry = items[:n_xs], items[n_xs:]
        if len(carry) != self._n_carry:
            raise ValueError(
                f"Scan takes {n_xs} inputs and a carry of {self._n_carry}; got {len(items)} items."
            )
        memory = self._memory if isinstance(self._memory, _predict.Carry) else None
        n_beams = 1
        if memory is not None:
            carry = memory.read(carry)
            n_beams = memory.n_beams
        if n_beams > 1:  # each of the beams side by side is a row of its own, with one step
            xs = tuple(x.flatten(0, 1).unsqueeze(1) for x in xs)
        n_steps = _n_steps(xs, self._axis)
        if self._pass is not None or n_steps == 0:
            ys, carry = self._one_for_all(layer, xs, carry, n_steps)
        elif memory is not None and memory.lengths is not None:
            ys, carry = self._step_by_step(layer, xs, carry, memory.lengths)
        elif self._takes_all_steps and not self._remat and not any(map(has_hooks, layer.modules())):
            ys, carry = layer.scan(xs, carry, self._axis)
        else:
            ys, carry = self._step_by_step(layer, xs, carry)
        if memory is not None:
            memory.write(carry)
        if n_beams > 1:
            ys = tuple(y.squeeze(1).unflatten(0, (-1, n_beams)) for y in ys)
        outputs = (*ys, *carry)
        return outputs[0] if len(outputs) == 1 else outputs

    def _step_by_step(
        self,
        layer: Any,
        xs: tuple[Any, ...],
        carry: tuple[Any, ...],
        lengths: torch.Tensor | None = None,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Runs one step after another; a row's carry stays as it is after `lengths` steps."""
        steps: list[tuple[Any, ...]] = []
        for slices in zip(*(x.unbind(self._axis) for x in xs), strict=True):
            ys, new = self._step(layer, slices, carry)
            if lengths is not None:
                counts = lengths > len(steps)
                new = tuple(
                    torch.where(counts.view(-1, *(1,) * (n.dim() - 1)), n, c) if n.dim() else n
                    for n, c in zip(new, carry, strict=True)
                )
            carry = new
            steps.append(ys)
        return tuple(torch.stack(ys, self._axis) for ys in zip(*steps, strict=True)), carry

    def _one_for_all(
        self, layer: Any, xs: tuple[Any, ...], carry: tuple[Any, ...], n_steps: int
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Runs one step on zeros to learn the shapes, which are those of every step."""
        slices = tuple(x.new_zeros(_without(x.shape, self._axis)) for x in xs)
        with contextlib.nullcontext() if self._pass is not None else _Kept(layer):
            ys, last = self._step(layer, slices, carry)
        if n_steps == 0:
            return tuple(y.unsqueeze(self._axis).narrow(self._axis, 0, 0) for y in ys), carry
        return tuple(torch.stack([y] * n_steps, self._axis) for y in ys), last

    def _step(
        self, layer: Any, slices: tuple[Any, ...], carry: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        items = (*slices, *carry)
        inputs = items[0] if len(items) == 1 else items
        if self._remat and torch.is_grad_enabled() and self._pass is None:
            outputs = _recomputed(layer, inputs)
        else:
            outputs = base.call(layer, inputs)
        if not isinstance(outputs, (tuple, list)):
            outputs = (outputs,)
        n_ys = len(outputs) - self._n_carry
        return tuple(outputs[:n_ys]), tuple(outputs[n_ys:])

    # Trax's state is (the layer's state, the carry).

    def _tree(self, kind: str, seen: set[int]) -> Any:
        tree = super()._tree(kind, seen)
        if kind == "weights" or isinstance(tree, dict):
            return tree
        return tree[0], _held_by(self)

    def _named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "weights" or isinstance(tree, dict):
            return super()._named(kind, tree)
        return _named_with_held(self, super()._named, tree, position=1)


class Cache(Layer):
    """In predict mode, runs a layer once and answers what it gave from then on; else is that layer.

    The inputs of later calls are not looked at, until the memory is reset. The layer itself runs
    as in eval mode, on whole sequences: an encoder, say, whose output every step of a decoder uses.

    Args:
      layer: what is run.
      mode: `'train'`, `'eval'` or `'predict'`.

    Example:
      >>> once = Cache(base.Fn('Double', lambda x: 2 * x), mode='predict')
      >>> once(torch.tensor([1])), once(torch.tensor([5]))
      (tensor([2]), tensor([2]))

    Source: Trax `layers/combinators.py::Cache`, which remembers in every mode.
    """

    def __init__(self, layer: Any, mode: Mode = "train"):
        layer = as_layer(layer)
        super().__init__(n_in=layer.n_in, n_out=layer.n_out)
        self._set_sublayers([layer])
        self._set_mode(mode)

    @property
    def sublayer(self) -> Any:
        """The layer that is run."""
        return self._modules["0"]

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing remembered."""
        self._memory = _predict.Kept()

    def forward(self, x: Any) -> Any:
        """Returns the layer's outputs, of this call or the first."""
        layer: Any = self._modules["0"]
        if not isinstance(self._memory, _predict.Kept):
            return base.call(layer, x)
        outputs = self._memory.tree()
        if not outputs:
            inside = _predict.layers_in(layer)
            with _predict.Lent(inside, [None] * len(inside)):
                result = base.call(layer, x)
            outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
            self._memory.write(outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    # Trax's state is (what is remembered: bare if one tensor; the layer's state).

    def _tree(self, kind: str, seen: set[int]) -> Any:
        tree = super()._tree(kind, seen)
        if kind == "weights" or isinstance(tree, dict):
            return tree
        held = _held_by(self)
        return (held[0] if len(held) == 1 else held), tree[0]

    def _named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "weights" or isinstance(tree, dict):
            return super()._named(kind, tree)
        return _named_with_held(self, super()._named, tree, position=0)


def _held_by(layer: Layer) -> Any:
    """Returns what a layer's memory holds, as a tuple; `()` in other modes than predict."""
    memory: Any = layer._memory
    return memory.tree() if isinstance(memory, (_predict.Carry, _predict.Kept)) else ()


def _named_with_held(layer: Layer, named: Any, tree: Any, position: int) -> dict[str, Any]:
    """Returns by name what is in a state of two parts: a sublayer's state, and what is held.

    Args:
      layer: a layer with one sublayer and a memory of tensors.
      named: how the layer names the state of its sublayers.
      tree: the state.
      position: where in the state the part that is held stands.

    Raises:
      ValueError: if the state does not have two parts, or holds what the layer cannot keep.
    """
    if not isinstance(tree, (tuple, list)) or len(tree) != 2:
        raise ValueError(
            f"The state of {layer.name} has two parts, its layer's and what it remembers; got "
            f"{len(tree) if isinstance(tree, (tuple, list)) else type(tree).__name__}. "
            f"layer.state shows the tree."
        )
    held = list(_nest.leaves(tree[position]))
    result: dict[str, Any] = named("state", (tree[1 - position],))
    if isinstance(layer._memory, (_predict.Carry, _predict.Kept)):
        result["_memory"] = [_nest.to_tensor(value) for value in held]
    elif held:
        raise ValueError(
            f"{layer.name} remembers in predict mode alone, but the state brings {len(held)} "
            f"remembered tensors. Set it inside `with model.predict(...):`."
        )
    return result


class _Kept:
    """Leaves a layer's buffers after the block as they were before."""

    def __init__(self, layer: nn.Module):
        self._layer = layer

    def __enter__(self) -> None:
        self._saved = [(b, b.clone()) for b in self._layer.buffers()]

    def __exit__(self, *error: Any) -> None:
        with torch.no_grad():
            for buffer, value in self._saved:
                buffer.copy_(value)


def _recomputed(layer: nn.Module, inputs: Any) -> Any:
    """Calls a layer so that its activations are computed again in the backward pass."""
    if torch.compiler.is_compiling():
        return checkpoint(layer, inputs, use_reentrant=False)
    if _torch_private.is_transformed():
        return _reversible.call_again(layer, inputs)
    if any(True for _ in layer.buffers()):
        # What a layer counts, such as batches, must not be counted again with the activations.
        contexts = functools.partial(_contexts, layer)
        return checkpoint(base.call, layer, inputs, use_reentrant=False, context_fn=contexts)
    return checkpoint(base.call, layer, inputs, use_reentrant=False)


def _contexts(layer: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _Kept(layer)


def takes_all_steps(cls: type) -> bool:
    """Tells whether a class's `scan` knows of its `forward`, which a subclass may have changed."""
    for owner in cls.__mro__:
        if "scan" in vars(owner):
            return True
        if "forward" in vars(owner):
            return False
    return False


def _n_steps(xs: tuple[Any, ...], axis: int) -> int:
    shapes = [tuple(x.shape) for x in xs]
    if any(not -len(shape) <= axis < len(shape) for shape in shapes):
        raise ValueError(f"Scan goes along axis {axis}, which every input must have; got {shapes}.")
    lengths = {int(shape[axis]) for shape in shapes}  # torch.export may leave one open
    if len(lengths) != 1:
        raise ValueError(
            f"Scan goes along axis {axis}, so all inputs must be equally long there; got {shapes}."
        )
    result: int = lengths.pop()
    return result


def _without(shape: Any, axis: int) -> list[int]:
    sizes = list(shape)
    del sizes[axis]
    return sizes
