"""Supervised training: `Loop`, its tasks, learning-rate schedules, callbacks."""

from trax_torch.supervised import callbacks, decoding, history, lr_schedules, training
from trax_torch.supervised._tasks import share_of
from trax_torch.supervised.callbacks import TrainingStepCallback
from trax_torch.supervised.history import History
from trax_torch.supervised.training import EvalTask, Loop, TrainTask

__all__ = [
    "EvalTask",
    "History",
    "Loop",
    "TrainTask",
    "TrainingStepCallback",
    "callbacks",
    "decoding",
    "history",
    "lr_schedules",
    "share_of",
    "training",
]
