"""Which weights ranks bring together at a time: a module's, found by size and by repetition.

The fewer weights are whole at a time, the less memory a step takes. What may be a group, a pass
over the sample batch shows; this room never cuts a weight.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _nest, _torch_private
from trax_torch import layers as tl

_REPEATED = 1 / 4  # the largest share of a model that a repeated block is one group with,
_LARGEST = 1 / 16  # that any other module is, where it can be divided,
_LEAST = 1 / 1000  # and the least that is worth a group of its own


@dataclass(frozen=True)
class ShardGroups:
    """What of a module is brought together at a time.

    Attributes:
      modules: the weights of each are, the inner ones first, while it computes; the rest is for all
        of the time.
      whole: weights that each rank keeps whole.
      parts_ways: whether ranks may use other weights than each other.
    """

    modules: list[nn.Module]
    whole: list[nn.Parameter]
    parts_ways: bool = False


def find(
    root: nn.Module,
    passes: Sequence[Callable[[], Any]],
    world: _distributed.World,
    parts_ways: bool = False,
) -> ShardGroups:
    """Returns the `ShardGroups` of a module, the same on all ranks.

    A block that is repeated, wherever it lies, is a group, and so is what is small beside the
    model, or cannot be divided. A module is none if its weights are used while it does not compute,
    as in `F.linear(h, embedding.weight)`; if it is no more than a list; if others hold its weights,
    too; if autograd would not see its outputs; or if what it gives out is changed in place.

    Args:
      root: the module.
      passes: each computes with it.
      world: the ranks.
      parts_ways: whether they may go different ways at a step; all is one group then, since a
        module that one rank leaves out would have the others wait.

    Raises:
      ValueError: if weights cannot be cut into parts, with the reason.
    """
    _refuse_sparse(root)
    seen = _Seen(root)
    with world.together(), seen.watching() as is_known:
        for run in passes:
            run()
        seen.refuse_outside()
    modules = [m for m in root.modules() if m is not root]
    hindered = [float(not is_known or seen.hinders(m)) for m in modules]
    hindered = world.sum(hindered)  # a rank's pass may go another way
    free = {id(m) for m, n in zip(modules, hindered, strict=True) if not n}
    used = world.sum([float(id(p) in seen.used) for p in root.parameters()])
    parts_ways = parts_ways or any(0 < n < world.size for n in used)
    free = set() if parts_ways else free
    groups = _chosen(root, free, _LEAST)
    if _size(_left(root, groups)) > _REPEATED * _size(root.parameters()):
        groups = _chosen(root, free, 0.0)
    found = ShardGroups(groups, _kept_whole(root, groups), parts_ways)
    (n_opaque,) = world.sum([float(seen.opaque is not None)])
    if n_opaque and len(found.whole) < len(_left(root, groups)):
        raise ValueError(
            f"strategy='fsdp' brings weights together again for gradients by what the model gives, "
            f"and torch finds no tensors in its {seen.opaque or 'outputs'}. Have the model give "
            f"tensors in a tuple, list, dict or dataclass."
        )
    return found


def alone(root: nn.Module) -> ShardGroups:
    """Returns the groups of a module that is brought together as a whole."""
    return ShardGroups([], _kept_whole(root, []))


def innermost(root: nn.Module, groups: Sequence[nn.Module]) -> list[tuple[nn.Module, Any]]:
    """Returns the groups that have none inside, the root where there are none, and their forms."""
    ids = {id(group) for group in groups}
    inner = [g for g in groups if not any(id(m) in ids for m in g.modules() if m is not g)]
    return [(module, _form(module)) for module in inner or [root]]


def repeated(root: nn.Module) -> list[nn.Module]:
    """Returns the outermost blocks that are repeated and made of modules, the lists left out."""
    counts = collections.Counter(_form(m) for m in root.modules())
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        children = list(module.children())
        if isinstance(module, tl.ReversibleLayer):  # computes again by itself
            return
        is_list = type(module).forward is nn.Module.forward
        is_block = children and not is_list and module is not root
        if is_block and counts[_form(module)] > 1 and _size(module.parameters()):
            found.append(module)
            return
        for child in children:
            visit(child)

    visit(root)
    return list(dict.fromkeys(found))


class _Seen:
    """Notes which modules compute while a weight is used.

    Attributes:
      opaque: the type of what the root gives, if no hook reaches tensors in it.
      used: the ids of the weights that are used.
    """

    def __init__(self, root: nn.Module):
        self._root = root
        self.opaque: str | None = None
        self.used: set[int] = set()
        self._inside = {id(m): {id(x) for x in m.modules()} for m in root.modules()}
        self._holders = collections.defaultdict(list)  # of a weight: all modules it lies in
        self._hindered: set[int] = set()
        self._called: set[int] = set()
        self._running: list[int] = []
        self._outside: dict[str, None] = {}  # weights that are used before the root computes
        self._outputs: list[tuple[int, torch.Tensor, int]] = []
        self._by_storage = collections.defaultdict(list)
        self._names = {id(p): name for name, p in root.named_parameters()}
        owners = collections.defaultdict(list)
        for module in root.modules():
            for p in module._parameters.values():
                if p is not None:
                    owners[id(p)].append(id(module))
            for p in module.parameters():
                self._holders[id(p)].append(id(module))
        for p in root.parameters():
            if p.numel():
                self._by_storage[p.untyped_storage().data_ptr()].append(id(p))
            for holder in self._holders[id(p)]:
                if not self._inside[holder].issuperset(owners[id(p)]):
                    self._hindered.add(holder)
        for module in root.modules():
            if isinstance(module, tl.ReversibleLayer):  # hooks inside have it keep activations
                self._hindered |= self._inside[id(module)] - {id(module)}

    @contextlib.contextmanager
    def watching(self) -> Generator[bool]:
        """Looks at what its block computes; gives whether anything can be seen."""
        handles = []
        for module in self._root.modules():
            handles.append(module.register_forward_pre_hook(self._begins, prepend=True))
            handles.append(module.register_forward_hook(self._ends, always_call=True))
        try:
            with _torch_private.operands_seen(self._used) as is_known:
                yield is_known
        finally:
            for handle in handles:
                handle.remove()

    def _begins(self, module: nn.Module, args: Any) -> None:
        self._called.add(id(module))
        self._running.append(id(module))

    def _ends(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self._running.pop()
        for x in _nest.leaves(outputs):
            if isinstance(x, torch.Tensor):
                if x._base is not None and module is not self._root:
                    self._outputs.append((id(module), x, _torch_private.version(x)))
            elif hasattr(x, "__dict__") and not callable(x):  # with tensors that no hook reaches
                self._hindered.add(id(module))
                if module is self._root:
                    self.opaque = type(x).__qualname__
        if not self._running:
            for holder, x, version in self._outputs:
                if _torch_private.version(x) != version:
                    self._hindered.add(holder)
            self._outputs.clear()

    def _used(self, tensor: torch.Tensor) -> None:
        for p in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            self.used.add(p)
            for holder in self._holders[p]:
                if holder not in self._running:
                    self._hindered.add(holder)
            if id(self._root) not in self._running and id(self._root) not in self._called:
                self._outside[self._names[p]] = None

    def hinders(self, module: nn.Module) -> bool:
        """Tells whether a module is no group."""
        return id(module) in self._hindered or id(module) not in self._called

    def refuse_outside(self) -> None:
        """Raises ValueError if weights are used where nobody brings them together."""
        if self._outside:
            raise ValueError(
                f"strategy='fsdp' brings weights together while the model computes, and "
                f"{', '.join([*self._outside][:3])} are used before it is called. Use weights in "
                f"the model's forward, or after it was called."
            )


def _chosen(root: nn.Module, free: set[int], least: float) -> list[nn.Module]:
    """Returns the groups, the inner ones first."""
    total = _size(root.parameters())
    forms = {id(m): _form(m) for m in root.modules()}
    counts = collections.Counter(forms.values())
    groups: list[nn.Module] = []
    visited = {id(root)}

    def visit(module: nn.Module) -> None:
        if id(module) in visited:
            return
        visited.add(id(module))
        size = _size(module.parameters())
        if size == 0 or size < least * total:
            return
        limit = _REPEATED if counts[forms[id(module)]] > 1 else _LARGEST
        can_divide = any(_size(child.parameters()) for child in module.children())
        if id(module) in free and (size <= limit * total or not can_divide):
            groups.append(module)
            return
        for child in module.children():
            visit(child)
        if id(module) in free and _size(_left(module, groups)) > _LARGEST * total:
            groups.append(module)

    for child in root.children():
        visit(child)
    return groups


def _form(module: nn.Module) -> Any:
    """Returns what blocks that are alike have in common."""
    return type(module), tuple((n, p.shape, p.dtype) for n, p in module.named_parameters())


def _left(module: nn.Module, groups: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Returns the weights of a module that are in none of the groups."""
    taken = {id(p) for group in groups for p in group.parameters()}
    return [p for p in module.parameters() if id(p) not in taken]


def _size(params: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.itemsize for p in params)


def _kept_whole(root: nn.Module, groups: list[nn.Module]) -> list[nn.Parameter]:
    """Returns weights without a first axis, or without elements, or of another type than most.

    Gradients of a group travel together, and are of one type.
    """
    found: list[nn.Parameter] = []
    taken: list[nn.Module] = []
    for group in (*groups, root):
        params = _left(group, taken)
        taken.append(group)
        sizes: dict[torch.dtype, int] = collections.Counter()
        for p in params:
            sizes[p.dtype] += p.numel() * p.requires_grad
        main = max(sizes, key=lambda dtype: sizes[dtype], default=None)
        for p in params:
            if p.ndim == 0 or not p.numel() or (p.requires_grad and p.dtype != main):
                found.append(p)
    return found


def _refuse_sparse(root: nn.Module) -> None:
    sparse = [n for n, m in root.named_modules() if getattr(m, "sparse", False) is True]
    if sparse:
        raise ValueError(
            f"strategy='fsdp' adds up whole gradients, and {sparse[0]} has sparse ones. Build it "
            f"with sparse=False."
        )
