"""What a human reads as it happens: console lines, and a progress bar.

This room is told what to say; it measures nothing.
"""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Generator, Iterable
from typing import Any, Protocol

_log = logging.getLogger("trax_torch")
_BETWEEN_LOSSES = 0.5  # seconds: a loss that a bar shows is waited for


class _HasLoss(Protocol):
    @property
    def loss(self) -> float | None: ...


class Console:
    """Prints Trax's lines, which scripts may read.

    Args:
      is_chief: whether this process speaks.
      settings: those that are not the default, as text, are the first line, if there are some.
      verbose: False prints nothing, and logs it all.
    """

    def __init__(self, is_chief: bool, settings: object = "", verbose: bool = True):
        self._is_chief = is_chief
        self._prints = is_chief and verbose
        self._bar: Any = None
        self._has_failed = False
        if str(settings):
            self.say(f"Settings: {settings}")

    def say(self, text: str, stdout: bool = True) -> None:
        """Prints a line, or only logs it.

        What is printed is logged, too, but not to where it is printed: it is there once. Where
        nothing can be printed, on a full disk or to a reader that has gone, that is logged the
        first time, and ends no run.
        """
        prints = stdout and self._prints
        _log_line(text, prints)
        if not prints:
            return
        if self._bar is not None:
            self._bar.clear()
        try:
            print(text, flush=True)
        except OSError as error:
            if not self._has_failed:
                _log.warning("Standard output cannot be written: %s. The run goes on.", error)
            self._has_failed = True
        if self._bar is not None:
            self._bar.refresh()

    def warn(self, text: str) -> None:
        """Prints a line, or logs it as a warning where none is printed."""
        if self._prints:
            self.say(text)
        else:
            _log.warning(text)

    def say_step(self, step: int, text: str, stdout: bool = True) -> None:
        """Prints a line that begins with the step."""
        self.say(f"Step {step: 6d}: {text}", stdout)

    @contextlib.contextmanager
    def progress(
        self, first: int, n_steps: int, wanted: bool | None, loop: "_HasLoss"
    ) -> Generator[Iterable[int]]:
        """Yields the steps `first`, ..., `first + n_steps - 1`, under a progress bar or not.

        There is one bar for each run, with the last step's loss. In a notebook it is a widget,
        where ipywidgets is installed, and stays when the run has ended.

        Args:
          first: the first step.
          n_steps: how many.
          wanted: True shows a bar, False does not, None does where lines are printed, and standard
            error is a terminal or this is a notebook.
          loop: is asked for the last step's loss, twice a second at most, and at the end.
        """
        steps = range(first, first + n_steps)
        in_notebook = _is_notebook()
        if wanted is None:
            wanted = self._prints and (in_notebook or sys.stderr.isatty())
        if not wanted or not self._is_chief:
            yield steps
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that a bar of text is all there is
            from tqdm.auto import tqdm

        with tqdm(
            steps, unit="step", file=sys.stderr, dynamic_ncols=True, leave=in_notebook
        ) as bar:
            self._bar = bar
            try:
                yield _with_losses(bar, steps, loop)
                if bar.n < n_steps:  # the run was stopped
                    _show_loss(bar, loop)
            finally:
                self._bar = None


def _with_losses(bar: Any, steps: range, loop: "_HasLoss") -> Generator[int]:
    """Yields a bar's steps, and writes beside it what was lost in those that are done."""
    asked_at = time.monotonic()
    for step in bar:
        yield step
        if step == steps[-1] or time.monotonic() - asked_at > _BETWEEN_LOSSES:
            _show_loss(bar, loop)
            asked_at = time.monotonic()


def _show_loss(bar: Any, loop: _HasLoss) -> None:
    if (loss := loop.loss) is not None:
        bar.set_postfix_str(f"loss={loss:.4g}")


def _is_notebook() -> bool:
    """Tells whether this process is a notebook's kernel; imports nothing to find out."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(get_ipython(), "kernel")


def _log_line(text: str, is_printed: bool) -> None:
    """Logs a line; one that is printed goes to no handler that shows it on the console again."""
    if not _log.isEnabledFor(logging.INFO):
        return
    here: logging.Logger | None = _log
    handlers: list[logging.Handler] = []
    while here is not None:
        handlers += here.handlers
        here = here.parent if here.propagate else None
    if not (is_printed and any(map(_is_console, handlers))):
        _log.info(text)
        return
    record = _log.makeRecord(_log.name, logging.INFO, __file__, 0, text, (), None)
    passed = _log.filter(record)
    if passed:
        record = passed if isinstance(passed, logging.LogRecord) else record  # Python 3.12 on
        for handler in handlers:
            if record.levelno >= handler.level and not _is_console(handler):
                handler.handle(record)


def _is_console(handler: logging.Handler) -> bool:
    """Tells whether a handler writes to standard output or error, by itself or by Rich."""
    console = getattr(handler, "console", None)
    stream = getattr(handler, "stream", getattr(console, "file", None))
    return stream is not None and (stream is sys.stdout or stream is sys.stderr)
