"""What a run is asked for now, beside what it was asked for when it was saved.

One rule: what the code says counts, and one line tells of it, where what was saved can go on under
it; where it cannot, both values are told, and nothing is loaded. `_REFUSED` says which is which.

What is asked for is taken down when a Loop is built, before anything moves, as plain data.
"""

from collections.abc import Sequence
from typing import Any

from trax_torch import optimizers
from trax_torch._errors import MismatchError
from trax_torch.supervised import _tasks
from trax_torch.supervised._checkpoint.described import described, plain
from trax_torch.supervised._checkpoint.rollback import printable

# What a task is asked for, and why nothing goes on if it is another; what has no reason goes on.
_REFUSED = {
    "scheduler": "the state of a torch scheduler holds its settings, too; a function of the step, "
    "such as lr_schedules has, may change between runs",
    "group of": "the numbers of a parameter group would come to other weights",
    "batch_size": "the place in the data is counted in batches, and would be at other rows; "
    "Loop(resume_data='restart') begins the data anew",
}
# What of a torch scheduler's state is its progress; schedulers in it are asked for themselves.
_PROGRESS = {
    "last_epoch",
    "_last_lr",
    "_step_count",
    "_is_initial",
    "_get_lr_called_within_step",
} | {"_schedulers"}
_MANY = 6  # differences; of more, the others are counted


def asked_of_task(
    task: _tasks.TrainTask, trainer: optimizers.Trainer, scheduler: Any
) -> dict[str, Any]:
    """Returns by name what a task is asked for: plain data, before its first step."""
    optimizer = trainer.optimizer
    names = {id(p): name for name, p in trainer.model_with_loss.named_parameters()}
    own_rate = scheduler is None and task.learning_rate(1) is None
    passed_over = {"params"} if own_rate else {"params", "lr", "initial_lr"}
    asked: dict[str, Any] = {
        "loss": described(task.loss_layer),
        "lr_schedule": None if own_rate else described(task.schedule),
        "scheduler": asked_of_scheduler(scheduler),
        "lr_schedule_every": task.lr_schedule_every,
        "monitor": task.monitor,
        "batch_size": task.stream.batch_size,
        "group of": {
            names[id(p)]: i
            for i, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        },
    }
    for i, group in enumerate(optimizer.param_groups):
        asked[f"group {i}"] = {k: plain(v) for k, v in group.items() if k not in passed_over}
    return asked


def asked_of_evals(eval_tasks: Sequence[_tasks.EvalTask]) -> list[list[str]]:
    """Returns what each eval task measures."""
    return [list(task.metric_names) for task in eval_tasks]


def asked_of_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """Returns a torch scheduler's kind and settings, those of schedulers in it too, by name."""
    if scheduler is None:
        return None
    asked: dict[str, Any] = {"kind": type(scheduler).__name__}
    for name, value in scheduler.state_dict().items():
        if name not in _PROGRESS:
            asked[name] = plain(value)
    if hasattr(scheduler, "lr_lambdas"):
        asked["lr_lambdas"] = [described(fn) for fn in scheduler.lr_lambdas]
    for i, inner in enumerate(getattr(scheduler, "_schedulers", ())):
        asked |= {f"{i}.{k}": v for k, v in (asked_of_scheduler(inner) or {}).items()}
    return asked


def compare_tasks(
    saved: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]], exact_data: bool
) -> list[str]:
    """Returns lines that tell how tasks go on otherwise than they were saved.

    Args:
      saved: what each was asked for when it was saved, as far as the checkpoint knows.
      now: what each is asked for now.
      exact_data: whether the data is to go on where it was.

    Raises:
      MismatchError: if one cannot go on, with both values.
    """
    lines = []
    for i, (then, today) in enumerate(zip(saved, now, strict=True)):
        told: list[tuple[str, Any, Any]] = []
        for what in (name for name in today if name in then):
            found = _differences(what, then[what], today[what])
            if what in _REFUSED and found and (exact_data or what != "batch_size"):
                was, is_now = _told(found)
                raise MismatchError(
                    f"Task {i} was saved with {was}, and has {is_now} now: {_REFUSED[what]}. Give "
                    f"it what it was saved with, or start in a new output_dir."
                )
            told += found
        if told:
            was, is_now = _told(sorted(told))
            lines.append(
                f"Task {i} was saved with {was}, and goes on with {is_now}, as it is set up now; "
                f"weights, slots and step are the checkpoint's."
            )
    return lines


def compare_evals(
    saved: Sequence[list[str]] | None, n_saved: int, now: Sequence[list[str]]
) -> tuple[list[tuple[int, int]], list[str]]:
    """Returns which eval goes on as which, and lines that tell of those that do not.

    Evals that measure the same are the same, in their order; if as many are left over then as now,
    they are the same too, and measure something else.

    Args:
      saved: what each measured when it was saved; None if the checkpoint does not know.
      n_saved: how many there were.
      now: what each measures now.

    Returns:
      Pairs (index now, index saved), and lines.
    """
    if saved is None:
        saved = now if n_saved == len(now) else [[] for _ in range(n_saved)]
    pairs, left = [], list(range(n_saved))
    for i, names in enumerate(now):
        same = [j for j in left if saved[j] == names]
        if same:
            pairs.append((i, same[0]))
            left.remove(same[0])
    new = sorted(set(range(len(now))) - {i for i, _ in pairs})
    if not left and not new:
        return pairs, []
    if len(left) == len(new):
        pairs += zip(new, left, strict=True)
        fate = "each goes on as the one in its place"
    else:
        fate = "new ones begin, and those that are gone are dropped"
    was, is_now = ([", ".join(names) or "?" for names in each] for each in (saved, now))
    return sorted(pairs), [f"The evals were saved as {was}, and are {is_now} now: {fate}."]


def _differences(what: str, then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Returns what two values of a thing differ in: names, values then, and values now."""
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = [(f"{what} {k}", then[k], now[k]) for k in now if k in then]
    elif what in ("batch_size", "scheduler") and None in (then, now):
        pairs = []  # it is not known, or `optimizer_state` has compared it
    else:
        pairs = [(what, then, now)]
    # not a number is equal to nothing, but written alike
    return [(name, a, b) for name, a, b in pairs if a != b and repr(a) != repr(b)]


def _told(differences: Sequence[tuple[str, Any, Any]]) -> tuple[str, str]:
    """Returns the values then, and the values now, with their names."""
    first = differences[:_MANY]
    more = f" and {len(differences) - _MANY} more" if len(differences) > _MANY else ""
    was, is_now = (", ".join(f"{d[0]}={d[i]}" for d in first) + more for i in (1, 2))
    return printable(was), printable(is_now)
