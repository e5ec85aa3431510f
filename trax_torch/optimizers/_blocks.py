"""A model in blocks, of which one at a time has activations, and gradients, that take up memory.

Forward, a block leaves behind what it took in, and a reversible one not even that. Backward, it
runs once more, on the same random numbers, and its gradients are complete when it is done: that is
when its weights can be updated, before the next block runs.

Chen et al. 2016, arXiv:1604.06174; Gomez et al. 2017, arXiv:1707.04585.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.layers import base
from trax_torch.layers._hooks import has_hooks
from trax_torch.layers._replay import Replay
from trax_torch.layers._reversing import ReversibleLayer, add, can_have_grad, items_of, packed
from trax_torch.optimizers._recompute import parts_of, recomputed
from trax_torch.optimizers._residence import Residence

Stack = tuple[Any, ...]


class Blocks:
    """Runs a model and its loss block by block, and back.

    What comes last is not run again, since its backward pass comes at once.

    Args:
      layers: the model's layers in series, as far as they are cut into blocks.
      last: what comes after them, the loss at its end: a layer, to which the last block is joined,
        or a module with a layer's `n_in`.
      device: where to compute.
      autocast: makes the context to compute in.
      residence: where weights are while they are not used.
    """

    def __init__(
        self,
        layers: Iterable[tl.Layer],
        last: Any,
        device: torch.device,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        residence: Residence | None = None,
    ):
        self.device = device
        self.residence = residence or Residence()
        self._blocks = cut(layers)
        before = self._blocks[-1:]
        if isinstance(last, tl.Layer) and before and not isinstance(before[0], ReversibleLayer):
            last = tl.Serial(self._blocks.pop(), last)
        self._last = last
        self._autocast = autocast
        self._modules: list[nn.Module] = [*self._blocks, last]
        foreign = [m.module for m in last.modules() if isinstance(m, tl.Wrapped)]
        self._parts = [part for module in foreign for part in parts_of(module)]
        self._one_by_one = {p for module in foreign for p in module.parameters()}
        self._kept: list[_Kept] = []
        self._loss: torch.Tensor | None = None
        self._inputs: Stack = ()  # of what comes last

    def params_due(self) -> list[list[nn.Parameter]]:
        """Returns the trained weights by the block after whose backward pass they are complete.

        That is the first one that uses them. What comes last has the last list.
        """
        seen: set[int] = set()
        due: list[list[nn.Parameter]] = []
        for module in self._modules:
            new = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(map(id, new))
            due.append(new)
        return due

    def forward(self, batch: tuple[Any, ...]) -> torch.Tensor:
        """Returns the loss of a batch, and notes what the way back needs."""
        stack, wants = tuple(batch), (False,) * len(batch)
        self._kept = []
        with self._autocast():
            with torch.no_grad():
                for i, block in enumerate(self._blocks):
                    self._bring(i, i + 1)
                    stack, wants = self._run(block, stack, wants)
                    self._leave(i, [])
            n = self._last.n_in
            self._bring(len(self._blocks), len(self._blocks) - 1)
            self._inputs = _tracked(stack[:n], wants[:n])
            with recomputed(self._parts):
                self._loss = self._last(packed(self._inputs))
        loss: torch.Tensor = self._loss.detach()
        return loss

    def backward(
        self,
        weight: Any,
        complete: Callable[[list[nn.Parameter]], None],
        one_by_one: bool = True,
    ) -> None:
        """Goes back block by block.

        Args:
          weight: the gradient of the loss.
          complete: is called with weights whose gradients are complete, to update them.
          one_by_one: whether it may be called within a block, too, as soon as one is complete: in
            a module of others, which may be one large block.
        """
        assert self._loss is not None
        due, early = self.params_due(), set()

        def at_once(p: Any) -> None:
            early.add(p)
            with torch.no_grad():
                complete([p])

        with contextlib.ExitStack() as hooks:
            for p in due[-1]:
                if one_by_one and p in self._one_by_one:
                    hooks.callback(p.register_post_accumulate_grad_hook(at_once).remove)
            self._loss.backward(self._loss.detach() * 0.0 + weight)
        self._loss = None
        grads: Stack = tuple(_grad_of(x) for x in self._inputs)
        self._inputs = ()
        rest = [p for p in due[-1] if p not in early]
        self._complete(len(self._blocks), due[-1], rest, complete)
        values: Stack = ()  # the stack between two blocks of a reversible run
        for i in reversed(range(len(self._blocks))):
            self._bring(i, i - 1)
            values, grads = self._kept.pop().go_back(self._blocks[i], values, grads)
            self._complete(i, due[i], due[i], complete)
        self.residence.settle()

    def abandon(self) -> None:
        """Forgets a way back that is not gone to its end."""
        self._kept, self._inputs, self._loss = [], (), None
        self.residence.abandon()

    def _run(
        self, block: tl.Layer, stack: Stack, wants: tuple[bool, ...]
    ) -> tuple[Stack, tuple[bool, ...]]:
        """Returns the stack after a block, and which of its items need gradients."""
        n_in = block.n_in
        inputs = stack[:n_in]
        replay = Replay(block, self.device, packed(inputs))
        versions = _versions(inputs)
        outputs = items_of(base.call(block, packed(inputs)))
        is_trained = any(wants[:n_in]) or any(p.requires_grad for p in block.parameters())
        after = (*outputs, *stack[n_in:])
        wants_after = (*(is_trained and can_have_grad(x) for x in outputs), *wants[n_in:])
        if isinstance(block, ReversibleLayer):
            if self._kept and isinstance(self._kept[-1], _KeptRun):
                self._kept[-1].outputs = ()  # the next block's way back gives them
            self._kept.append(_KeptRun(after, replay, wants[:n_in]))
        else:
            if _versions(inputs) != versions:
                raise ValueError(
                    f"{block.name} writes into its inputs, which are kept to run it again in the "
                    f"backward pass. Build its layers with inplace=False."
                )
            self._kept.append(_KeptInputs(inputs, replay, wants[:n_in], len(outputs)))
        return after, wants_after

    def _complete(
        self,
        i: int,
        due: list[nn.Parameter],
        rest: list[nn.Parameter],
        complete: Callable[[list[nn.Parameter]], None],
    ) -> None:
        """Has the rest of a block's weights that are due updated, and takes its leave."""
        if rest:
            complete(rest)
        self._leave(i, due)

    def _bring(self, i: int, following: int) -> None:
        """Has a block's weights on the device, and starts to bring those of the following one."""
        self.residence.bring(list(self._modules[i].parameters()))
        if 0 <= following < len(self._modules):
            self.residence.fetch(list(self._modules[following].parameters()))

    def _leave(self, i: int, changed: list[nn.Parameter]) -> None:
        self.residence.leave(list(self._modules[i].parameters()), changed)


