"""What a model must be like to be decoded; checked before and during its first run."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl


def check_can_predict(layer: tl.Layer, n_beams: int) -> None:
    if isinstance(layer, tl.Wrapped) and not any(
        hasattr(m, "init_cache") for m in layer.module.modules()
    ):
        raise TypeError(
            f"{layer.name} cannot predict position by position: it offers no init_cache("
            f"batch_size, max_length) and reset_cache(). Offer them, or decode with "
            f"eval_mode=True if its output at a position tells of the token there, from those "
            f"before."
        )
    for module in filter(has_own_cache, layer.modules()):
        if n_beams > 1 and not hasattr(module, "reorder_cache"):
            raise TypeError(
                f"Beams go on from each other's past, but {type(module).__name__} has a cache and "
                f"offers no reorder_cache(parents). Offer it, as decoding.CachedModule says, or "
                f"search with n_beams=1."
            )


def has_own_cache(module: nn.Module) -> bool:
    """Tells whether a foreign module has a cache of its own, as `decoding.CachedModule` says."""
    return not isinstance(module, tl.Layer) and hasattr(module, "init_cache")


@contextlib.contextmanager
def hooked(
    modules: Iterable[nn.Module], kind: str, hook: Callable[..., Any], with_kwargs: bool = False
) -> Iterator[None]:
    """Has modules call a hook while the block runs; none is left, whatever breaks in.

    Args:
      modules: are called.
      kind: 'forward' or 'forward_pre'.
      hook: as torch calls it.
      with_kwargs: whether it takes keyword arguments, too.
    """
    modules, handles = list(modules), list[Any]()

    def remove() -> None:
        for handle in handles:
            handle.remove()
        for module in modules:  # one that was just registered has no handle yet
            _torch_private.remove_hook(module, hook)

    try:
        for module in modules:
            register = getattr(module, f"register_{kind}_hook")
            handles.append(register(hook, with_kwargs=with_kwargs))
        yield
    finally:
        try:
            remove()
        except BaseException:  # once more: something may break in here, too
            remove()
            raise


@contextlib.contextmanager
def ids_checked(layer: tl.Layer) -> Iterator[None]:
    """Lets a model's embeddings refuse ids that are not in their vocabulary, for a while.

    `Embedding` clips them, as Trax does: a mistake in a prompt would become another prompt.
    """
    embeddings = [m for m in layer.modules() if isinstance(m, (tl.Embedding, nn.Embedding))]
    with hooked(embeddings, "forward_pre", _check_ids, with_kwargs=True):
        yield


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


@contextlib.contextmanager
def logits_checked(
    layer: tl.Layer, batch: int, length: int, or_last: bool = False
) -> Iterator[None]:
    """Refuses what a model gives if it is no logits (batch, length, vocab), or of the last."""
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

    with hooked([layer], "forward", check):
        yield


@contextlib.contextmanager
def used_once(layer: tl.Layer) -> Iterator[None]:
    """Refuses a model that uses a layer with a memory twice: both uses would write into it."""
    counts: collections.Counter[Any] = collections.Counter()

    def count(module: Any, args: tuple[Any, ...]) -> None:
        if hasattr(module._memory, "reset"):  # as it has not while a Cache reads whole sequences
            counts[module] += 1

    layers = [m for m in layer.modules() if isinstance(m, tl.Layer) and hasattr(m._memory, "reset")]
    try:
        with hooked(layers, "forward_pre", count):
            yield
    finally:
        twice = [m.name for m, n in counts.items() if n > 1]
        if twice:
            raise TypeError(
                f"A layer remembers one past, but {twice[0]} is used {max(counts.values())} times "
                f"in {layer.name}. Build a layer for each use, or decode with eval_mode=True."
            )
