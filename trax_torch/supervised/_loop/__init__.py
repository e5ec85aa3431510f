"""The parts that `Loop` conducts, each with one duty.

`settings` says what may be asked for, `start` what a run begins with, `meeting` how batches meet
models, `build` makes what runs, spread over ranks by `data_parallel`; `steps` takes steps,
`stopping` ends them, `after_step` does what then is due, `callback_list` tells callbacks, `saves`
waits until it has, `losses`, `evaluator` and `evals` measure, `best` judges, `ambient` sees to
torch's modes, `described` tells of it all; `rehearsal` leaves no trace. `supervised` calls it.
"""

from trax_torch.supervised._loop import habits
from trax_torch.supervised._loop.after_step import AfterStep
from trax_torch.supervised._loop.ambient import float32_precision
from trax_torch.supervised._loop.best import Best
from trax_torch.supervised._loop.build import build
from trax_torch.supervised._loop.callback_list import Callback, CallbackList, hook
from trax_torch.supervised._loop.described import Described
from trax_torch.supervised._loop.evals import measured
from trax_torch.supervised._loop.rehearsal import rehearsal
from trax_torch.supervised._loop.saves import Saves
from trax_torch.supervised._loop.settings import (
    ActivationCheckpointing,
    BestAt,
    LoopConfig,
    OnNonfinite,
    Precision,
    ResumeData,
    Strategy,
)
from trax_torch.supervised._loop.start import (
    as_tasks,
    events_of,
    greet,
    init_host_and_devices,
    n_steps_of,
    seed_of,
)
from trax_torch.supervised._loop.steps import Stepper
from trax_torch.supervised._loop.stopping import Stopping

__all__ = [
    "ActivationCheckpointing",
    "AfterStep",
    "Best",
    "BestAt",
    "Callback",
    "CallbackList",
    "Described",
    "LoopConfig",
    "OnNonfinite",
    "Precision",
    "ResumeData",
    "Saves",
    "Stepper",
    "Stopping",
    "Strategy",
    "as_tasks",
    "build",
    "events_of",
    "float32_precision",
    "greet",
    "habits",
    "hook",
    "init_host_and_devices",
    "measured",
    "n_steps_of",
    "rehearsal",
    "seed_of",
]
