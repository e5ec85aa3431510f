"""What to learn from, what to measure, and when.

`tasks` are TrainTask and EvalTask, `losses` what they ask for, `metrics` those that have a state,
`events` are functions from a step to yes or no. Everyone in `supervised` may call it.
"""

from trax_torch.supervised._tasks.events import At, Due, Events, at_step_1_and_every_nth_step
from trax_torch.supervised._tasks.losses import FunctionLoss, OwnLoss, required_of
from trax_torch.supervised._tasks.metrics import (
    EpochMetric,
    StatefulMetric,
    check_comes_to,
    numbers_of,
)
from trax_torch.supervised._tasks.tasks import EvalTask, TrainTask, check_fits

__all__ = [
    "At",
    "Due",
    "EpochMetric",
    "EvalTask",
    "Events",
    "FunctionLoss",
    "OwnLoss",
    "StatefulMetric",
    "TrainTask",
    "at_step_1_and_every_nth_step",
    "check_comes_to",
    "check_fits",
    "numbers_of",
    "required_of",
]
