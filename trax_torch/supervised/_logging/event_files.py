"""TensorBoard's event files: they are appended to, and closed, at each report.

A file that cannot be written ends no run.
"""

import io
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trax_torch.supervised._logging.console import Console


class EventFiles:
    """The event files of a `Loop`, one a folder, which each of its runs goes on with.

    What cannot be written is left out; the first time, that is said.

    Args:
      console: says it.
    """

    def __init__(self, console: Console):
        self._console = console
        self._files: dict[str, EventFile] = {}
        self._first_step = 1
        self._has_failed = False

    def begin(self, first_step: int) -> None:
        """Begins a run.

        Args:
          first_step: values at this step and later, which an earlier run left, are shown no longer.
        """
        self._first_step = first_step
        for file in self._files.values():
            file.begin(first_step)

    def at(self, folder: str | None) -> "EventFile | None":
        """Returns what writes to `folder`, or None for no folder."""
        if folder is None:
            return None
        if folder not in self._files:
            self._files[folder] = EventFile(folder, self._say_once)
            self._files[folder].begin(self._first_step)
        return self._files[folder]

    def _say_once(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._console.warn(
                f"TensorBoard's files cannot be written: {error}. The run goes on, and tries again "
                f"at each report; the history has what is missing there."
            )


class EventFile:
    """Writes values of one folder; the object that `Loop.log_summary` takes.

    The folder is made with the first file. A run appends to the file of the one before; where
    another file came after it, it begins a new one: TensorBoard reads files in the order of their
    names, and goes back to none.

    Args:
      folder: the folder.
      failed: is told why values could not be written.
    """

    def __init__(self, folder: str, failed: Callable[[OSError], None]):
        self._folder = folder
        self._failed = failed
        self._name: str | None = None
        self._events: list[Any] = []  # since the last flush
        self._first_step: int | None = None  # of a run that has written nothing yet

    def begin(self, first_step: int) -> None:
        """Begins a run; see `EventFiles.begin`."""
        self._first_step = first_step

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Writes one number."""
        from tensorboard.compat.proto import summary_pb2

        messages: Any = summary_pb2  # whose names are made when it is imported
        value_of_tag = messages.Summary.Value(tag=tag, simple_value=value)
        self._events.append(_event(step=step, summary=messages.Summary(value=[value_of_tag])))

    def image(self, tag: str, image: Any, step: int) -> None:
        """Writes an image, (height, width) with or without channels: floats in [0, 1] or bytes."""
        from torch.utils.tensorboard import summary

        image = np.asarray(image)
        shown = summary.image(tag, image, dataformats="HWC" if image.ndim == 3 else "HW")
        self._events.append(_event(step=step, summary=shown))

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Writes settings, by name; what is neither number nor truth value is shown as text."""
        from torch.utils.tensorboard import summary

        shown = {k: x if isinstance(x, (bool, int, float)) else str(x) for k, x in values.items()}
        for each in summary.hparams(shown, {}):
            self._events.append(_event(summary=each))

    def flush(self) -> None:
        """Lets readers see what was written."""
        events, self._events = self._events, []
        try:
            self._append(events)
        except OSError as error:
            self._failed(error)

    def _append(self, events: list[Any]) -> None:
        """Appends events: all or none, since a record that is torn would hide those after it."""
        if self._first_step is not None:
            self._name = _last_name(self._folder, self._name)
            events = [_restart(self._first_step), *events]
        assert self._name is not None
        with open(os.path.join(self._folder, self._name), "ab", buffering=0) as file:
            before = file.tell()
            if not before:
                events = [_event(file_version="brain.Event:2"), *events]
            records = memoryview(_records(events))
            try:
                while records:  # a disk that fills up takes a part, and raises when asked again
                    records = records[file.write(records) :]
            except OSError:
                file.truncate(before)
                raise
        self._first_step = None


def _last_name(folder: str, name: str | None) -> str:
    """Returns the name of our file, or a new one, that comes after all others in a folder."""
    os.makedirs(folder, exist_ok=True)
    found = (re.match(r"events\.out\.tfevents\.(\d{10})\.", each) for each in os.listdir(folder))
    times = sorted((int(each[1]), each.string) for each in found if each)
    if name is not None and times and times[-1][1] == name:
        return name
    seconds = max([int(time.time()), *(at + 1 for at, _ in times[-1:])])
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def _restart(first_step: int) -> Any:
    """Returns the event after which values at a step and later, that came before, do not count."""
    from tensorboard.compat.proto import event_pb2

    messages: Any = event_pb2
    log = messages.SessionLog(status=messages.SessionLog.START)
    return _event(step=first_step, session_log=log)


def _event(**content: Any) -> Any:
    from tensorboard.compat.proto import event_pb2

    messages: Any = event_pb2
    return messages.Event(wall_time=time.time(), **content)


def _records(events: list[Any]) -> bytes:
    """Returns events as they lie in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()
