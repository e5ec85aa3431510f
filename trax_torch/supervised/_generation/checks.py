"""What a model must be like to be decoded; checked before and during its first run."""

import collections
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.layers._predict import Block, modules_in

# Held by who has hooks on a model for a while, and who must meet none: a program that is compiled.
hooks_lock = threading.RLock()


def check_can_predict(layer: tl.Layer, n_beams: int) -> None:
    if isinstance(layer, tl.Wrapped) and not any(
        hasattr(m, "init_cache") for m in modules_in(layer.module)
    ):
        raise TypeError(
            f"{layer.name} cannot predict position by position: it offers no init_cache("
            f"batch_size, max_length) and reset_cache(). Offer them, or decode with "
            f"eval_mode=True if its output at a position tells of the token there, from those "
            f"before."
        )
    for module in filter(has_own_cache, modules_in(layer)):
        if n_beams > 1 and not hasattr(module, "reorder_cache"):
            raise TypeError(
                f"Beams go on from each other's past, but {type(module).__name__} has a cache and "
                f"offers no reorder_cache(parents). Offer it, as decoding.CachedModule says, or "
                f"search with n_beams=1."
            )


def has_own_cache(module: nn.Module) -> bool:
    """Tells whether a foreign module has a cache of its own, as `decoding.CachedModule` says."""
    return not isinstance(module, tl.Layer) and hasattr(module, "init_cache")


class Hook(NamedTuple):
    """What a module is to call while a model runs.

    Attributes:
      module: calls it.
      kind: 'forward' or 'forward_pre'.
      call: as torch calls it.
      with_kwargs: whether it takes keyword arguments, too.
    """

    module: nn.Module
    kind: str
    call: Callable[..., Any]
    with_kwargs: bool = False


class Hooked(Block):
    """Has modules call hooks in this thread while its block runs; none is left.

    Args:
      hooks: what is to be called.
    """

    def __init__(self, hooks: Iterable[Hook]):
        self._hooks = list(hooks)
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        self._calls = [functools.partial(self._call, hook.call) for hook in self._hooks]

    def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        return call(*args) if threading.get_ident() == self._thread else None

    def _run(self) -> Generator[None, None, None]:
        with hooks_lock if self._hooks else contextlib.nullcontext():
            try:
                for hook, call in zip(self._hooks, self._calls, strict=True):
                    register = getattr(hook.module, f"register_{hook.kind}_hook")
                    self._handles.append(register(call, with_kwargs=hook.with_kwargs))
                yield
            finally:
                try:
                    self._remove()
                except BaseException:  # once more: something may break in here, too
                    self._remove()
                    raise

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for hook, call in zip(self._hooks, self._calls, strict=True):
            _torch_private.remove_hook(hook.module, call)  # just registered, it has no handle yet


def id_hooks(layer: tl.Layer) -> list[Hook]:
    """Returns hooks by which a model's embeddings refuse ids that are not in their vocabulary.

    `Embedding` clips them, as Trax does: a mistake in a prompt would become another prompt.
    """
    embeddings = [
        m
        for m in modules_in(layer)
        if isinstance(m, (tl.Embedding, nn.Embedding))
        and len(inspect.signature(m.forward).parameters) == 1  # others' may be of something else
    ]
    return [Hook(m, "forward_pre", _check_ids, with_kwargs=True) for m in embeddings]


def _check_ids(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ids, n = (*args, *kwargs.values())[0], module.weight.shape[0]
    if not ids.numel():
        return
    low, high = (int(t) for t in torch.aminmax(ids))
    if low < 0 or high >= n:
        raise ValueError(
            f"Token id {low if low < 0 else high} is outside the vocabulary of {n}, whose ids are "
            f"0 to {n - 1}. Encode inputs and start_id with the model's own vocabulary."
        )


def logits_hooks(layer: tl.Layer, batch: int, length: int, or_last: bool = False) -> list[Hook]:
    """Returns hooks that refuse what is no logits (batch, length, vocab), or of the last."""
    shapes = [(batch, length), (batch, 1 if or_last else length)]

    def check(module: Any, args: Any, outputs: Any) -> None:
        came = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
        if not isinstance(came, torch.Tensor):
            what = type(came).__name__
        elif came.dim() == 3 and came.is_floating_point() and tuple(came.shape[:2]) in shapes:
            return
        else:
            what = f"{came.dtype} of shape {tuple(came.shape)}"
        raise TypeError(
            f"Tokens are chosen by logits, floats of shape (batch, length, vocab), which is here "
            f"({batch}, {length}, vocab); {layer.name} gave {what}. Let it return them, or a tuple "
            f"that begins with them."
        )

    return [Hook(layer, "forward", check)]


class Uses:
    """Finds layers with a memory that a model uses twice: both uses would write into it.

    Args:
      layer: the model, in a run.

    Attributes:
      hooks: count the uses.
    """

    def __init__(self, layer: tl.Layer):
        self._layer = layer
        self._counts: collections.Counter[Any] = collections.Counter()
        layers = [m for m in modules_in(layer) if isinstance(m, tl.Layer)]
        remember = [m for m in layers if hasattr(m._memory, "reset")]
        self.hooks = [Hook(m, "forward_pre", self._count) for m in remember]

    def _count(self, module: Any, args: tuple[Any, ...]) -> None:
        if hasattr(module._memory, "reset"):  # as it has not while a Cache reads whole sequences
            self._counts[module] += 1

    def check(self) -> None:
        twice = [m.name for m, n in self._counts.items() if n > 1]
        if twice:
            raise TypeError(
                f"A layer remembers one past, but {twice[0]} is used "
                f"{max(self._counts.values())} times in {self._layer.name}. Build a layer for each "
                f"use, or decode with eval_mode=True."
            )
