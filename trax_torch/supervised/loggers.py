"""Loggers: where the values of a run go besides its console lines, its history and `output_dir`.

`Loop(loggers=[...])` takes what is here, and any object with the methods of `Logger`. A name is
that of the history behind 'train/' or 'eval/', such as 'eval/metrics/L2Loss'. Where a run goes on
from a checkpoint, tables lose and double no row: those of later steps, which the run that was
killed had written, are taken out when the first new one comes.
"""

import csv
import io
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trax_torch._extras import needed
from trax_torch.supervised import _logging
from trax_torch.supervised._logging import Logger, table_files

__all__ = [
    "CSVLogger",
    "JSONLinesLogger",
    "Logger",
    "MLflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

Path = str | os.PathLike[str]


class CSVLogger:
    """Writes a table: a row for each step at which something was logged, a column for each name.

    The first column is `step`; a value that a row lacks is empty. Numbers are written so that
    reading them gives the very same. A name that comes later adds a column, for which the file is
    written anew. The settings are in a file beside it, `<name>.hparams.json`. Images are left out:
    a table has no place for them.

    A run that begins at step 1 keeps what is there already, as `<name>.1.csv`, and so on.

    Args:
      path: the file, whose folder is made with it.

    Raises:
      ValueError: in `log`, if there is a file that is no such table; it stays as it is.

    Example:
      >>> import math, pathlib, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> logger = CSVLogger(f'{folder}/metrics.csv')
      >>> logger.log({'train/metrics/L2Loss': 0.5}, 1)
      >>> logger.log({'train/metrics/L2Loss': 0.25, 'eval/metrics/L2Loss': 1.0}, 2)
      >>> print(pathlib.Path(folder, 'metrics.csv').read_text())
      step,train/metrics/L2Loss,eval/metrics/L2Loss
      1,0.5,
      2,0.25,1.0
      <BLANKLINE>
    """

    def __init__(self, path: Path):
        self._path = os.path.expanduser(path)
        self._columns: list[str] | None = None  # of the file; None until it was looked at
        self._last: tuple[int, dict[str, float]] = 0, {}  # the last row of this run
        self._first_step: int | None = None  # of a run that has written nothing yet

    def begin(self, first_step: int) -> None:
        """Begins a run: rows of this step and later, which an earlier one left, are taken out."""
        self._first_step, self._columns, self._last = first_step, None, (0, {})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes a row, or adds to the last one, if that is of the same step."""
        names = self._columns or []
        if (
            self._columns is None
            or not set(values) <= set(names)
            or not table_files.is_whole(self._path)
        ):
            names = self._write_anew(values)
        last_step, before = self._last
        old = b""
        if before and step == last_step:
            old, values = self._row(names, step, before), {**before, **values}
        table_files.append(self._path, self._row(names, step, values), instead_of=old)
        self._last = step, dict(values)

    def _row(self, names: list[str], step: int, values: Mapping[str, float]) -> bytes:
        return _csv_of([[step, *(values.get(name, "") for name in names)]])

    def _write_anew(self, values: Mapping[str, float]) -> list[str]:
        """Writes the rows that count still, with columns for all values; returns their names."""
        data = table_files.read(self._path)
        whole = data[: data.rfind(b"\n") + 1]  # a kill in the midst of a row leaves a part of it
        try:
            (first, *names), *rows = list(csv.reader(io.StringIO(whole.decode()))) or [["step"]]
            steps = [int(row[0]) for row in rows]
            if first != "step" or any(len(row) != len(names) + 1 for row in rows):
                raise ValueError(f"its first column is {first!r}")
        except (ValueError, IndexError, csv.Error) as error:
            raise ValueError(_not_ours(self._path, "CSVLogger", error)) from error
        kept = _that_count(rows, steps, self._first_step)
        names += [name for name in values if name not in names]
        empty = [""] * len(names)
        table = [["step", *names], *([*row, *empty][: len(names) + 1] for row in kept)]
        if len(kept) < len(rows) and not kept:
            table_files.set_aside(self._path)
        if (anew := _csv_of(table)) != data:
            table_files.put(self._path, anew)
        self._columns, self._first_step = names, None
        return names

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Writes the settings to the file beside the table."""
        _put_hparams(self._path, values)

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Leaves it out."""

    def close(self) -> None:
        """Does nothing: no file is open between two rows."""


class JSONLinesLogger:
    """Writes a line for each step at which something was logged: an object, with `step` in it.

    Numbers are written so that reading them gives the very same; those that are not finite are the
    strings "NaN", "Infinity" and "-Infinity", which `float` reads, for JSON has none. The settings
    are in a file beside it, `<name>.hparams.json`. Images are left out.

    A run that begins at step 1 keeps what is there already, as `<name>.1.jsonl`, and so on.

    Args:
      path: the file, whose folder is made with it.

    Raises:
      ValueError: in `log`, if there is a file that has other lines; it stays as it is.

    Example:
      >>> import math, pathlib, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> logger = JSONLinesLogger(f'{folder}/metrics.jsonl')
      >>> logger.log({'train/metrics/L2Loss': 0.5, 'train/training/loss': math.inf}, 1)
      >>> print(pathlib.Path(folder, 'metrics.jsonl').read_text())
      {"step": 1, "train/metrics/L2Loss": 0.5, "train/training/loss": "Infinity"}
      <BLANKLINE>
    """

    def __init__(self, path: Path):
        self._path = os.path.expanduser(path)
        self._first_step: int | None = None  # of a run that has written nothing yet
        self._has_looked = False
        self._last: tuple[int, dict[str, float]] = 0, {}  # the last line of this run

    def begin(self, first_step: int) -> None:
        """Begins a run: lines of this step and later, which an earlier one left, are taken out."""
        self._first_step, self._has_looked, self._last = first_step, False, (0, {})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes a line, or adds to the last one, if that is of the same step."""
        if not self._has_looked or not table_files.is_whole(self._path):
            self._keep_what_counts()
        last_step, before = self._last
        old = b""
        if before and step == last_step:
            old, values = self._line(step, before), {**before, **values}
        table_files.append(self._path, self._line(step, values), instead_of=old)
        self._last = step, dict(values)

    def _line(self, step: int, values: Mapping[str, float]) -> bytes:
        numbers = {name: _json_number(value) for name, value in values.items()}
        return json.dumps({"step": step, **numbers}).encode() + b"\n"

    def _keep_what_counts(self) -> None:
        data = table_files.read(self._path)
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        try:
            steps = [int(json.loads(line)["step"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(_not_ours(self._path, "JSONLinesLogger", error)) from error
        kept = _that_count(lines, steps, self._first_step)
        if len(kept) < len(lines) and not kept:
            table_files.set_aside(self._path)
        if not data or b"".join(kept) != data:
            table_files.put(self._path, b"".join(kept))
        self._first_step, self._has_looked = None, True

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Writes the settings to the file beside it."""
        _put_hparams(self._path, values)

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Leaves it out."""

    def close(self) -> None:
        """Does nothing: no file is open between two lines."""


class TensorBoardLogger:
    """Writes TensorBoard's event files: scalars, images, and the settings for its HPARAMS tab.

    `Loop(output_dir=...)` writes such files by itself, under Trax's tags, in `train` and `eval`;
    this is for a folder elsewhere, where all of a run lies under one name.

    Args:
      folder: the folder, which is made with the first file.
    """

    def __init__(self, folder: Path):
        self._file = _logging.EventFile(os.path.expanduser(folder), _raise)
        self._file.begin(1)

    def begin(self, first_step: int) -> None:
        """Begins a run: values at this step and later are shown no longer."""
        self._file.begin(first_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers."""
        for name, value in values.items():
            self._file.scalar(name, value, step)
        self._file.flush()

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Writes the settings."""
        self._file.hparams(values)
        self._file.flush()

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Writes an image."""
        self._file.image(name, image, step)
        self._file.flush()

    def close(self) -> None:
        """Does nothing: no file is open between two calls."""


class WandbLogger:
    """Hands values to Weights & Biases.

    They are logged with a value `step`, which is the x axis of all, and not W&B's own count. W&B
    takes nothing back: a run that goes on from a checkpoint under the same `id`, with
    `resume='allow'`, has what was logged after it twice.

    Its run is begun with the first value, and finished at the end of each `Loop.run`; another
    `Loop.run` goes on with it. One that you give stays open.

    Args:
      run: a run of `wandb.init` to log to.
      settings: what `wandb.init` is called with otherwise, such as project, name, dir and mode.

    Raises:
      ImportError: if wandb is not installed.
      ValueError: if both are given.
    """

    def __init__(self, *, run: Any = None, **settings: Any):
        if run is not None and settings:
            raise ValueError(
                f"WandbLogger takes a run, or what to begin one with; got both, run and "
                f"{', '.join(settings)}. Give the latter to wandb.init."
            )
        self._wandb = needed("wandb", "WandbLogger", extra="wandb")
        self._given, self._settings = run, settings
        self._run: Any = None  # while it is open
        self._exit_code = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands on numbers."""
        self._begun().log({"step": step, **values})

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Hands on the settings, as W&B's config."""
        self._begun().config.update(dict(values), allow_val_change=True)

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Hands on an image."""
        self._begun().log({"step": step, name: self._wandb.Image(_bytes_of(image))})

    def failed(self, error: BaseException) -> None:
        """Has W&B show that the run ended by an error."""
        self._exit_code = 1

    def close(self) -> None:
        """Finishes W&B's run, unless it was given."""
        run, self._run = self._run, None
        if run is not None and self._given is None:
            self._settings |= {"id": run.id, "resume": "allow"}
            run.finish(exit_code=self._exit_code)
        self._exit_code = 0

    def _begun(self) -> Any:
        if self._run is None:
            self._run = self._given or self._wandb.init(**self._settings)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        return self._run


class MLflowLogger:
    """Hands values to MLflow: numbers as metrics, settings as parameters, images as artifacts.

    In MLflow's names a character that it refuses is `_`. MLflow takes nothing back: a run that goes
    on from a checkpoint under the same `run_id` has what was logged after it twice.

    Its run is begun with the first value, and is FINISHED, or FAILED, at the end of each
    `Loop.run`; another `Loop.run` goes on with it.

    Args:
      tracking_uri: where to, such as 'sqlite:///mlflow.db' or a server; by default as MLflow is
        set up.
      experiment: the experiment's name, which is made if there is none.
      run_name: the run's name; by default MLflow makes one up.
      run_id: of a run to go on with; by default a new one.

    Raises:
      ImportError: if mlflow is not installed.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment: str = "Default",
        run_name: str | None = None,
        run_id: str | None = None,
    ):
        self._mlflow = needed("mlflow", "MLflowLogger", extra="mlflow")
        self._tracking_uri = tracking_uri
        self._experiment, self._run_name, self._run_id = experiment, run_name, run_id
        self._client: Any = None
        self._is_open = self._has_failed = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands on numbers."""
        now = int(time.time() * 1000)
        kind = self._mlflow.entities.Metric
        metrics = [kind(_mlflow_name(k), float(x), now, step) for k, x in values.items()]
        client = self._begun()
        for i in range(0, len(metrics), 1000):  # a server takes no more at once
            client.log_batch(self._run_id, metrics=metrics[i : i + 1000])

    def log_hparams(self, values: Mapping[str, Any]) -> None:
        """Hands on the settings."""
        kind = self._mlflow.entities.Param
        params = [kind(_mlflow_name(k), str(x)) for k, x in values.items()]
        client = self._begun()
        for i in range(0, len(params), 100):  # a server takes no more at once
            client.log_batch(self._run_id, params=params[i : i + 100])

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Hands on an image."""
        pixels = _bytes_of(image)
        self._begun().log_image(self._run_id, pixels, key=_mlflow_name(name), step=step)

    def failed(self, error: BaseException) -> None:
        """Has MLflow show that the run ended by an error."""
        self._has_failed = True

    def close(self) -> None:
        """Tells MLflow that the run has ended."""
        if self._is_open:
            self._is_open = False
            self._client.set_terminated(self._run_id, "FAILED" if self._has_failed else "FINISHED")
        self._has_failed = False

    def _begun(self) -> Any:
        if self._client is None:
            self._client = self._mlflow.MlflowClient(self._tracking_uri)
        if self._run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = (
                self._client.create_experiment(self._experiment)
                if found is None
                else found.experiment_id
            )
            run = self._client.create_run(number, run_name=self._run_name)
            self._run_id = run.info.run_id
        elif not self._is_open:
            self._client.update_run(self._run_id, status="RUNNING")
        self._is_open = True
        return self._client


def _raise(error: OSError) -> None:
    raise error


def _mlflow_name(name: str) -> str:
    """Returns a name without what MLflow refuses."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def _bytes_of(image: Any) -> Any:
    """Returns an image, floats in [0, 1] or bytes, as bytes; one channel alone without its axis."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise ValueError(
            f"An image has the shape (height, width) or (height, width, channels); got "
            f"{image.shape}."
        )
    if image.dtype == np.uint8:
        return image
    return (np.clip(image.astype(np.float64), 0, 1) * 255).round().astype(np.uint8)


def _json_number(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _csv_of(rows: Iterable[list[Any]]) -> bytes:
    """Returns rows as they lie in a file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _that_count(rows: list[Any], steps: list[int], first_step: int | None) -> list[Any]:
    """Returns the rows of steps before the first of a run; all, if none has begun."""
    pairs = zip(rows, steps, strict=True)
    return [row for row, step in pairs if first_step is None or step < first_step]


def _not_ours(path: str, who: str, error: Exception) -> str:
    return f"{path} is no file of {who}: {error}. Give it another name, or move it away."


def _put_hparams(path: str, values: Mapping[str, Any]) -> None:
    """Writes settings to a file beside another."""
    shown = {k: _json_number(x) if isinstance(x, float) else x for k, x in values.items()}
    text = json.dumps(shown, indent=2) + "\n"
    table_files.put(f"{os.path.splitext(path)[0]}.hparams.json", text.encode())
