"""A model's lock: one thread at a time may change its modes or its memory."""

import threading
from typing import Any

from torch import nn


class ModelLock:
    """A lock that a thread may take again; a copy of it is another lock, and files hold none.

    Attributes:
      held: a context in which this thread has it; of C, so that nothing comes between taking and
        holding it.
    """

    def __init__(self) -> None:
        self.held = threading.RLock()

    def __reduce__(self) -> Any:
        return ModelLock, ()


def lock_of(module: nn.Module) -> ModelLock:
    """Returns the lock of a model, the same by whatever layers it is wrapped in.

    It lies on the first module that has weights.
    """
    owners = (m for m in module.modules() if any(p is not None for p in m._parameters.values()))
    lock: ModelLock = vars(next(owners, module)).setdefault("_predict_lock", ModelLock())
    return lock
