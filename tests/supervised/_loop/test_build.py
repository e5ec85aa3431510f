"""What a Loop is given fits together, in whatever form it comes, or is refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toys import batches, line_loop, line_model, train_task

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import EvalTask, Loop, TrainTask, lr_schedules


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"checkpoint_low_metric": "Lost"}, ValueError, "got 'Lost', and they measure"),
        ({"n_devices": 4}, ValueError, "torchrun --nproc-per-node=4"),
        ({"task": []}, ValueError, "at least one TrainTask"),
        ({"task": "task"}, TypeError, "tasks are TrainTasks; got str"),
        ({"evals": "task"}, TypeError, "eval_tasks are EvalTasks; got str"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(kwargs, error, match):
    if kwargs.get("task") == []:
        with pytest.raises(error, match=match):
            Loop(line_model(), [])
        return
    with pytest.raises(error, match=match):
        line_loop(**kwargs)


def test_a_batch_that_does_not_fit_is_refused_before_any_step():
    """The message says what loss and model take, and what to yield."""
    with pytest.raises(
        ValueError,
        match=r"L2Loss takes 3 items \(output, targets, weights\), but the batch has 2 and the "
        r"model takes 1 of them. Yield \(inputs, targets, weights\), or use a loss without",
    ):
        line_loop(task=TrainTask(batches(weights=False), tl.L2Loss(), optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match="Yield 2 items a batch, or use a loss that takes them"):
        line_loop(task=TrainTask(batches(), nn.MSELoss(), optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match="L2Loss takes 3 items"):
        line_loop(evals=EvalTask(batches(weights=False), tl.L2Loss()))
    with pytest.raises(ValueError, match="model takes 2 inputs, but a batch has 1 items"):
        model = tl.Serial(tl.Add(), tl.Dense(1))
        Loop(model, TrainTask(iter([(np.ones(2),)]), nn.MSELoss(), optimizers.SGD(0.1)))


def test_a_loss_that_is_not_one_number_is_refused():
    loss = tl.Fn("Differences", lambda y, t, w: y - t)
    with pytest.raises(ValueError, match=r"A loss is one number; Differences gives .*\(4, 1\)"):
        line_loop(task=TrainTask(batches(), loss, optimizers.SGD(0.1)))


def test_token_ids_that_are_not_integers_are_refused_before_any_step():
    data = iter([(np.zeros((2, 4), np.float32),) * 3] * 3)
    task = TrainTask(data, tl.WeightedCategoryCrossEntropy(), optimizers.SGD(0.1))
    model = models.TransformerLM(9, 8, 8, 1, 2)
    with pytest.raises(tl.LayerError, match="token ids, which are integers; got torch.float32"):
        Loop(model, task)


def test_an_output_dir_that_cannot_be_written_is_refused_before_any_step(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"Could not make .*file/run"):
        line_loop(tmp_path / "file" / "run")


# Optimizers and rates


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        lambda model: torch.optim.AdamW,
        lambda model: functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        lambda model: optimizers.Adam,
        lambda model: optimizers.SGD(0.01),
    ],
)
def test_optimizers_come_in_every_form(make):
    """An instance, a class, a partial, a recipe, a recipe's class."""
    model = nn.Sequential(nn.Linear(3, 1))
    before = model[0].weight.clone()
    task = TrainTask(batches(weights=False), nn.MSELoss(), make(model))

    Loop(model, task, progress=False).run(3)

    assert not torch.equal(before, model[0].weight)


def test_an_optimizer_of_another_model_is_refused():
    stranger = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="2 parameters that are not the model's"):
        Loop(nn.Linear(3, 1), TrainTask(batches(weights=False), nn.MSELoss(), stranger))
    with pytest.raises(TypeError, match="An optimizer is a recipe such as"):
        Loop(nn.Linear(3, 1), TrainTask(batches(weights=False), nn.MSELoss(), "adam"))


def rates_of(loop):
    return [rate for _, rate in loop.history.get("train", "training/learning_rate")]


