"""Update in backward: which weights may be updated as soon as their gradient came.

Autograd tells when a gradient is complete that comes through its graph. It knows nothing of weights
that are used beside the graph, and later on in the backward pass wanted as they were.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trax_torch import _nest

_WITHOUT_GRADIENTS = (torch.Tensor.detach, torch.Tensor.data.__get__)  # type: ignore[attr-defined]


def run_watched(
    run: Callable[[], torch.Tensor],
    weights: Iterable[nn.Parameter],
    left: list[tuple[str, torch.Tensor]],
) -> tuple[torch.Tensor, set[nn.Parameter]]:
    """Returns what `run` returns, and which of some weights it uses through autograd's graph alone.

    The others are used by `detach`, under `no_grad`, or in the forward pass of a function that has
    a backward pass within the backward pass, as a reentrant checkpoint has.

    Args:
      run: runs the forward pass.
      weights: on the device.
      left: what blocks before have left on themselves, by name; no gradient would come to it.

    Raises:
      ValueError: if it uses what was left.
    """
    with _Beside(weights) as beside:
        loss = run()
    for name, tensor in left:
        if id(tensor) in beside.used:
            raise ValueError(
                f"With use_memory_efficient_trainer gradients flow through what layers take and "
                f"give; the loss uses {name}, which a block left on itself. Return it beside the "
                f"block's output; or hold it in a buffer, if it needs no gradient."
            )
    return loss, beside.others()


class _Beside(TorchFunctionMode):
    """Notes weights that are used without gradients while it lasts, and all tensors used.

    Attributes:
      used: ids of tensors, which say something of those that are alive.
    """

    def __init__(self, weights: Iterable[nn.Parameter]):
        super().__init__()
        self.used: set[int] = set()
        self._weights = [(p, p.untyped_storage().data_ptr()) for p in weights]
        self._found: set[int] = set()  # by address, since a view of a weight may be used

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        is_beside = func in _WITHOUT_GRADIENTS or not torch.is_grad_enabled()
        for x in _nest.leaves((args, kwargs)):
            self.used.add(id(x))
            if is_beside and isinstance(x, torch.Tensor) and x.layout == torch.strided:
                self._found.add(x.untyped_storage().data_ptr())
        return func(*args, **kwargs)

    def others(self) -> set[nn.Parameter]:
        """Returns the weights that were not found."""
        return {p for p, address in self._weights if address not in self._found}
