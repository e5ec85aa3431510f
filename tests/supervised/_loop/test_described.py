"""A Loop, and its tasks, say what they are."""

import functools

import pytest
import ranks
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import line_loop, line_model, train_task

from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, lr_schedules
from trax_torch.supervised.history import History


def facts(loop):
    """The lines of a summary, by their names."""
    return dict(line.split("  ", 1) for line in loop.summary().splitlines())


def of(loop, name):
    return facts(loop)[name].strip()


def test_a_loop_prints_as_a_few_lines(tmp_path):
    """Model, step, place and tasks; at the prompt, too."""
    loop = line_loop(tmp_path)
    loop.run(3)

    head, model, task, evals, end = str(loop).splitlines()
    assert (head, end) == ("Loop[", "]")
    assert model == f"  Serial of 41 weights (164 bytes), at step 3, saved in {tmp_path}"
    assert task.startswith("  TrainTask(generator, loss=L2Loss, optimizer=Adam(learning_rate=0.01")
    assert evals == "  EvalTask(generator, [L2Loss], n_eval_batches=1)"
    assert repr(loop) == str(loop)


def test_a_loop_that_was_not_built_prints_too():
    """As a debugger shows it in the midst of an error."""

    class Mine(Loop):
        def __init__(self):
            pass

    assert repr(Mine()) == "<Mine that was not built>"


def test_a_summary_tells_what_is_due_next(tmp_path):
    """What it says comes to pass: the next checkpoint is written at the step that it names."""
    loop = line_loop(tmp_path, permanent_checkpoint_at=lambda step: step == 10, eval_at=None)
    assert of(loop, "last checkpoint") == "none"
    assert of(loop, "next checkpoint") == "step 1: model, and the end of a run"
    loop.run(7)

    assert (of(loop, "step"), of(loop, "device"), of(loop, "ranks")) == ("7", "cpu", "1")
    assert of(loop, "last checkpoint") == "of step 7"
    assert of(loop, "next checkpoint") == "step 10: model, model_10, and the end of a run"
    assert of(loop, "next evals") == "step 10, and the end of a run"
    assert not (tmp_path / "model_10.json").exists()
    loop.run(3)
    assert (tmp_path / "model_10.json").exists()
    assert repr(loop.summary()) == loop.summary()


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
def test_a_summary_tells_of_settings_and_of_what_never_comes():
    """Nothing about checkpoints where none are written."""
    loop = line_loop(
        precision="bf16", n_accumulation_steps=2, eval_at=lambda step: False, save_at_end=False
    )
    assert of(loop, "precision") == "bfloat16 by autocast"
    assert of(loop, "settings") == "precision='bf16', n_accumulation_steps=2"
    assert of(loop, "next evals") == "none in 10,000 steps"
    assert "checkpoint" not in loop.summary()


def said_on_rank(rank):
    loop = line_loop(verbose=False)
    return of(loop, "ranks"), of(loop, "model"), repr(loop)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_each_rank_may_be_asked_by_itself(tmp_path):
    """It waits for no other, and says which it is."""
    first, second = ranks.values(tmp_path, 2, said_on_rank)

    assert (first[0], second[0]) == ("2, this is 0", "2, this is 1")
    assert first[1:] == second[1:]


def test_frozen_weights_are_told_of():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    loop = line_loop(model=model, task=train_task(optimizer=optimizers.SGD(0.1)))

    assert of(loop, "model") == "Sequential of 21 weights (84 bytes), 16 of them frozen"


MODEL = nn.Linear(3, 1)
LOADER = DataLoader(TensorDataset(torch.zeros(8, 3), torch.zeros(8, 1)), batch_size=4)
TASKS = {
    "optimizer=SGD(lr=0.1))": {"optimizer": torch.optim.SGD(MODEL.parameters(), lr=0.1)},
    "optimizer=AdamW)": {"optimizer": torch.optim.AdamW},
    "optimizer=AdamW(lr=0.3))": {"optimizer": functools.partial(torch.optim.AdamW, lr=0.3)},
    "lr_schedule=Warmup(n_warmup_steps=3, max_value=1.0))": {
        "optimizer": torch.optim.AdamW,
        "lr_schedule": lr_schedules.warmup(3, 1.0),
    },
    "lr_schedule=StepLR(step_size=2))": {
        "optimizer": torch.optim.AdamW,
        "lr_schedule": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    },
}


@pytest.mark.parametrize("end", TASKS)
def test_a_task_says_what_it_learns_from_and_how(end):
    """Optimizers and schedules of any kind, by what they are."""
    said = repr(TrainTask(LOADER, nn.MSELoss(), **TASKS[end]))

    assert said.startswith("TrainTask(DataLoader of 2 batches, loss=MSELoss, optimizer=")
    assert said.endswith(end)


def test_an_eval_task_says_what_it_measures():
    task = EvalTask(LOADER, [nn.MSELoss(), nn.L1Loss()], metric_names=["MSELoss", "mae"])

    assert (
        repr(task) == "EvalTask(DataLoader of 2 batches, [MSELoss, mae=L1Loss], n_eval_batches=2)"
    )


def test_evals_of_a_model_that_has_a_method_summary_run():
    """What layers show in TensorBoard has another name than the table, which modules may have."""

    class WithSummary(nn.Linear):
        def summary(self):
            raise AssertionError("nobody asked")

    model = nn.Sequential(WithSummary(3, 1))
    loop = line_loop(model=model)
    loop.run(1)

    assert len(loop.history.get("eval", "metrics/L2Loss")) == 1
    assert line_model().summary(torch.zeros(1, 3)).n_weights == 41


def test_a_history_prints_as_a_table():
    history = History()
    assert str(history) == repr(history) == "History of nothing yet"
    for step in (1, 2000):
        history.append("train", "loss", step, 0.5 / step)
    history.append("eval", "accuracy", 2000, 1)

    lines = str(history).splitlines()
    assert lines[0].split() == ["mode", "metric", "values", "last", "step", "value"]
    assert [line.split() for line in lines[2:]] == [
        ["eval", "accuracy", "1", "2,000", "1"],
        ["train", "loss", "2", "2,000", "0.00025"],
    ]
