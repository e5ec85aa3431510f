"""What changed between two runs is told in one line, or refused with both values."""

import functools

import pytest
import torch
from torch import nn
from toys import state_of

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch._errors import MismatchError
from trax_torch.supervised import EvalTask, Loop, TrainTask, lr_schedules
from trax_torch.supervised._checkpoint.described import described

schedulers = torch.optim.lr_scheduler


def rows(n=4):
    x = torch.arange(24.0)[:, None] / 24
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 2 * x), batch_size=n)


def loop_of(
    folder,
    schedule=None,
    data=None,
    loss=None,
    evals=None,
    two_groups=False,
    optimizer=None,
    resume_data="exact",
    **numbers,
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    groups = [{"params": part.parameters()} for part in model] if two_groups else model.parameters()
    optimizer = optimizer or torch.optim.AdamW(groups, **{"lr": 0.1, **numbers})
    task = TrainTask(data or rows(), loss or nn.MSELoss(), optimizer, schedule)
    return Loop(
        model,
        task,
        eval_tasks=evals,
        output_dir=folder and str(folder),
        checkpoint_at=lambda step: True,
        eval_at=lambda step: False,
        save_at_end=False,
        random_seed=0,
        resume_data=resume_data,
        progress=False,
    )


def cosine(n):
    return functools.partial(schedulers.CosineAnnealingLR, T_max=n)


def by_lambda(schedule):
    return functools.partial(schedulers.LambdaLR, lr_lambda=schedule)


def one_after_another(n):
    def make(optimizer):
        parts = [schedulers.ConstantLR(optimizer, 0.1), schedulers.StepLR(optimizer, n)]
        return schedulers.SequentialLR(optimizer, parts, milestones=[2])

    return make


def of_warmup(n_steps):
    """As libraries write schedules: a function that closes over its settings."""
    return lambda step: min(1.0, step / n_steps)


REFUSED = {
    "another setting of the scheduler": (
        {"schedule": cosine(10)},
        {"schedule": cosine(100)},
        "scheduler T_max=10, and has scheduler T_max=100 now: .*may change between runs",
    ),
    "another scheduler": (
        {"schedule": cosine(10)},
        {"schedule": functools.partial(schedulers.StepLR, step_size=10)},
        "scheduler kind=CosineAnnealingLR, and has scheduler kind=StepLR",
    ),
    "another rate below a scheduler": (
        {"schedule": cosine(10)},
        {"schedule": cosine(10), "lr": 0.2},
        r"base_lrs=\[0.1\], and has .*base_lrs=\[0.2\]",
    ),
    "another schedule in a scheduler": (
        {"schedule": by_lambda(lr_schedules.warmup(10, 1.0))},
        {"schedule": by_lambda(lr_schedules.warmup(99, 1.0))},
        "n_warmup_steps=10.*n_warmup_steps=99",
    ),
    "another number in a closure": (
        {"schedule": by_lambda(of_warmup(10))},
        {"schedule": by_lambda(of_warmup(99))},
        "lr_lambdas=.*10.*99",
    ),
    "another setting of an inner scheduler": (
        {"schedule": one_after_another(3)},
        {"schedule": one_after_another(4)},
        "scheduler 1.step_size=3, and has scheduler 1.step_size=4",
    ),
    "another number of groups": (
        {"two_groups": True},
        {},
        "group of 0.module.1.weight=1, .* and has group of 0.module.1.weight=0",
    ),
    "another batch size": (
        {"data": rows(2)},
        {"data": rows(8)},
        r"batch_size=2, and has batch_size=8 now: .*resume_data='restart'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_is_refused_with_both_values_and_changes_nothing(tmp_path, name):
    saved, now, match = REFUSED[name]
    loop_of(tmp_path, **saved).run(4)
    loop = loop_of(None, **now)
    before = state_of(loop)

    with pytest.raises(MismatchError, match=match):
        loop.load_checkpoint(str(tmp_path))
    assert loop.step == 0
    assert all(torch.equal(before[k], v) for k, v in state_of(loop).items())


TOLD = {
    "another decay": (
        {"weight_decay": 0.0},
        {"weight_decay": 0.5},
        "Task 0 was saved with group 0 weight_decay=0.0, and goes on with group 0 weight_decay=0.5",
    ),
    "another rate": ({"lr": 0.1}, {"lr": 0.2}, "group 0 lr=0.1, and goes on with group 0 lr=0.2"),
    "another rate of a recipe": (
        {"optimizer": optimizers.Adam(0.1)},
        {"optimizer": optimizers.Adam(0.2)},
        "lr_schedule=0.1, and goes on with lr_schedule=0.2",
    ),
    "another function of the step": (
        {"schedule": lr_schedules.warmup(10, 0.1)},
        {"schedule": lr_schedules.warmup(99, 0.1)},
        "n_warmup_steps=10, max_value=0.1), and goes on with lr_schedule=Warmup(n_warmup_steps=99",
    ),
    "another loss": (
        {"loss": nn.SmoothL1Loss()},
        {"loss": nn.SmoothL1Loss(beta=0.5)},
        "(reduction=mean, beta=1.0), and goes on with loss=SmoothL1Loss(reduction=mean, beta=0.5), "
        "as it is set up now; weights, slots and step are the checkpoint's.",
    ),
    "another batch size of data that begins anew": (
        {"data": rows(2)},
        {"data": rows(8), "resume_data": "restart"},
        "batch_size=2, and goes on with batch_size=8",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_goes_on_otherwise_is_told_in_one_line(tmp_path, capsys, name):
    saved, now, line = TOLD[name]
    loop_of(tmp_path, **saved).run(4)
    capsys.readouterr()
    loop = loop_of(tmp_path, **now)
    told = [each for each in capsys.readouterr().out.splitlines() if "was saved with" in each]

    assert len(told) == 1
    assert line in told[0]
    loop.run(1)
    assert loop.step == 5
    if "weight_decay" in now or "lr" in now:
        (group,) = loop.optimizers[0].param_groups
        assert now.items() <= group.items()
    loop_of(tmp_path, **now)
    assert "was saved with" not in capsys.readouterr().out  # it is what was asked for by now


@pytest.mark.parametrize("schedule", [None, cosine(10), by_lambda(of_warmup(10))])
def test_where_nothing_changed_nothing_is_told(tmp_path, capsys, schedule):
    loop_of(tmp_path, schedule).run(4)
    loop_of(tmp_path, schedule)

    assert "saved" not in capsys.readouterr().out.replace("Resumed from", "")


def endless():
    while True:
        yield torch.ones(2, 1), torch.ones(2, 1)


def eval_of(name):
    return EvalTask(endless(), nn.MSELoss(), [name])


def places_of(loop):
    return [task.stream.n_taken for task in loop.eval_tasks]


@pytest.mark.parametrize(
    ("saved", "now", "goes_on", "fate"),
    [
        ("a", "ab", [True, False], "['a'], and are ['a', 'b'] now: new ones begin"),
        ("a", "ba", [False, True], "['a'], and are ['b', 'a'] now: new ones begin"),
        ("a", "aa", [True, False], "['a'], and are ['a', 'a'] now: new ones begin"),
        (
            "ab",
            "b",
            [True],
            "['a', 'b'], and are ['b'] now: new ones begin, and those that are gone",
        ),
        ("a", "", [], "['a'], and are [] now"),
        ("", "a", [False], "[], and are ['a'] now"),
        (
            "ab",
            "ac",
            [True, True],
            "['a', 'b'], and are ['a', 'c'] now: each goes on as the one in its",
        ),
        ("ab", "ab", [True, True], None),
        ("ab", "ba", [True, True], None),
    ],
)
def test_evals_may_come_and_go(tmp_path, capsys, saved, now, goes_on, fate):
    """Each finds its place in its data by what it measures."""

    def loop(names):
        return loop_of(tmp_path, evals=[eval_of(name) for name in names])

    first = loop(saved)
    first.run(1)
    for _ in range(3):
        first.run_evals()
    first.save_checkpoint("model")
    (place,) = set(places_of(first)) or {1}
    capsys.readouterr()
    resumed = loop(now)
    told = [each for each in capsys.readouterr().out.splitlines() if "evals were" in each]

    assert resumed.step == 1
    assert places_of(resumed) == [place if each else 1 for each in goes_on]
    assert len(told) == (fate is not None)
    assert all(fate in each for each in told)
    resumed.run(1)


def test_words_for_things_are_alike_in_each_process_and_tell_settings():
    assert described(lr_schedules.constant(0.5)) == "Constant(value=0.5)"
    assert described(functools.partial(of_warmup, n_steps=3)) == "of_warmup(n_steps=3)"
    assert described(of_warmup(3)) != described(of_warmup(4))
    assert described(lambda step: 0.5 * step) != described(lambda step: 0.25 * step)
    assert described(tl.Serial(tl.Select([0, 1]), tl.L2Loss())).startswith("Serial")
    assert "0x" not in described([object(), of_warmup, tl.L2Loss(), print, torch.optim.Adam])
    assert described(["/home/somebody/data"]) == "[a path]"
