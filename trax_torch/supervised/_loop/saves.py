"""When a checkpoint that was asked for is made: not while some callbacks are told and some not."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from types import TracebackType

from trax_torch.supervised import _checkpoint


class Saves:
    """Makes the checkpoints that are asked for: at once or, in a `with` block of it, at its end.

    A step, a report and the end of a run are told to one callback after another. A checkpoint that
    were made meanwhile would hold some of them as they were before and some as they are after. So
    these are such blocks; they may lie in each other, and the outermost counts. One that fails
    leaves nothing that could be saved, and its error says what was not.

    Args:
      saver: makes checkpoints.
      check_finite: is called before, and raises if there is nothing to be saved.
      saved: is told of the names afterwards.
    """

    def __init__(
        self,
        saver: _checkpoint.Checkpointer,
        check_finite: Callable[[], None],
        saved: Callable[[Iterable[str]], None],
    ):
        self._saver = saver
        self._check_finite = check_finite
        self._saved = saved
        self._asked: dict[str, bool] = {}  # whether to wait for it, by name
        self._n_blocks = 0
        self._is_gathering = False
        self._is_saving = False

    def save(self, name: str, blocking: bool) -> None:
        """Saves under a name, now or at the end of the block; see `Loop.save_checkpoint`."""
        if self._is_saving:
            raise ValueError(
                f"The state_dict of something that is being saved asked for a checkpoint {name!r}, "
                f"which would hold that again. Call save_checkpoint in another method."
            )
        self._asked[name] = blocking
        if not self._n_blocks and (blocking or not self._is_gathering):
            self._save()

    @contextlib.contextmanager
    def gathered(self) -> Generator[None]:
        """Makes those of its block that nobody waits for together: of one copy, in one go."""
        self._is_gathering, error = True, None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._is_gathering = False
            self._settle(error)

    def check_outside(self, method: str) -> None:
        """Raises ValueError in a block: `method` would change what callbacks are being told of."""
        if self._n_blocks:
            raise ValueError(
                f"{method} was called while callbacks are told of a step, evals or the end of a "
                f"run, a checkpoint is loaded, or averages are applied. Do it after that: where a "
                f"run is to go on from elsewhere, call stop(), and {method} when run has returned."
            )

    def __enter__(self) -> None:
        self._n_blocks += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._n_blocks -= 1
        self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        """Saves what was asked for if it is time to; an error is told what it kept from that."""
        if self._n_blocks or not self._asked:
            return
        if error is None:
            self._save()
        else:
            error.add_note(f"Therefore these checkpoints were not saved: {', '.join(self._asked)}.")
            self._asked.clear()

    def _save(self) -> None:
        asked, self._asked = self._asked, {}
        self._is_saving = True
        try:
            self._check_finite()
            for blocking in (True, False):
                names = [name for name, waits in asked.items() if waits == blocking]
                self._saver.save(names, blocking)
        finally:
            self._is_saving = False
        self._saved(asked)
