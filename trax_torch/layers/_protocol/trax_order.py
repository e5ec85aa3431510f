"""A module's weights and state in Trax's order: trees of tensors <-> tensors by name."""

from typing import Any

import torch
from torch import nn

from trax_torch import _nest
from trax_torch.layers._protocol import readable, trees


class InTraxOrder(nn.Module):
    """A module whose weights and state are nested tuples, as in Trax.

    A layer whose tensors PyTorch keeps in another layout overrides `_own_tree` and `_own_named`.
    """

    # Nests of attribute names that say how weights and state are laid out in Trax's order; None
    # where every parameter or buffer counts, in order of registration.
    _weight_names: Any = None
    _state_names: Any = None

    _name: str
    _order: tuple[str, ...]  # names of the sublayers; a shared one occurs twice
    _memory: Any  # what predict mode remembers; None in other modes

    @property
    def sublayers(self) -> tuple[Any, ...]:
        """The layers it is made of, in order; a shared one occurs as often as it is used."""
        if self._order:
            return tuple(self._modules[name] for name in self._order)
        inside = dict.fromkeys(self._modules.values())  # each once, as in `children`
        return tuple(m for m in inside if isinstance(m, InTraxOrder))

    @property
    def weights(self) -> Any:
        """The weights as a nested tuple in Trax's order and shape; live, not copies.

        `()` stands for none. Where a layer occurs again, `GET_WEIGHTS_FROM_CACHE` stands for its
        weights. numpy takes its tensors for arrays, `np.mean(layer.weights[0])`. Assigning such a
        tree copies the values in, or makes the parameters of a layer that has none yet.
        """
        return trees.map_tree(readable.readable, self._tree("weights", set()))

    @weights.setter
    def weights(self, tree: Any) -> None:
        self._fill("weights", tree)

    @property
    def state(self) -> Any:
        """What is remembered between calls and not trained, as a nested tuple; copies.

        Assigning such a tree copies the values in.
        """
        copies = trees.map_tree(torch.Tensor.clone, self._tree("state", set()))
        return trees.map_tree(readable.readable, copies)

    @state.setter
    def state(self, tree: Any) -> None:
        self._fill("state", tree)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weights", "state"):  # nn.Module would take a Parameter for a new entry
            object.__setattr__(self, name, value)
        elif name == "_sublayers":
            self._set_sublayers(value)
        else:
            super().__setattr__(name, value)

    def _set_sublayers(self, layers: Any) -> None:
        """Registers the sublayers, each instance once, as '0', '1', ..., like nn.Sequential."""
        names: dict[int, str] = {}
        for position, layer in enumerate(layers):
            names.setdefault(id(layer), str(position))
            if names[id(layer)] == str(position):
                self.add_module(str(position), layer)
        self._order = tuple(names[id(layer)] for layer in layers)

    def _makes_weights(self) -> bool:
        """Tells whether weights are made in Trax's way, once the shape of the input is known."""
        raise NotImplementedError

    def _tree(self, kind: str, seen: set[int]) -> Any:
        if self._identity() in seen:
            return trees.MARKERS[kind]
        seen.add(self._identity())
        if self._order:
            return tuple(layer._tree(kind, seen) for layer in self.sublayers)
        return self._own_tree(kind)

    def _identity(self) -> int:
        """What two layers have in common that are one: they share their tensors."""
        return id(self)

    def _own_tree(self, kind: str) -> Any:
        if kind == "state" and hasattr(self._memory, "tree"):
            return self._memory.tree()
        names = self._weight_names if kind == "weights" else self._state_names
        if names is None:
            return tuple(trees.tensors_of(self, kind).values())
        tensors = _nest.map_leaves(lambda name: getattr(self, name, None), names)
        return () if any(t is None for t in _nest.leaves(tensors)) else tensors

    def _named(self, kind: str, tree: Any) -> dict[str, Any]:
        """Returns the tensors of `tree` in the layouts PyTorch wants, by name below this layer."""
        if trees.is_marker(tree):
            return {}
        if not self._order:
            own = self._own_named(kind, tree)
            return {name: readable.plain(value) for name, value in own.items()}
        if not isinstance(tree, (tuple, list)) or len(tree) != len(self._order):
            came = len(tree) if isinstance(tree, (tuple, list)) else type(tree).__name__
            raise ValueError(
                f"{self._name} has {len(self._order)} sublayers, so its {kind} are a tuple of as "
                f"many items; got {came}. layer.{kind} shows the tree."
            )
        named: dict[str, Any] = {}
        for name, layer, subtree in zip(self._order, self.sublayers, tree, strict=True):
            for key, value in layer._named(kind, subtree).items():
                named.setdefault(f"{name}.{key}", value)
        return named

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "state" and hasattr(self._memory, "fill"):
            return {"_memory": list(_nest.leaves(tree))}
        names = self._weight_names if kind == "weights" else self._state_names
        if names is None:
            names = tuple(trees.tensors_of(self, kind))
            has_some = any(True for _ in _nest.leaves(tree))
            if not names and has_some and self._makes_weights():  # for the first time
                letter = kind[0]
                count = iter(range(1_000_000))
                names = (
                    _nest.map_leaves(lambda _: f"{letter}{next(count)}", tree)
                    if isinstance(tree, (tuple, list))
                    else letter
                )
                object.__setattr__(
                    self, "_weight_names" if kind == "weights" else "_state_names", names
                )
        keys, values = list(_nest.leaves(names)), list(_nest.leaves(tree))
        if not values and not list(_nest.leaves(self._own_tree(kind))):
            return {}  # neither has any
        return trees.expect_tensors(self, values, tuple(keys), f"{kind} of {len(keys)} tensors")

    def _set_own_state(self, attribute: str, value: Any) -> None:
        if attribute == "_memory":
            memory: Any = self._memory
            memory.fill(value)
        else:
            trees.set_buffer(self, attribute, value)

    def _fill(self, kind: str, tree: Any) -> None:
        named = self._named(kind, tree)
        owners = {name: trees.owner_of(self, name) for name in named}
        for name, value in named.items():  # a tree that does not fit fills nothing
            module, attribute = owners[name]
            # Who makes weights in Trax's way may give its state another shape; others may not.
            if kind == "weights" or getattr(type(module), "_state_names", None):
                trees.check_fits(module, attribute, value)
        for name, value in named.items():
            module, attribute = owners[name]
            if kind == "weights":
                trees.adopt(module, attribute, value)
            elif isinstance(module, InTraxOrder):
                module._set_own_state(attribute, value)
            else:
                trees.set_buffer(module, attribute, value)
