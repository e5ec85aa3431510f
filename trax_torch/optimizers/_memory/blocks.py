"""Training block by block: one block at a time has activations, and gradients, in memory.

This is activation checkpointing, with the update in the midst of the backward pass.

Forward, a block leaves behind what it took in, and a reversible one not even that. Backward, it
runs once more, on the same random numbers, and its gradients are complete when it is done: that is
when its weights can be updated, before the next block runs.

Chen et al. 2016, arXiv:1604.06174; Gomez et al. 2017, arXiv:1707.04585.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _torch_private
from trax_torch import layers as tl
from trax_torch.layers import base
from trax_torch.layers._protocol import has_hooks
from trax_torch.layers._reversible import Replay, add, can_have_grad, can_reverse, items_of, packed
from trax_torch.optimizers._memory.activation_checkpoint import parts_of, recomputed
from trax_torch.optimizers._memory.kv_cache import cache_settings_of, without_cache
from trax_torch.optimizers._memory.offload import Residence
from trax_torch.optimizers._memory.partition import cut
from trax_torch.optimizers._memory.update_in_backward import run_watched

Stack = tuple[Any, ...]

_WRITES = (
    "{} writes into its inputs, which are kept to run it again in the backward pass, or the block "
    "before it backwards. Build its layers with inplace=False."
)
_DIFFERENTIATES = (
    "{} computes gradients in its forward pass, and blocks run forward without recording any. Have "
    "it do so within torch.enable_grad(), or leave use_memory_efficient_trainer out."
)


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
        if isinstance(last, tl.Layer) and before and not can_reverse(before[0]):
            last = tl.Serial(self._blocks.pop(), last)
        self._last = last
        self._autocast = autocast
        self._modules: list[nn.Module] = [*self._blocks, last]
        self._caching = cache_settings_of(self._modules)
        self._counts = collections.Counter(p for m in self._modules for p in m.parameters())
        self._assigned = {p for m in self._blocks if can_reverse(m) for p in m.parameters()}
        foreign = [
            m.module
            for m in last.modules()
            if isinstance(m, tl.Wrapped) and not isinstance(m.module, tl.Layer)
        ]
        self._parts = [part for module in foreign for part in parts_of(module)]
        self._foreign = {p for module in foreign for p in module.parameters()}
        self._one_by_one: set[nn.Parameter] | None = None  # is found in the first forward pass
        self._left: list[tuple[str, torch.Tensor]] = []  # on blocks, in the first forward pass
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
        stack: Stack = tuple(batch)
        wants: Stack = _nest.map_leaves(lambda _: False, stack)
        self._kept, self._left = [], []
        self._check_hooks()
        with self._autocast(), without_cache(self._caching):
            with torch.no_grad():
                for i, block in enumerate(self._blocks):
                    self._bring(i, i + 1)
                    stack, wants = self._run(block, stack, wants)
                    self._leave(i, [])
            n = self._last.n_in
            self._bring(len(self._blocks), len(self._blocks) - 1)
            self._inputs = _tracked(stack[:n], wants[:n])
            with recomputed(self._parts), _explained("What comes last"):
                run = functools.partial(self._last, packed(self._inputs))
                if self._one_by_one is None:
                    self._loss, self._one_by_one = run_watched(run, self._foreign, self._left)
                else:
                    self._loss = run()
        self._left = []
        loss: Any = self._loss
        result: torch.Tensor = loss.detach()
        return result

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

        Raises:
          RuntimeError: if a gradient goes on after it was complete.
        """
        assert self._loss is not None
        assert self._one_by_one is not None
        due, early = self.params_due(), set()

        def at_once(p: Any) -> None:
            if p in early:
                raise RuntimeError(
                    f"A weight of shape {tuple(p.shape)} was updated when its gradient was "
                    f"complete, and then got more of it, from a backward pass within the backward "
                    f"pass. Use torch.utils.checkpoint with use_reentrant=False there, or leave "
                    f"use_memory_efficient_trainer out."
                )
            early.add(p)
            with torch.no_grad():
                complete([p])

        with contextlib.ExitStack() as hooks, without_cache(self._caching):
            for p in due[-1]:
                if one_by_one and p in self._one_by_one:
                    hooks.callback(p.register_post_accumulate_grad_hook(at_once).remove)
            self._loss.backward(self._loss.detach() * 0.0 + weight)
        self._loss = None
        grads = _grads_of(self._inputs)
        self._inputs = ()
        rest = [p for p in due[-1] if p not in early]
        self._complete(len(self._blocks), due[-1], rest, complete)
        values: Stack = ()  # the stack between two blocks of a reversible run
        for i in reversed(range(len(self._blocks))):
            self._bring(i, i - 1)
            with without_cache(self._caching):
                values, grads = self._kept.pop().go_back(self._blocks[i], values, grads)
            self._complete(i, due[i], due[i], complete)
        self.residence.settle()

    def abandon(self) -> None:
        """Forgets a way back that is not gone to its end."""
        self._kept, self._inputs, self._loss = [], (), None
        self.residence.abandon()

    def _run(self, block: tl.Layer, stack: Stack, wants: Stack) -> tuple[Stack, Stack]:
        """Returns the stack after a block, and packed alike, what in it needs gradients."""
        n_in = block.n_in
        inputs = stack[:n_in]
        replay = Replay(block, self.device, packed(inputs))
        versions = _versions(inputs)
        with _explained(block.name):
            outputs = items_of(replay.first(packed(inputs)))
        if self._one_by_one is None:
            self._left += [(f"{n} of {block.name}", x) for n, x in replay.held.left()]
        is_trained = any(_nest.leaves(wants[:n_in])) or any(
            p.requires_grad for p in block.parameters()
        )
        if is_trained:
            _check_packing(block.name, outputs)
        after = (*outputs, *stack[n_in:])
        wanted = _nest.map_leaves(lambda x: is_trained and can_have_grad(x), outputs)
        wants_after = (*wanted, *wants[n_in:])
        if _runs_backwards(block, inputs):
            if self._kept and isinstance(self._kept[-1], _KeptRun):
                self._kept[-1].outputs = ()  # the next block's way back gives them
            self._kept.append(_KeptRun(after, replay, wants[:n_in]))
        else:
            if _versions(inputs) != versions:
                raise ValueError(_WRITES.format(block.name))
            self._kept.append(_KeptInputs(inputs, replay, wants[:n_in], len(outputs)))
        return after, wants_after

    def _check_hooks(self) -> None:
        """Raises ValueError if a hook waits for a gradient that comes in parts, or by another way.

        A weight that several blocks use gets it in parts; one of a reversible block is assigned it.
        """
        for p, n in self._counts.items():
            hooked, accumulated = _torch_private.gradient_hooks(p)
            if (n > 1 and hooked) or ((n > 1 or p in self._assigned) and accumulated):
                raise ValueError(
                    f"A weight of shape {tuple(p.shape)} has gradient hooks, and with "
                    f"use_memory_efficient_trainer they would not see its whole gradient: {n} "
                    f"blocks use it, {'some' if p in self._assigned else 'none'} of them "
                    f"reversible. Remove the hooks, or leave use_memory_efficient_trainer out."
                )

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

    def __init__(self, inputs: Stack, replay: Replay, wants: Stack, n_out: int):
        self._inputs = inputs
        self._replay = replay
        self._wants = wants
        self._n_out = n_out

    def go_back(self, block: tl.Layer, values: Stack, grads: Stack) -> tuple[Stack, Stack]:
        """Adds up the gradients of the block's weights; returns those of the stack before it."""
        above, below = grads[: self._n_out], grads[self._n_out :]
        inputs = _tracked(self._inputs, self._wants)
        if any(g is not None for g in _nest.leaves(above)):
            with torch.enable_grad():
                outputs = items_of(self._replay(packed(inputs)))
            pairs = [
                (x, g)
                for x, g in zip(_nest.leaves(outputs), _nest.leaves(above), strict=True)
                if g is not None and can_have_grad(x) and x.requires_grad
            ]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        return (), (*_grads_of(inputs), *below)


