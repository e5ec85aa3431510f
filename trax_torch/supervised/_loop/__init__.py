"""The parts that `Loop` conducts, each with one duty.

`settings` says what may be asked for, `build` makes what runs, `steps` takes steps, `stopping`
ends them; `data_parallel` spreads them over ranks, `losses` computes, `evaluator` measures, `best`
judges. `supervised.training` alone calls it.
"""

from trax_torch.supervised._loop.best import Best
from trax_torch.supervised._loop.build import (
    as_tasks,
    check_task,
    make_scheduler,
    make_trainer,
    prepare_model,
    refuse_eval_model,
    running,
    to_residence,
)
from trax_torch.supervised._loop.data_parallel import check_world, shard
from trax_torch.supervised._loop.evaluator import Evaluator
from trax_torch.supervised._loop.losses import cut_for_chunks
from trax_torch.supervised._loop.settings import Settings
from trax_torch.supervised._loop.steps import Stepping
from trax_torch.supervised._loop.stopping import Stopping

__all__ = [
    "Best",
    "Evaluator",
    "Settings",
    "Stepping",
    "Stopping",
    "as_tasks",
    "check_task",
    "check_world",
    "cut_for_chunks",
    "make_scheduler",
    "make_trainer",
    "prepare_model",
    "refuse_eval_model",
    "running",
    "shard",
    "to_residence",
]