class InBlocks(tl.Layer):
    """Computes what a layer computes, block by block, without gradients.

    Args:
      layer: what to run; its weights are its own, not copies.
      residence: where they are while they are not used.
    """

    def __init__(self, layer: tl.Layer, residence: Residence):
        super().__init__(n_in=layer.n_in, n_out=layer.n_out, name=layer.name)
        self._set_sublayers([layer])
        self._blocks = cut([layer])
        self._residence = residence

    def forward(self, x: Any) -> Any:
        """Returns what the layer returns."""
        stack = items_of(x)
        try:
            with torch.no_grad():
                for block in self._blocks:
                    params = list(block.parameters())
                    self._residence.bring(params)
                    outputs = base.call(block, packed(stack[: block.n_in]))
                    stack = (*items_of(outputs), *stack[block.n_in :])
                    self._residence.leave(params, [])
        finally:
            self._residence.abandon()
        return packed(stack)


class _KeptInputs:
    """What a block leaves behind that computes its activations again: its inputs."""

    def __init__(self, inputs: Stack, replay: Replay, wants: tuple[bool, ...], n_out: int):
        self._inputs = inputs
        self._replay = replay
        self._wants = wants
        self._n_out = n_out

    def go_back(self, block: tl.Layer, values: Stack, grads: Stack) -> tuple[Stack, Stack]:
        """Adds up the gradients of the block's weights; returns those of the stack before it."""
        above, below = grads[: self._n_out], grads[self._n_out :]
        inputs = _tracked(self._inputs, self._wants)
        if any(g is not None for g in above):
            with torch.enable_grad():
                outputs = items_of(self._replay(packed(inputs)))
            pairs = [
                (x, g)
                for x, g in zip(outputs, above, strict=True)
                if g is not None and can_have_grad(x) and x.requires_grad
            ]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        return (), (*(_grad_of(x) for x in inputs), *below)