class _KeptRun:
    """What a reversible layer leaves behind: the stack after it, if nobody gives that back."""

    def __init__(self, outputs: Stack, replay: Replay, wants: Stack):
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


@contextlib.contextmanager
def _explained(name: str) -> Generator[None]:
    """Says of two errors of torch what they mean for blocks."""
    try:
        yield
    except Exception as error:
        if "a leaf Variable that requires grad" in str(error):
            raise ValueError(_WRITES.format(name)) from error
        if not torch.is_grad_enabled() and "does not require grad" in str(error):
            raise ValueError(_DIFFERENTIATES.format(name)) from error
        raise


def _runs_backwards(block: tl.Layer, inputs: Stack) -> bool:
    """Tells whether a block gives back its inputs.

    It knows nothing of what hooks do, nor of gradients in nests.
    """
    return (
        can_reverse(block)
        and not has_hooks(block)
        and all(x is None or isinstance(x, torch.Tensor) for x in inputs)
    )


def _check_packing(name: str, x: Any) -> None:
    """Raises TypeError if there are tensors in something that no gradients are looked for in."""
    if isinstance(x, (tuple, list)) or type(x) in (dict, collections.OrderedDict):
        for item in x.values() if isinstance(x, dict) else x:
            _check_packing(name, item)
        return
    inside = {} if isinstance(x, torch.Tensor) else getattr(x, "__dict__", {})
    if isinstance(x, dict) or any(isinstance(value, torch.Tensor) for value in inside.values()):
        raise TypeError(
            f"With use_memory_efficient_trainer gradients flow through tensors, and tuples, lists "
            f"and dicts of them; {name} gives a {type(x).__name__}, which has some inside. Return "
            f"them in one of these."
        )


def _versions(items: Stack) -> list[int]:
    """Returns how often each tensor was written into."""
    tensors = (x for x in _nest.leaves(items) if isinstance(x, torch.Tensor))
    return [_torch_private.version(x) for x in tensors]


def _tracked(items: Stack, wants: Stack) -> Stack:
    """Returns the items, what needs gradients in them as leaves that will have them."""
    pairs = zip(_nest.leaves(items), _nest.leaves(wants), strict=True)
    flat = [x.detach().requires_grad_() if wanted else x for x, wanted in pairs]
    tracked: Stack = _nest.rebuild(items, flat)
    return tracked


def _grads_of(items: Stack) -> Stack:
    """Returns the gradients of tracked items, packed alike; None where there is none."""
    grads: Stack = _nest.map_leaves(
        lambda x: x.grad if isinstance(x, torch.Tensor) and x.requires_grad else None, items
    )
    return grads
