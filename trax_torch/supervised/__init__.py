"""Supervised training: `Loop`, its tasks, learning-rate schedules, callbacks, loggers."""

from trax_torch.data import share_of
from trax_torch.supervised import (
    callbacks,
    decoding,
    history,
    loggers,
    lr_schedules,
    trainer_lib,
    training,
)
from trax_torch.supervised._rate_search import RateSearch, find_learning_rate
from trax_torch.supervised._tasks import EpochMetric
from trax_torch.supervised.callbacks import TrainingStepCallback
from trax_torch.supervised.history import History
from trax_torch.supervised.trainer_lib import Trainer, train
from trax_torch.supervised.training import EvalTask, Loop, TrainTask

__all__ = [
    "EpochMetric",
    "EvalTask",
    "History",
    "Loop",
    "RateSearch",
    "TrainTask",
    "Trainer",
    "TrainingStepCallback",
    "callbacks",
    "decoding",
    "find_learning_rate",
    "history",
    "loggers",
    "lr_schedules",
    "share_of",
    "train",
    "trainer_lib",
    "training",
]