class _KeptRun:
    """What a reversible layer leaves behind: the stack after it, if nobody gives that back."""

    def __init__(self, outputs: Stack, replay: Replay, wants: tuple[bool, ...]):
        self.outputs = outputs
        self._replay = replay
        self._wants = wants

    def go_back(self, block: Any, values: Stack, grads: Stack) -> tuple[Stack, Stack]:
        """Adds up the gradients of the layer's weights; returns the stack before it and its own."""
        values = self.outputs or values
        n_out, params = block.n_out, [p for p in block.parameters() if p.requires_grad]
        grads = (*grads, *(None,) * (len(values) - len(grads)))
        inputs, above, of_params = block.reverse_and_grad(
            packed(values[:n_out]), packed(grads[:n_out]), self._replay, params
        )
        for p, grad in zip(params, of_params, strict=True):
            p.grad = add(p.grad, grad)
        above = (g if w else None for g, w in zip(items_of(above), self._wants, strict=True))
        return (*items_of(inputs), *values[n_out:]), (*above, *grads[n_out:])


_Kept = _KeptInputs | _KeptRun


def cut(layers: Iterable[tl.Layer]) -> list[tl.Layer]:
    """Returns layers in series, or the parts of a Serial, as blocks in series.

    A reversible layer is a block, and so is a layer that is made of others; plain layers side by
    side make about as many blocks as each of them has layers with weights.
    """
    blocks: list[tl.Layer] = []
    plain: list[tl.Layer] = []
    for layer in _opened(part for whole in layers for part in series_of(whole)):
        if isinstance(layer, ReversibleLayer) or _is_composite(layer):
            blocks += [*_bundled(plain), layer]
            plain = []
        else:
            plain.append(layer)
    return [*blocks, *_bundled(plain)]


def series_of(layer: tl.Layer) -> list[tl.Layer]:
    """Returns what a layer runs one after another: the parts of a Serial or nn.Sequential, say.

    One with hooks is not taken apart: they wait for it to be called as a whole.
    """
    module = layer.module if isinstance(layer, tl.Wrapped) else layer
    if has_hooks(layer) or has_hooks(module):
        return [layer]
    if type(layer) is tl.Serial:
        return list(layer.sublayers)
    if type(module) is nn.Sequential:
        return [tl.as_layer(part) for part in module]
    return [layer]


def _opened(layers: Iterable[tl.Layer]) -> Iterator[tl.Layer]:
    """Yields the layers, in place of those that hold several blocks what they hold."""
    for layer in layers:
        parts = series_of(layer)
        if parts != [layer] and _holds_blocks(parts):
            yield from _opened(parts)
        else:
            yield layer


def _holds_blocks(parts: list[tl.Layer]) -> bool:
    """Tells whether layers in series are more than one block, a residual one say."""
    if any(isinstance(part, ReversibleLayer) for part in parts):
        return True
    return sum(map(_has_weights, parts)) > 1 and any(map(_is_composite, parts))


def _bundled(layers: list[tl.Layer]) -> list[tl.Layer]:
    """Returns plain layers in about as many blocks as each has layers with weights."""
    n_weighted = sum(map(_has_weights, layers))
    size = max(1, math.ceil(math.sqrt(n_weighted)))
    bundles: list[list[tl.Layer]] = [[]]
    count = 0
    for layer in layers:
        if _has_weights(layer):
            if count == size:
                bundles.append([])
                count = 0
            count += 1
        bundles[-1].append(layer)
    return [b[0] if len(b) == 1 else tl.Serial(*b) for b in bundles if b]


def _has_weights(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())


def _is_composite(layer: tl.Layer) -> bool:
    module = layer.module if isinstance(layer, tl.Wrapped) else layer
    return any(map(_has_weights, module.children()))


def _versions(items: Stack) -> list[int]:
    """Returns how often each tensor was written into."""
    return [x._version for x in items if isinstance(x, torch.Tensor)]


def _tracked(items: Stack, wants: tuple[bool, ...]) -> Stack:
    """Returns the items, those that need gradients as leaves that will have them."""
    return tuple(
        x.detach().requires_grad_() if wanted else x for x, wanted in zip(items, wants, strict=True)
    )


def _grad_of(x: Any) -> torch.Tensor | None:
    return x.grad if isinstance(x, torch.Tensor) and x.requires_grad else None