def test_learning_rates_follow_a_schedule_or_a_torch_scheduler():
    """The k-th step uses schedule(k); a scheduler made of the optimizer steps along."""
    schedule = lr_schedules.warmup(3, 0.4)
    ways = {
        "schedule": schedule,
        "class": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        "maker": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        "none": None,
    }
    seen = {}
    for name, way in ways.items():
        task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.1), lr_schedule=way)
        loop = line_loop(task=task, eval_at=lambda step: True)
        loop.run(4)
        seen[name] = rates_of(loop)

    assert seen["schedule"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert seen["class"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert seen["maker"] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert seen["none"] == [0.1] * 4


def test_schedules_that_are_none_are_refused():
    with pytest.raises(TypeError, match="not one made already"):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        train_task(lr_schedule=torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with pytest.raises(TypeError, match="function from a step to a rate"):
        train_task(lr_schedule=0.1)
    with pytest.raises(ValueError, match="gives nan at step 1"):
        train_task(lr_schedule=lambda step: float("nan"))
    with pytest.raises(TypeError, match="a rate is a number"):
        train_task(lr_schedule=lambda step: "fast")
    with pytest.raises(TypeError, match="made no torch scheduler"):
        line_loop(task=train_task(lr_schedule=lambda x, y: x))
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": r} for r in (0.1, 0.2)]
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1))
    groups = [{"params": m.parameters(), "lr": r} for m, r in zip(model, (0.1, 0.2), strict=True)]
    task = train_task(optimizer=torch.optim.SGD(groups), lr_schedule=lr_schedules.constant(0.1))
    with pytest.raises(ValueError, match=r"groups of rates \[0.1, 0.2\]"):
        line_loop(model=model, task=task)


def test_what_a_step_cannot_do_is_refused_when_the_loop_is_built():
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
        line_loop(task=train_task(optimizer=torch.optim.LBFGS))


# Weights of all kinds


def test_weights_that_are_frozen_or_left_to_nobody_are_no_trouble():
    """An optimizer of model.parameters() with frozen ones; and one that holds but the head."""
    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)

    def loop_with(make, frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        model[0].requires_grad_(not frozen)
        before = model[0].weight.clone()
        task = TrainTask([(x, y)], nn.MSELoss(), make(model))
        loop = Loop(model, task, eval_at=lambda step: True, progress=False)
        loop.run(5)
        assert torch.equal(model[0].weight, before)
        return [v for _, v in loop.history.get("train", "training/gradients_l2")]

    loop_with(lambda m: torch.optim.SGD(m.parameters(), lr=0.01), frozen=True)
    norms = loop_with(lambda m: torch.optim.SGD(m[1].parameters(), lr=1e-9), frozen=False)
    assert norms == pytest.approx([norms[0]] * 5, rel=1e-4)


def test_weights_thawed_later_are_trained_or_refused():
    """Their gradients are not added up over steps."""

    def loop(optimizer):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        model[0].requires_grad_(False)
        task = train_task(optimizer=optimizer(model))
        made = line_loop(model=model, task=task)
        made.run(1)
        model[0].requires_grad_(True)
        return made

    mine = loop(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    norms = []
    for _ in range(3):
        mine.run(1)
        norms.append(mine._parts.trainers[0].params[0].grad.norm().item())
    assert len(mine._parts.trainers[0].params) == 4
    assert max(norms) < 2.5 * min(norms)
    with pytest.raises(ValueError, match="2 weights are trained now that were frozen"):
        loop(lambda model: optimizers.Adam(0.01)).run(1)


def test_sparse_gradients_and_losses_that_look_at_their_data_work():
    """nn.Embedding(sparse=True); and a foreign loss after a model of layers."""

    class Picky(nn.Module):
        def forward(self, output, targets, weights):
            return ((output - targets) ** 2).mean() if weights.any() else output.sum() * 0

    line_loop(task=TrainTask(batches(), Picky(), optimizers.SGD(0.01))).run(2)
    words = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    data = [(np.array([[1, 2], [3, 4]]), np.array([0, 1]))]
    task = TrainTask(data, nn.CrossEntropyLoss(), functools.partial(torch.optim.SGD, lr=0.1))
    Loop(words, task, progress=False).run(2)
