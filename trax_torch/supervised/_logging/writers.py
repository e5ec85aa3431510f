"""What a human reads: console lines, TensorBoard files, a progress bar.

This room is told what to say; it measures nothing.
"""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_log = logging.getLogger("trax_torch")


class Console:
    """Prints Trax's lines, which scripts may read.

    Args:
      is_chief: whether this process speaks.
      settings: those that are not the default, as text, are the first line, if there are some.
    """

    def __init__(self, is_chief: bool, settings: object = ""):
        self._is_chief = is_chief
        self._bar: Any = None
        if str(settings):
            self.say(f"Settings: {settings}")

    def say(self, text: str, stdout: bool = True) -> None:
        """Prints a line, or only logs it."""
        _log.info(text)
        if not (stdout and self._is_chief):
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def say_step(self, step: int, text: str, stdout: bool = True) -> None:
        """Prints a line that begins with the step."""
        self.say(f"Step {step: 6d}: {text}", stdout)

    @contextlib.contextmanager
    def progress(self, first: int, n_steps: int, wanted: bool | None) -> Iterator[Iterable[int]]:
        """Yields the steps `first`, ..., `first + n_steps - 1`, under a progress bar or not.

        Args:
          first: the first step.
          n_steps: how many.
          wanted: True shows a bar, False does not, None does where standard error is a terminal.
        """
        steps = range(first, first + n_steps)
        if wanted is None:
            wanted = sys.stderr.isatty()
        if not wanted or not self._is_chief:
            yield steps
            return
        from tqdm import tqdm

        with tqdm(steps, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None


class Writers:
    """TensorBoard event files, one per folder, opened when the first value comes; a context.

    Args:
      purge_step: values of an earlier run at this step and later are no longer shown, unless it is
        the first step.
    """

    def __init__(self, purge_step: int):
        self._purge_step = purge_step if purge_step > 1 else None
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is left and closes the files."""
        for writer in self._open.values():
            writer.close()
        self._open = {}

    def at(self, folder: str | None) -> "Writer | None":
        """Returns what writes to `folder`, or None for no folder."""
        if folder is None:
            return None
        if folder not in self._open:
            from torch.utils.tensorboard import SummaryWriter

            self._open[folder] = SummaryWriter(folder, purge_step=self._purge_step)
        return Writer(self._open[folder])


class Writer:
    """Writes values of one folder; the object that `Loop.log_summary` takes."""

    def __init__(self, summary_writer: Any):
        self._writer = summary_writer

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Writes one number."""
        self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: Any, step: int) -> None:
        """Writes an image, (height, width) with or without channels: floats in [0, 1] or bytes."""
        image = np.asarray(image)
        self._writer.add_image(tag, image, step, dataformats="HWC" if image.ndim == 3 else "HW")

    def flush(self) -> None:
        """Lets readers see what was written."""
        self._writer.flush()
