"""What there is to count in a batch, and how a batch is changed so that less of it counts."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trax_torch import _nest, optimizers
from trax_torch import layers as tl

_LIKELIHOODS = F.cross_entropy, F.nll_loss

ROWS = optimizers.Count("a mean over rows")
SUM = optimizers.Count("a sum over rows", is_sum=True)

_IGNORED = -100  # what PyTorch's losses ignore by default
_NAMES = ("ignore_index", "padding_idx", "pad_token_id", "pad_id", "label_pad_token_id")
_N_VALUES = 12
_Leaves = dict[str, Any]
_Fillings = tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...]


@dataclass(frozen=True)
class _Items:
    """Something that counts item by item."""

    text: str
    of: Callable[[_Leaves], torch.Tensor]
    fillings: _Fillings
    dims: int
    is_sum: bool = False


@dataclass(frozen=True)
class Change:
    """How items of a batch are made not to count.

    Attributes:
      name: of the item; see `_nest.named_leaves`.
      drop: what becomes of a piece of it.
      is_guess: whether the batch may never be like that, so that it may be nonsense to the loss.
      caveat: what is to be said of a guess that is none.
    """

    name: str
    drop: Callable[[torch.Tensor], torch.Tensor]
    is_guess: bool = False
    caveat: str = ""

    def batches(self, batch: Any, n_rows: int) -> Iterator[Any]:
        """Yields the batch with half of its first rows dropped, and the very first one wholly.

        The next one, if that is no number, has no row that is dropped wholly.
        """
        named = _nest.named_leaves(batch)
        for wholly in (True, False):
            item = named[self.name].clone()
            if item.dim() > 1:
                middle = item.shape[1] - item.shape[1] // 2
                item[:n_rows, middle:] = self.drop(item[:n_rows, middle:])
            if wholly:
                item[0] = self.drop(item[0])
            if wholly or item.dim() > 1:
                yield _nest.rebuild(batch, list({**named, self.name: item}.values()))


def filled_up(item: torch.Tensor) -> torch.Tensor:
    """Returns an item in which all counts: targets without ignored ones, a mask of ones."""
    if _is_whole(item):
        counts = item != _IGNORED
        value = int(item[counts][0]) if bool(counts.any()) else 0
        item = item.where(counts, value)
    if item.dtype == torch.bool or bool(((item == 0) | (item == 1)).all()):
        return torch.ones_like(item)
    return item


@dataclass(frozen=True)
class Clues:
    """What the code of a loss gives away of what it counts.

    Attributes:
      values: what may mark an item that does not count.
      brought: those that a batch may have which does not show them yet.
      ignored: values, and the targets among which cross-entropies ignore them.
      weights: of classes.
    """

    values: list[int]
    brought: list[int]
    ignored: list[tuple[int, torch.Tensor]]
    weights: list[torch.Tensor]


class _Listening(TorchFunctionMode):
    """Notes what cross-entropies are told to ignore, and their class weights."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored: list[tuple[int, torch.Tensor]] = []
        self.weights: list[torch.Tensor] = []
        self.checks_targets = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(word in getattr(func, "__name__", "") for word in ("ctc", "rnnt", "transducer")):
            self.checks_targets = False  # PyTorch's CTC reads past its memory for a target of -1
        if func in _LIKELIHOODS:
            bound = inspect.signature(func).bind(*args, **kwargs).arguments
            value, targets = bound.get("ignore_index", _IGNORED), bound["target"].detach()
            self.ignored.append((value, targets[targets != value].unique()))
            if bound.get("weight") is not None:
                self.weights.append(bound["weight"].detach())
        return func(*args, **kwargs)


def clues(both: tl.Layer, batch: Any) -> Clues:
    """Returns what the code of a loss gives away, when it is looked at and when it runs.

    Args:
      both: model and loss in series, in eval mode.
      batch: tensors on the device.
    """
    model, loss = both.sublayers
    with _Listening() as heard, contextlib.suppress(Exception):
        both(batch)
    found = [value for value, _ in heard.ignored]
    for module in both.modules():
        owners = [module, getattr(module, "config", None)]
        found += [getattr(o, name) for o in owners for name in _NAMES if hasattr(o, name)]
    of_loss, of_model = _held(loss), []
    if loss.n_in == model.n_out:  # the model computes it
        of_model = _held(model, of_all=False)
    brought = _distinct([*found, *of_loss, *(x for x in of_model if type(x) is int and x < 0)])
    weights = [x for x in (*of_loss, *of_model) if isinstance(x, torch.Tensor)]
    weights = [w for w in (*heard.weights, *weights) if w.dim() == 1 and w.is_floating_point()]
    values = _distinct([_IGNORED, *brought, 0, -1, *of_model])
    brought = brought[:_N_VALUES] if heard.checks_targets else []
    return Clues(values[:_N_VALUES], brought, heard.ignored, weights)


