"""The parts that `Loop` conducts, each with one duty.

`settings` says what may be asked for, `start` what a run begins with, `build` makes what runs,
spread over ranks by `data_parallel`; `steps` takes steps, `stopping` ends them, `callback_list`
tells callbacks, `losses` and `evaluator` measure, `best` judges. `supervised.training` alone calls
it.
"""

from trax_torch.supervised._loop.best import Best
from trax_torch.supervised._loop.build import build
from trax_torch.supervised._loop.callback_list import CallbackList
from trax_torch.supervised._loop.settings import LoopConfig
from trax_torch.supervised._loop.start import as_tasks, events_of, init_host_and_devices, seed_of
from trax_torch.supervised._loop.steps import Stepper
from trax_torch.supervised._loop.stopping import Stopping

__all__ = [
    "Best",
    "CallbackList",
    "LoopConfig",
    "Stepper",
    "Stopping",
    "as_tasks",
    "build",
    "events_of",
    "init_host_and_devices",
    "seed_of",
]
