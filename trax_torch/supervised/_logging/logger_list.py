"""The loggers of a run: whom the values go to that it says of itself, besides console and history.

The chief's are told alone. One that fails ends no run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from trax_torch.supervised._logging.console import Console

_METHODS = ("log", "log_hparams", "log_image", "close")


@runtime_checkable
class Logger(Protocol):
    """What `Loop(loggers=...)` hands its values to: any object with these four methods.

    It is told on the chief alone. Before the first value it should touch no file and no network,
    for the other ranks build one, too. After `close`, which each `run` calls at its end, more may
    come, from the next one. What it raises is said once, and the run goes on.

    One that has `begin(first_step)`, too, is told by it that a run begins: values at `first_step`
    and later, which an earlier run has left, count no longer. One that has `failed(error)` is told
    by it, before `close`, of the error that ended the run.
    """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers of a step, by name."""

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Takes the settings of a run: numbers, strings, truth values and None, by name."""

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Takes an array (height, width) or (height, width, channels): floats in [0, 1] or bytes.

        What else is no scalar comes as it is.
        """

    def close(self) -> None:
        """Is told that a run has ended."""


def as_loggers(loggers: Any) -> list[Any]:
    """Returns one logger, several, or None as a list.

    Raises:
      TypeError: if one lacks a method, or is a class.
    """
    several = isinstance(loggers, (list, tuple))
    found = list(loggers) if several else [] if loggers is None else [loggers]
    for each in found:
        if isinstance(each, type):
            raise TypeError(
                f"loggers are objects; got the class {each.__name__}. Build it: "
                f"loggers=[{each.__name__}(...)]."
            )
        lacking = [name for name in _METHODS if not callable(getattr(each, name, None))]
        if lacking:
            raise TypeError(
                f"A logger has the methods {', '.join(_METHODS)}; {type(each).__name__} lacks "
                f"{', '.join(lacking)}. Take one of supervised.loggers, or add what is lacking."
            )
    return found


class LoggerList:
    """The loggers of a `Loop`; what one raises is said once, and ends no run.

    Args:
      loggers: what the user gave; they are told if this process is the chief.
      console: says what failed.
      is_chief: whether this process speaks for all.
    """

    def __init__(self, loggers: Logger | Sequence[Logger] | None, console: Console, is_chief: bool):
        found = as_loggers(loggers)
        self._loggers = found if is_chief else []
        self._console = console
        self._failed: set[int] = set()  # those of which that was said
        self._knows_hparams = False

    def __bool__(self) -> bool:
        """Whether anybody is told."""
        return bool(self._loggers)

    def begin(self, first_step: int, hparams: Callable[[], Mapping[str, Any]]) -> None:
        """Begins a run.

        Args:
          first_step: values of this step and later, which an earlier run left, count no longer.
          hparams: returns the settings, which the first run of a `Loop` tells.
        """
        if not self._loggers:
            return
        self._tell("begin", first_step)
        if not self._knows_hparams:
            self._knows_hparams = True
            self._tell("log_hparams", hparams())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands on numbers of a step."""
        self._tell("log", dict(values), step)

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Hands on an image."""
        self._tell("log_image", name, image, step)

    def close(self, error: BaseException | None) -> None:
        """Tells that a run has ended, by an error or without one."""
        if error is not None:
            self._tell("failed", error)
        self._tell("close")

    def _tell(self, method: str, *args: Any) -> None:
        for i, logger in enumerate(self._loggers):
            if method not in _METHODS and not hasattr(logger, method):
                continue
            try:
                getattr(logger, method)(*args)
            except Exception as error:
                if i not in self._failed:
                    self._failed.add(i)
                    what = f"{type(logger).__name__}.{method}"
                    self._console.warn(
                        f"{what} failed: {type(error).__name__}: {error}. The run goes on, and "
                        f"tries again each time; the history has what is missing there."
                    )
