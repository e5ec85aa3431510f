"""A model's lock: one thread at a time may change its modes or its memory."""

import threading
from collections.abc import Generator
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


class Block:
    """A context that is a generator, `_run`: entered, it runs to its `yield`; left, to its end.

    What breaks in on the way in, a KeyboardInterrupt say, ends the generator, whose `finally`s undo
    what was done; they try twice, without a call in between. What breaks in before it is left,
    `close` mends, so whoever must be sure says `with contextlib.closing(block), block:`.
    """

    _body: Generator[None, None, None] | None = None

    def _run(self) -> Generator[None, None, None]:
        raise NotImplementedError

    def _inside(self) -> Any:
        """Returns what `with ... as` gives."""
        return self

    def __enter__(self) -> Any:
        body = self._run()
        try:
            self._body = body
            next(body)
            return self._inside()
        except BaseException:
            body.close()
            raise

    def __exit__(self, *error: Any) -> None:
        assert self._body is not None
        try:
            next(self._body, None)
        finally:
            self._body.close()

    def close(self) -> None:
        """Leaves the block, if it was not left."""
        if self._body is not None:
            self._body.close()


def lock_of(module: nn.Module) -> ModelLock:
    """Returns the lock of a model, the same by whatever layers it is wrapped in.

    It lies on the first module that has weights.
    """
    owners = (m for m in module.modules() if any(p is not None for p in m._parameters.values()))
    lock: ModelLock = vars(next(owners, module)).setdefault("_predict_lock", ModelLock())
    return lock