def ignored(clues: Clues) -> list[int]:
    """Returns what marks labels that a loss ignores, as far as it has been seen to."""
    return _distinct([_IGNORED, *(value for value, _ in clues.ignored)])


def _distinct(values: list[Any]) -> list[int]:
    axes = range(-9, -1)  # that code counts from behind, most likely
    return list(dict.fromkeys(x for x in values if type(x) is int and x not in axes))


def counts(clues: Clues, batch: Any) -> list[optimizers.Count]:
    """Returns what a loss may be a mean over, in the order in which it is preferred.

    It depends on code, and on the forms of a batch, alone, so that all ranks have the same.
    """
    named = _nest.named_leaves(_nest.to_tensors(batch))
    tensors = {k: x for k, x in named.items() if isinstance(x, torch.Tensor) and x.dim()}
    plain = [items for name, x in tensors.items() for items in _of_item(name, x, clues.values)]
    weighed = list(_by_classes(clues, tensors))
    pairs = list(_pairs(plain))
    found = [ROWS]
    for items in (*plain, *weighed, *pairs):
        found += list(_variants(items))
    return [*found, SUM]


def changes(clues: Clues, batch: Any) -> list[Change]:
    """Returns what may be done to a batch so that less of it counts.

    On an accelerator no class or token is brought in that the batch, or a layer's setting, does not
    show: one that is out of range ends the process there, and is an error on a CPU.
    """
    found: list[Change] = []
    for name, item in _nest.named_leaves(batch).items():
        if not isinstance(item, torch.Tensor) or not item.dim():
            continue
        if item.dtype != torch.bool:
            found += _marked(clues, name, item)
        is_mask = bool(((item == 0) | (item == 1)).all())
        if is_mask or (item.is_floating_point() and bool((item >= 0).all())):  # or weights
            found.append(Change(name, torch.zeros_like))
        elif _is_whole(item) and item.dim() == 1:  # lengths
            found.append(Change(name, lambda x: (x // 2).clamp(min=min(1, int(x.min())))))
        if item.is_floating_point():
            found.append(Change(name, lambda x: torch.full_like(x, torch.nan)))
    return found


def _marked(clues: Clues, name: str, item: torch.Tensor) -> Iterator[Change]:
    """Yields how an item is marked not to count, by values that it has or may have."""
    for value in clues.values:
        is_there = bool((item == value).any())
        is_harmless = item.is_floating_point() and value < 0  # it cannot be an index
        is_known = value in clues.brought and item.device.type == "cpu"
        if is_there or is_harmless or is_known:
            is_target = any(
                value == ignored and bool(torch.isin(targets, item).all())
                for ignored, targets in clues.ignored
            )
            mark = functools.partial(torch.full_like, fill_value=value)
            caveat = f"as long as no {_said(name)} is {value}" if is_target else ""
            yield Change(name, mark, not is_there, caveat)


def untried(batch: Any, fitting: list[str]) -> list[str]:
    """Returns what is to be preferred on an accelerator, where ignored targets are not brought in.

    It is the items that are not ignored, if none of the batch is: as good as rows till one is.
    """
    named = {k: x for k, x in _nest.named_leaves(batch).items() if may_be_classes(x)}
    if not named:
        return []
    name, item = list(named.items())[-1]
    text = f"a mean over items of {_said(name)} that are not {_IGNORED}"
    is_safe = item.device.type == "cpu" or bool((item == _IGNORED).any())
    return [] if is_safe or text not in fitting else [text]


def may_be_classes(x: Any) -> bool:
    """Tells whether an item of a batch may be classes: a tensor of integers."""
    return isinstance(x, torch.Tensor) and x.dim() > 0 and _is_whole(x)


def _of_item(name: str, item: torch.Tensor, values: list[int]) -> Iterator[_Items]:
    """Yields what counts item by item in one item of a batch."""
    if item.dtype != torch.bool:
        for value in values if _is_whole(item) else [x for x in values if x < 0]:
            filling = ((name, functools.partial(torch.full_like, fill_value=int(value == 0))),)
            said = f"items of {_said(name)} that are not {value}"
            yield _Items(said, functools.partial(_not, name, value), filling, item.dim())
        zeros = ((name, torch.zeros_like),)
        said = f"items of {_said(name)} that are not negative"
        yield _Items(said, lambda named: named[name] >= 0, zeros, item.dim())
    ones = ((name, torch.ones_like),)
    yield _Items(f"the sum of {_said(name)}", lambda named: named[name], ones, item.dim(), True)
    if item.is_floating_point():
        zeros = ((name, torch.zeros_like),)
        said = f"items of {_said(name)} that are numbers"
        yield _Items(said, lambda named: ~named[name].isnan(), zeros, item.dim())


def _not(name: str, value: int, named: _Leaves) -> torch.Tensor:
    return named[name] != value  # type: ignore[no-any-return]


def _by_classes(clues: Clues, tensors: dict[str, torch.Tensor]) -> Iterator[_Items]:
    """Yields the weights of classes that a loss holds, item by item."""
    for i, weight in enumerate(clues.weights):
        for name, item in tensors.items():
            if not _is_whole(item) or item.dtype == torch.bool:
                continue
            for value in clues.values:

                def of(
                    named: _Leaves, name: str = name, value: int = value, w: torch.Tensor = weight
                ) -> torch.Tensor:
                    x = named[name]
                    where = (x != value) & (x >= 0) & (x < len(w))
                    return w.to(x.device)[x.where(where, 0).long()].where(where, 0.0)

                filling = ((name, functools.partial(torch.full_like, fill_value=int(value == 0))),)
                said = f"items of {_said(name)} that are not {value}, by class weights {i}"
                yield _Items(said, of, filling, item.dim())


def _pairs(plain: list[_Items]) -> Iterator[_Items]:
    """Yields what two items of a batch have to say together: targets under a mask, say."""
    for i, one in enumerate(plain):
        for other in plain[i + 1 :]:
            if one.fillings[0][0] == other.fillings[0][0]:
                continue
            sums = [items for items in (one, other) if items.is_sum]
            if sums and (one.dims == other.dims or 1 in (one.dims, other.dims)):
                yield _Items(
                    f"{one.text}, by {other.text}",
                    functools.partial(_product, one, other),
                    one.fillings + other.fillings,
                    max(one.dims, other.dims),
                )


def _product(one: _Items, other: _Items, named: _Leaves) -> torch.Tensor:
    x, y = one.of(named), other.of(named)
    n = max(x.dim(), y.dim())
    return x.reshape(*x.shape, *[1] * (n - x.dim())) * y.reshape(*y.shape, *[1] * (n - y.dim()))


def _variants(items: _Items) -> Iterator[optimizers.Count]:
    """Yields counts of items: of all, of all but the first or last, and of rows that have any."""

    def count(text: str, change: Callable[[torch.Tensor], torch.Tensor]) -> optimizers.Count:
        return optimizers.Count(text, lambda named: change(items.of(named)), items.fillings)

    yield optimizers.Count(f"a mean over {items.text}", items.of, items.fillings)
    if items.dims > 1:
        yield count(f"a mean over {items.text}, but the first of each row", lambda x: x[:, 1:])
        yield count(f"a mean over {items.text}, but the last of each row", lambda x: x[:, :-1])
        yield count(
            f"a mean over rows that have any {items.text}", lambda x: (x != 0).flatten(1).any(1)
        )


def _held(layer: tl.Layer, of_all: bool = True) -> list[Any]:
    """Returns what the code of a layer has at hand: attributes, defaults, constants.

    Args:
      layer: a loss or a model.
      of_all: whether attributes are those of all modules in it, or of the outermost alone.
    """
    found: list[Any] = []
    modules = [m for m in layer.modules() if not isinstance(m, tl.Layer)]
    for module in modules if of_all else modules[:1]:
        found += [*vars(module).values(), *module.buffers(recurse=False)]
        for value in vars(module).values():
            found += _of_function(value)
    for forward in dict.fromkeys(type(module).forward for module in modules):
        found += _of_function(forward)
    for each in layer.modules():
        if isinstance(each, tl.Layer):  # of which one may be a subclass's compute_loss
            found += _of_function(getattr(each, "fn", None))
            found += _of_function(getattr(each, "_compute", None))
    return found


def _of_function(f: Any, depth: int = 2) -> list[Any]:
    """Returns what a function, and those of its own module that it calls, have at hand."""
    found: list[Any] = []
    while isinstance(f, functools.partial):
        found += [*f.args, *f.keywords.values()]
        f = f.func
    f = getattr(f, "__func__", f)
    if not inspect.isfunction(f):
        return found
    found += [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    found += [cell.cell_contents for cell in f.__closure__ or () if _is_filled(cell)]
    named = [f.__globals__[name] for name in f.__code__.co_names if name in f.__globals__]
    if depth:
        for inner in (*found, *named):
            if getattr(inner, "__module__", None) == f.__module__:
                found += _of_function(inner, depth - 1)
    return [*found, *named, *f.__code__.co_consts]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_whole(item: torch.Tensor) -> bool:
    return not item.is_floating_point() and not item.is_complex() and item.dtype != torch.bool


def _said(name: str) -> str:
    return f"item {name}" if name[:1].isdigit() else repr(name)
