"""Loggers for tests, and what they and tables tell."""

import csv
import json

import numpy as np

from trax_torch.supervised._logging.reports import of_the_clock

EVERY_5 = {"eval_at": lambda step: step % 5 == 0, "checkpoint_at": lambda step: step % 5 == 0}


class Notes:
    """A logger that remembers what it was told."""

    def __init__(self):
        self.rows, self.hparams, self.images, self.closed = [], [], [], []

    def log(self, values, step):
        self.rows.append((step, values))

    def log_hparams(self, values):
        self.hparams.append(values)

    def log_image(self, name, image, step):
        self.images.append((name, np.shape(image), step))

    def close(self):
        self.closed.append(len(self.rows))


class Failing(Notes):
    """One that raises whatever it is told."""

    def _fail(self, *args):
        raise OSError(28, "No space left on device")

    begin = log = log_hparams = log_image = close = failed = _fail


def by_name(rows):
    """What rows tell, as a history does: by name, (step, value)."""
    found = {}
    for step, values in rows:
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


def recorded(loop):
    values = loop.history.to_dict()["_values"]
    return {f"{mode}/{k}": v for mode, metrics in values.items() for k, v in metrics.items()}


def without_clock(row):
    return {name: value for name, value in row.items() if not of_the_clock(name)}


def csv_rows(path):
    with open(path, newline="") as file:
        return [without_clock(row) for row in csv.DictReader(file)]


def json_rows(path):
    return [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
