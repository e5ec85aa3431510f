"""What to learn from, what to measure, and when.

`tasks` are TrainTask and EvalTask, `data_position` is their data as a stream that knows its place
and finds it again, `events` are functions from a step to yes or no. Everyone in `supervised` may
call it.
"""

from trax_torch.supervised._tasks.data_position import share_of
from trax_torch.supervised._tasks.events import At, Events, at_step_1_and_every_nth_step
from trax_torch.supervised._tasks.tasks import EvalTask, TrainTask, check_fits

__all__ = [
    "At",
    "EvalTask",
    "Events",
    "TrainTask",
    "at_step_1_and_every_nth_step",
    "check_fits",
    "share_of",
]
