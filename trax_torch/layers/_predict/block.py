"""Blocks that are left as they were entered, whatever breaks in."""

from collections.abc import Generator
from typing import Any

import torch


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


class GradientsOff(Block):
    """Has autograd record nothing in this thread while its block runs."""

    def _run(self) -> Generator[None, None, None]:
        before = torch.is_grad_enabled()
        try:
            torch.set_grad_enabled(False)
            yield
        finally:
            try:
                torch.set_grad_enabled(before)
            except BaseException:  # once more: something may break in here, too
                torch.set_grad_enabled(before)
                raise
