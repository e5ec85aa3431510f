"""Which weights may be updated in the midst of a backward pass, as soon as their gradient came.

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
    run: Callable[[], torch.Tensor], weights: Iterable[nn.Parameter]
) -> tuple[torch.Tensor, set[nn.Parameter]]:
    """Returns what `run` returns, and which of some weights it uses through autograd's graph alone.

    The others are used by `detach`, under `no_grad`, or in the forward pass of a function that has
    a backward pass within the backward pass, as a reentrant checkpoint has.

    Args:
      run: runs the forward pass.
      weights: on the device.
    """
    with _Beside(weights) as beside:
        loss = run()
    return loss, beside.others()


class _Beside(TorchFunctionMode):
    """Notes weights that are used without gradients while it lasts."""

    def __init__(self, weights: Iterable[nn.Parameter]):
        super().__init__()
        self._weights = [(p, p.untyped_storage().data_ptr()) for p in weights]
        self._found: set[int] = set()  # by address, since a view of a weight may be used

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_GRADIENTS or not torch.is_grad_enabled():
            for x in _nest.leaves((args, kwargs)):
                if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                    self._found.add(x.untyped_storage().data_ptr())
        return func(*args, **kwargs)

    def others(self) -> set[nn.Parameter]:
        """Returns the weights that were not found."""
        return {p for p, address in self._weights if address not in self._found}
