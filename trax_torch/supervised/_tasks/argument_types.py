"""What tasks and a Loop accept, as types: wide enough for all that runs, so that mistakes show."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, SupportsFloat

import torch

from trax_torch import optimizers

# Batches: an iterator, or what can be gone through again, such as a DataLoader.
Data = Iterable[Any]

# A module or function, or the loss that the model computes itself.
Loss = Callable[..., Any] | Literal["model", "loss"]


class Stateful(Protocol):
    """A metric with a state."""

    def reset(self) -> Any: ...
    def update(self, *args: Any, **kwargs: Any) -> Any: ...
    def compute(self) -> Any: ...


Metrics = Loss | Stateful | Sequence[Loss | Stateful]

# A recipe, PyTorch's optimizer, or what makes one of parameters: a class, or a partial of it.
AnyOptimizer = (
    optimizers.Optimizer
    | type[optimizers.Optimizer]
    | torch.optim.Optimizer
    | Callable[..., torch.optim.Optimizer]
)


class Scheduler(Protocol):
    """A scheduler of torch's kind, timm's for example."""

    def step(self, *args: Any, **kwargs: Any) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any: ...


# From a step to a rate; or from an optimizer to a scheduler.
Schedule = Callable[[int], SupportsFloat] | Callable[[torch.optim.Optimizer], Scheduler]
