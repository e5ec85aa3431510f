"""What the rules without a fused kernel share: one step over bundles of like parameters.

This room knows which parameters go through a step together, and in which precision; how far a
weight moves is the rule's.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from trax_torch import _distributed
from trax_torch._torch_private import foreach
from trax_torch.optimizers._clipping import loss_and_clip_

Tensors: TypeAlias = list[torch.Tensor] | tuple[torch.Tensor, ...]
Member: TypeAlias = tuple[torch.Tensor, torch.Tensor, dict[str, Any]]  # weight, gradient, slots

# A bundle's temporaries are passed over several times. On a CPU they should stay in its cache: a
# bundle of all parameters is several times slower than a plain loop. Elsewhere launches cost more
# than memory, and the bound only keeps the temporaries small beside a large model.
_ELEMENTS_ON_CPU = 2**18
_ELEMENTS_ELSEWHERE = 2**26


class BoundRule(torch.optim.Optimizer):
    """An optimizer whose rule is written once for lists of tensors; subclasses give the rule.

    A parameter's slots are allocated when it is added, and keep their types for good; which there
    are depends on its number of axes alone. What is not a tensor among them is a number; `step`,
    where a rule has it, counts the steps taken.

    Args:
      params: the parameters.
      learning_rate: the rate, kept in each group's `lr` as a Python float.
      **numbers: the rule's other numbers, kept in each group.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], learning_rate: float, **numbers: Any):
        super().__init__(params, {"lr": learning_rate, **numbers})

    looks_across = False  # whether the rule for one entry of a weight looks at its others

    def make_slots(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Returns a parameter's slots as they are before the first step."""
        raise TypeError(f"{type(self).__name__} has no rule; a bound rule must override this.")

    def update_(
        self,
        group: dict[str, Any],
        weights: Tensors,
        grads: Tensors,
        slots: dict[str, Tensors],
        step: int,
    ) -> None:
        """Changes weights and slots in place, and leaves the gradients as they are.

        Args:
          group: the rule's numbers.
          weights: tensors of one device, and of one type, which is float32 or wider.
          grads: one of the same shape and type for each.
          slots: for each name one tensor of that type per weight.
          step: the number of this step, from 1; 1 for ever where the slots hold no `step`.
        """
        raise TypeError(f"{type(self).__name__} has no rule; a bound rule must override this.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and allocates their slots."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            self.state[p] = self.make_slots(p.detach(), group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step; parameters without a gradient stay, and so do their slots."""
        loss = loss_and_clip_(self, closure)
        for group in self.param_groups:
            for bundle in self._bundles(group["params"]):
                self._step_of(group, bundle)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies saved slots into this optimizer's own.

        torch's own method would give every slot the parameter's type, and so round what a rule
        keeps in a wider one; and it would share the storage of what it is given.

        Raises:
          ValueError: if the slots or groups are not those of these parameters; nothing has
            changed then.
        """
        own = dict(self.state)
        saved = state_dict["state"]
        places = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        pairs = [(own[p], saved.get(i, {})) for i, p in zip(places, params, strict=False)]
        for i, (mine, theirs) in zip(places, pairs, strict=False):
            if _shapes(mine) != _shapes(theirs):
                raise ValueError(
                    f"{type(self).__name__} keeps the slots {_shapes(mine)} for parameter {i}, "
                    f"but the state_dict holds {_shapes(theirs)}. Bind the recipe that it was "
                    f"saved with to the same parameters."
                )
        super().load_state_dict({**state_dict, "state": {}})
        with torch.no_grad():
            for mine, theirs in pairs:
                for name, value in theirs.items():
                    if not isinstance(value, torch.Tensor):
                        mine[name] = value
                    elif _distributed.is_freed(mine[name]):  # so that there was room for the other
                        mine[name] = _distributed.shard_like(value, mine[name])
                    else:
                        mine[name].copy_(value)
        self.state.update(own)

    def _bundles(self, params: list[torch.Tensor]) -> Iterator[list[Member]]:
        """Parts the parameters that have gradients into lists that one call can take."""
        bundles: dict[Any, list[Member]] = {}
        sizes: dict[Any, int] = {}
        for p in params:
            grad, n = p.grad, p.numel()
            if grad is None or not n:
                continue
            if grad.is_sparse:
                raise TypeError(
                    f"{type(self).__name__} takes dense gradients; a parameter of shape "
                    f"{tuple(p.shape)} has a sparse one. Build its Embedding with sparse=False."
                )
            slots = self.state[p]
            # The number of axes decides which slots there are.
            kind = (p.device, p.dtype, _distributed.is_shard(p))
            key = (*kind, grad.dtype, p.dim(), slots.get("step"))
            limit = _ELEMENTS_ON_CPU if p.is_cpu else _ELEMENTS_ELSEWHERE
            if key in bundles and sizes[key] + n > limit:
                yield bundles.pop(key)
            if key in bundles:
                bundles[key].append((p, grad, slots))
                sizes[key] += n
            else:
                bundles[key], sizes[key] = [(p, grad, slots)], n
        yield from bundles.values()

    def _step_of(self, group: dict[str, Any], bundle: list[Member]) -> None:
        params, grads, states = zip(*bundle, strict=True)
        names = [name for name, slot in states[0].items() if isinstance(slot, torch.Tensor)]
        stored = {name: [state[name] for state in states] for name in names}
        if self.looks_across and _distributed.is_shard(params[0]):
            self._step_of_shards(group, params, grads, states, stored)
            return
        # Half precision is left at the start and met again at the end, so that a step rounds once.
        wide = torch.promote_types(params[0].dtype, torch.float32)
        slots = {name: _in_type(wide, tensors) for name, tensors in stored.items()}
        weights, step = _in_type(wide, params), states[0].get("step", 0) + 1

        self.update_(group, weights, _in_type(wide, grads), slots, step)

        _put_back(params, weights)
        for name in names:
            _put_back(stored[name], slots[name])
        if "step" in states[0]:
            for state in states:
                state["step"] = step

    def _step_of_shards(
        self,
        group: dict[str, Any],
        params: Tensors,
        grads: Tensors,
        states: Sequence[dict[str, Any]],
        stored: dict[str, list[torch.Tensor]],
    ) -> None:
        """Takes the step of weights of which each rank holds a part: one whole weight at a time."""
        for i, (p, grad, state) in enumerate(zip(params, grads, states, strict=True)):
            twin = _distributed.whole(p).detach().clone()
            slots = {
                name: _distributed.whole(tensors[i]).clone() for name, tensors in stored.items()
            }
            self._step_of(group, [(twin, _distributed.whole(grad), {**state, **slots})])
            p.copy_(_distributed.shard_like(twin, p))
            for name, slot in slots.items():
                state[name].copy_(_distributed.shard_like(slot, state[name]))
            if "step" in state:
                state["step"] += 1


@torch.no_grad()
def shrink_(params: Iterable[torch.Tensor], rate: float, found_inf: torch.Tensor | None) -> None:
    """Multiplies the parameters that have gradients by `1 - rate`.

    Args:
      params: the parameters.
      rate: the share that goes.
      found_inf: 1 element on the parameters' device; not 0 leaves everything as it is, as the
        fused kernels do; None is 0.
    """
    weights = [_distributed.local(p.detach()) for p in params if p.grad is not None]
    if not rate or not weights:
        return
    if found_inf is None:
        foreach.mul_(weights, 1 - rate)
    else:
        foreach.mul_(weights, torch.where(found_inf.reshape(()) > 0, 1.0, 1 - rate))


def _in_type(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    """Returns the tensors, which share one type, or copies where that is not `dtype`."""
    if tensors[0].dtype == dtype:
        return tensors
    copies = [torch.empty_like(t, dtype=dtype) for t in tensors]
    foreach.copy_(copies, tensors)
    return copies


def _put_back(stored: Tensors, used: Tensors) -> None:
    if used is not stored:
        foreach.copy_(stored, used)


def _shapes(slots: dict[str, Any]) -> dict[str, Any]:
    return {
        k: tuple(v.shape) if isinstance(v, torch.Tensor) else "number" for k, v in slots.items()
    }
