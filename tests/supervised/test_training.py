"""The loop: order of events, what it says, what it refuses."""

import functools
import re
import time

import numpy as np
import pytest
import torch
from torch import nn
from toys import batches, eval_task, line_loop, line_model, train_task

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import (
    EvalTask,
    Loop,
    TrainingStepCallback,
    TrainTask,
    lr_schedules,
    training,
)


def test_a_run_brings_the_loss_down():
    loop = line_loop()
    loop.run(200)

    values = [v for _, v in loop.history.get("eval", "metrics/L2Loss")]
    assert values[-1] < 0.1 * values[0]
    assert loop.step == 200


def test_the_console_lines_are_those_of_trax(capsys):
    """Scripts that read Trax's output go on working."""
    loop = line_loop()
    loop.run(5)

    lines = capsys.readouterr().out.splitlines()
    patterns = [
        r"Will not write evaluation metrics, because output_dir is None\.",
        r"",
        r"Step      1: Total number of trainable weights: 41",
        r"Step      1: Ran 1 train steps in \d+\.\d\d secs",
        r"Step      1: train L2Loss \|  \d+\.\d{8}",
        r"Step      1: eval  L2Loss \|  \d+\.\d{8}",
        r"",
        r"Step      5: Ran 4 train steps in \d+\.\d\d secs",
        r"Step      5: train L2Loss \|  \d+\.\d{8}",
        r"Step      5: eval  L2Loss \|  \d+\.\d{8}",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


class Recorder(TrainingStepCallback):
    """Writes down what it is told."""

    def __init__(self, loop, calls, every=1):
        super().__init__(loop)
        self.calls, self.every = calls, every

    def call_at(self, step):
        return step % self.every == 0

    def on_step_begin(self, step):
        self.calls.append(("begin", step, self._loop.step))

    def on_step_end(self, step):
        self.calls.append(("end", step, self._loop.step))


def test_the_events_of_a_step_come_in_order(tmp_path, monkeypatch):
    """Step, checkpoint, permanent checkpoint, report and evals, best checkpoints."""
    calls = []
    loop = line_loop(
        tmp_path,
        task=train_task(n_steps_per_checkpoint=2, n_steps_per_permanent_checkpoint=4),
        checkpoint_low_metric="L2Loss",
        callbacks=[functools.partial(Recorder, calls=calls)],
    )
    monkeypatch.setattr(loop._saver._saver._folder, "save", lambda name, *_: calls.append(name))
    monkeypatch.setattr(loop, "run_evals", lambda _: calls.append("evals"))
    monkeypatch.setattr(loop.history, "get", lambda *_: [(loop.step, 1.0)])

    loop.run(4)

    saved = ["model", "evals", "lowest_L2Loss"]
    assert calls == [
        *[("begin", 1, 0), ("end", 1, 1), "model", "model_1", *saved[1:]],
        *[("begin", 2, 1), ("end", 2, 2), *saved],
        *[("begin", 3, 2), ("end", 3, 3)],
        *[("begin", 4, 3), ("end", 4, 4), "model", "model_4", *saved[1:]],
    ]


def test_callbacks_are_called_when_they_say(capsys):
    calls = []
    line_loop(callbacks=[functools.partial(Recorder, calls=calls, every=3)]).run(7)

    assert [(what, step) for what, step, _ in calls] == [
        ("begin", 3),
        ("end", 3),
        ("begin", 6),
        ("end", 6),
    ]


def test_a_checkpoint_comes_before_the_evals_that_might_fail(tmp_path):
    """An eval that fails cannot lose the step."""

    class Broken(nn.Module):
        def forward(self, output, targets):
            raise RuntimeError("broken metric")

    loop = line_loop(tmp_path, evals=eval_task(metrics=[Broken()]))
    with pytest.raises(tl.LayerError, match="broken metric"):
        loop.run(1)

    assert line_loop(tmp_path).step == 1


def test_tensorboard_reads_tags_steps_and_values(tmp_path):
    """The tags of Trax, at the steps of the reports, with the values of the history."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = line_loop(tmp_path)
    loop.run(10)

    found = {}
    for mode in ("train", "eval"):
        folder = tmp_path / mode
        assert len(list(folder.iterdir())) == 1
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[mode, tag] = [(e.step, e.value) for e in events.Scalars(tag)]
    training_tags = ["learning_rate", "steps per second", "loss", "gradients_l2", "weights_l2"]
    training_tags += ["share of time waiting for data"]
    assert set(found) == {
        ("train", "metrics/L2Loss"),
        ("eval", "metrics/L2Loss"),
        *(("train", f"training/{tag}") for tag in training_tags),
    }
    for (mode, tag), values in found.items():
        assert [step for step, _ in values] == [1, 5, 10]
        wanted = [value for _, value in loop.history.get(mode, tag)]
        assert [value for _, value in values] == pytest.approx(wanted, rel=1e-6)


def test_a_resumed_run_takes_the_place_of_events_after_the_checkpoint(tmp_path):
    """TensorBoard shows one value a step although a crash left some that were lost."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = line_loop(tmp_path, checkpoint_at=lambda s: s == 4, eval_at=lambda s: True)
    loop.run(6)
    time.sleep(1.1)  # event files are read in the order of the seconds they were made in
    resumed = line_loop(tmp_path, checkpoint_at=lambda s: False, eval_at=lambda s: True)
    assert resumed.step == 4
    resumed.run(4)

    events = EventAccumulator(str(tmp_path / "eval"))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("metrics/L2Loss")]
    assert [step for step, _ in scalars] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [v for _, v in scalars] == pytest.approx(
        [v for _, v in resumed.history.get("eval", "metrics/L2Loss")]
    )


def test_a_data_loader_is_gone_through_again_and_again():
    """Epoch after epoch, with every item once in each."""
    items = [(torch.full((3,), float(i)), torch.tensor([float(i)])) for i in range(6)]
    seen = []

    class Spy(nn.Module):
        def forward(self, output, target):
            seen.extend(target[:, 0].tolist())
            return ((output - target) ** 2).mean()

    loader = torch.utils.data.DataLoader(items, batch_size=2, shuffle=True)
    sample = next(iter(loader))
    task = TrainTask(loader, Spy(), optimizers.SGD(1e-4), sample_batch=sample)
    Loop(nn.Linear(3, 1), task, progress=False).run(6)

    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 3, 4, 5]


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


def test_the_eval_model_has_the_very_weights_of_the_model():
    """Shared, not copied: also after steps, and for a model built anew."""
    evaluated = tl.Serial(tl.Dense(8), tl.Tanh(), tl.Dropout(0.5, mode="eval"), tl.Dense(1))
    loop = line_loop(dropout=0.5, eval_model=evaluated)
    loop.run(3)

    assert loop.eval_model is evaluated
    for mine, theirs in zip(loop.model.parameters(), evaluated.parameters(), strict=True):
        assert mine is theirs
    with pytest.raises(ValueError, match="eval_model must be built like model"):
        line_loop(eval_model=tl.Dense(1))


def test_evals_leave_dropout_out_and_change_no_training():
    """Without an eval_model, the model is measured in eval mode, and goes on in train mode."""
    quiet, busy = line_loop(dropout=0.5), line_loop(dropout=0.5, eval_at=lambda step: True)
    quiet.run(6)
    busy.run(6)

    assert all(m.training for m in busy.model.modules())
    for a, b in zip(quiet.model.parameters(), busy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    busy.run_evals()
    first = busy.history.get("eval", "metrics/L2Loss")[-1]
    assert first[0] == 6


def test_eval_values_are_means_over_batches():
    data = list(zip(range(3), batches(7), strict=False))
    three = [batch for _, batch in data]
    loop = line_loop(evals=EvalTask(three, [tl.L2Loss()], n_eval_batches=3, sample_batch=three[0]))
    loop.run_evals()

    loss = tl.L2Loss()
    wanted = np.mean([loss((loop.model(x), y, w)) for x, y, w in three])
    assert loop.history.get("eval", "metrics/L2Loss") == [(0, pytest.approx(wanted, rel=1e-6))]


def test_several_tasks_take_turns_on_one_model(tmp_path):
    """Own optimizers and slots, own folders for logs, named by export_prefix or number."""
    tasks = [
        train_task(0, export_prefix="even", loss_name="loss_a"),
        train_task(1, loss_name="loss_b"),
    ]
    loop = line_loop(tmp_path, task=tasks, evals=[eval_task(), eval_task(101)])
    loop.run(10)

    assert [len(t.optimizer.state) for t in loop._parts.trainers] == [4, 4]
    assert loop._parts.trainers[0].optimizer is not loop._parts.trainers[1].optimizer
    folders = {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("events*")}
    assert folders == {"even/train", "1/train", "0/eval", "1/eval"}
    assert loop.history.metrics_for_mode("train").count("metrics/loss_a") == 1
    steps = [t.optimizer.state_dict()["state"][0]["step"].item() for t in loop._parts.trainers]
    assert steps == [6.0, 6.0]  # Adam's own count starts at 1


def test_which_task_says_whose_turn_it_is():
    tasks = [train_task(0, loss_name="a"), train_task(1, loss_name="b")]
    loop = line_loop(task=tasks, which_task=lambda step: int(step > 3), eval_at=lambda step: True)
    loop.run(5)

    assert [step for step, _ in loop.history.get("train", "metrics/a")] == [1, 2, 3]
    assert [step for step, _ in loop.history.get("train", "metrics/b")] == [4, 5]


def test_the_best_so_far_is_kept(tmp_path, monkeypatch):
    """lowest_<metric> is the checkpoint of the lowest value, also over a restart."""
    values = iter([3.0, 1.0, 2.0, 1.5, 0.5])

    def fake(loop):
        monkeypatch.setattr(
            loop._parts.evaluators[0], "means", lambda seed: {"L2Loss": next(values)}
        )
        return loop

    settings = {"checkpoint_at": lambda step: True, "eval_at": lambda step: True}
    loop = fake(line_loop(tmp_path, checkpoint_low_metric="L2Loss", **settings))
    loop.run(3)
    best = line_loop(None, random_seed=5)
    best.load_checkpoint(str(tmp_path), "lowest_L2Loss")
    assert best.step == 2

    # Step 3's eval comes again, since its checkpoint was saved before it; here it gives 1.5.
    again = fake(line_loop(tmp_path, checkpoint_low_metric="L2Loss", **settings))
    again.run(1)
    best.load_checkpoint(str(tmp_path), "lowest_L2Loss")
    assert best.step == 4


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


def test_data_that_is_empty_or_no_data_is_refused():
    with pytest.raises(ValueError, match="labeled_data ended after 0 batches"):
        TrainTask(iter([]), tl.L2Loss(), optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="is empty: going through it gives no batch"):
        EvalTask([], tl.L2Loss())
    with pytest.raises(TypeError, match="Call a generator function first"):
        TrainTask(batches, tl.L2Loss(), optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="batches that are tuples .*; got dict"):
        TrainTask(iter([{"x": 1}]), tl.L2Loss(), optimizers.SGD(0.1))


def test_data_that_ends_ends_the_run_with_a_reason():
    three = [batch for _, batch in zip(range(3), batches(), strict=False)]
    loop = line_loop(task=TrainTask(iter(three), tl.L2Loss(), optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match="ended after 3 batches. Give an iterator that goes on"):
        loop.run(5)
    assert loop.step == 2


def test_an_output_dir_that_cannot_be_written_is_refused_before_any_step(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"Could not make .*file/run"):
        line_loop(tmp_path / "file" / "run")


def test_eval_tasks_say_what_is_wrong_with_their_names():
    with pytest.raises(ValueError, match="got 1 names for 2 metrics"):
        eval_task(metrics=[tl.L2Loss(), tl.L2Loss()], metric_names=["a"])
    with pytest.raises(ValueError, match="Each metric needs a name of its own"):
        eval_task(metrics=[tl.L2Loss(), tl.L2Loss()])
    with pytest.raises(ValueError, match="n_eval_batches counts batches; got -1"):
        eval_task(n_eval_batches=-1)
    with pytest.raises(ValueError, match="n_eval_batches is 0 on every rank"):
        line_loop(evals=eval_task(n_eval_batches=0)).run(1)


@pytest.mark.parametrize("prefix", ["..", "a/b", "", "x" * 200, "a\n", "\0"])
def test_an_export_prefix_is_a_plain_folder_name(prefix):
    with pytest.raises(ValueError, match="plain folder name"):
        train_task(export_prefix=prefix)


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    """The step is not taken, the error names step, task and loss, and nothing of it is saved."""

    def poisoned():
        for i, (x, y, w) in enumerate(batches()):
            yield (x * np.nan if i == 4 else x), y, w

    task = TrainTask(poisoned(), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=1)
    loop = line_loop(tmp_path, task=task)
    loop.run(3)
    before = [p.clone() for p in loop.model.parameters()]

    with pytest.raises(optimizers.NonFiniteError, match="Step 4: the loss is nan") as caught:
        loop.run(3)

    assert caught.value.__notes__ == ["This was task 0 (L2Loss)."]
    assert loop.step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    assert line_loop(tmp_path).step == 3


def test_a_run_of_no_steps_does_nothing():
    loop = line_loop()
    loop.run(0)
    assert loop.step == 0
    with pytest.raises(ValueError, match="0 steps or more; got -1"):
        loop.run(-1)


def test_an_initialized_model_is_never_initialized_again():
    model = line_model()
    model.init(np.zeros((1, 3), np.float32), rng=5)
    before = [p.clone() for p in model.parameters()]

    loop = line_loop(model=model)

    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_the_seed_decides_everything():
    """Initial weights and dropout: same seed, same run; another seed, another run."""
    runs = []
    for seed in (1, 1, 2):
        loop = line_loop(dropout=0.3, random_seed=seed)
        loop.run(4)
        runs.append([p.clone() for p in loop.model.parameters()])

    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_new_rng_gives_another_generator_each_time():
    def draws():
        loop = line_loop(random_seed=3)
        return [torch.rand(1, generator=loop.new_rng()).item() for _ in range(3)]

    assert draws() == draws()
    assert len(set(draws())) == 3


def test_weights_are_updated_from_trees_and_from_mappings():
    loop = line_loop()
    ones = tuple(tuple(torch.ones_like(t) for t in w) for w in loop.model.weights)
    loop.update_weights_and_state(weights=ones)
    assert all(bool((p == 1).all()) for p in loop.model.parameters())

    zeros = {name: np.zeros(p.shape) for name, p in loop.model.named_parameters()}
    loop.update_weights_and_state(weights=zeros)
    assert all(bool((p == 0).all()) for p in loop.model.parameters())
    with pytest.raises(IndexError, match="0.weight is missing"):
        loop.update_weights_and_state(weights={})


def test_init_host_and_devices_tells_of_one_process():
    assert training.init_host_and_devices(1, 7) == (True, 1, 1, 7)
    seed = training.init_host_and_devices()[3]
    assert 0 <= seed < 2**32
    with pytest.raises(ValueError, match="n_devices=8, but the launcher started 1 processes"):
        training.init_host_and_devices(8)


def test_a_progress_bar_shows_where_it_is_wanted(capsys):
    """None in a file; where it is asked for, it ends and leaves the console lines whole."""
    Loop(line_model(), train_task()).run(2)
    assert capsys.readouterr().err == ""
    Loop(line_model(), train_task(), progress=True).run(3)

    captured = capsys.readouterr()
    assert "step" in captured.err
    assert "Step      1: Ran 1 train steps" in captured.out


def test_summaries_of_the_model_are_logged(tmp_path):
    """What SummaryScalar saw in the evals goes to TensorBoard as summary_<name>."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tl.Serial(tl.Dense(8), tl.SummaryScalar("mean_activation"), tl.Dense(1))
    loop = line_loop(tmp_path, model=model)
    loop.run(1)

    events = EventAccumulator(str(tmp_path / "eval"))
    events.Reload()
    assert "summary_mean_activation" in events.Tags()["scalars"]


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


def test_the_clock_runs_while_the_loop_does():
    """Steps per second are right however the steps are spread over runs."""

    class Slow(TrainingStepCallback):
        def on_step_end(self, step):
            time.sleep(0.01)

    loop = line_loop(callbacks=[Slow], task=train_task(n_steps_per_checkpoint=20))
    loop.run(1)
    for _ in range(19):
        loop.run(1)
        time.sleep(0.005)

    speed = loop.history.get("train", "training/steps per second")[-1][1]
    assert 10 < speed < 100


def test_the_best_is_kept_though_an_eval_was_not_finite(tmp_path, monkeypatch):
    values = iter([float("nan"), 3.0, 2.0])
    at = {"checkpoint_at": lambda step: True, "checkpoint_low_metric": "L2Loss"}
    loop = line_loop(tmp_path, **at)
    monkeypatch.setattr(loop._parts.evaluators[0], "means", lambda seed: {"L2Loss": next(values)})
    loop.run(3)

    best = line_loop(None)
    best.load_checkpoint(str(tmp_path), "lowest_L2Loss")
    assert best.step == 3
    with pytest.raises(ValueError, match="Several eval tasks measure 'L2Loss'"):
        line_loop(None, evals=[eval_task(), eval_task(1)], checkpoint_low_metric="L2Loss")


def test_a_run_that_another_process_overtook_is_told(tmp_path):
    """Nothing is written over what the other one trained."""
    first = line_loop(tmp_path)
    first.run(5)
    line_loop(tmp_path).run(5)

    with pytest.raises(CheckpointError, match="Another process has trained into"):
        first.run(5)
    first.load_checkpoint()
    first.run(5)
    assert line_loop(tmp_path).step == 15


def test_what_is_not_finite_is_not_saved(tmp_path):
    """A rate that is no number stops before the step; statistics that are none stop the save."""
    task = train_task(lr_schedule=lambda step: float("nan") if step == 3 else 0.01)
    loop = line_loop(tmp_path, task=task)
    with pytest.raises(ValueError, match="Step 3: the learning rate is nan"):
        loop.run(5)
    assert all(bool(p.isfinite().all()) for p in loop.model.parameters())

    loop.model.sublayers[0].weight.data[0, 0] = torch.nan
    with pytest.raises(optimizers.NonFiniteError, match="0.weight of the weights is not finite"):
        loop.save_checkpoint("model")
    assert line_loop(tmp_path, task=train_task()).step == 1


def test_a_buffer_may_hold_infinities(tmp_path):
    """Masks of attention do, and are saved."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

        def forward(self, x):
            return self.linear(x)

    task = TrainTask(batches(weights=False), nn.MSELoss(), optimizers.SGD(0.01))
    Loop(Masked(), task, output_dir=str(tmp_path), progress=False).run(1)

    assert (tmp_path / "model.json").exists()


def test_evals_come_with_checkpoints_unless_told_otherwise(tmp_path):
    loop = line_loop(tmp_path, checkpoint_at=lambda step: step % 3 == 0)
    loop.run(7)

    assert [step for step, _ in loop.history.get("eval", "metrics/L2Loss")] == [3, 6]


def test_what_a_step_cannot_do_is_refused_when_the_loop_is_built():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(TypeError, match="ReduceLROnPlateau follows a metric"):
        line_loop(task=train_task(optimizer=torch.optim.Adam, lr_schedule=lambda o: plateau(o)))
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
        line_loop(task=train_task(optimizer=torch.optim.LBFGS))


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


def test_a_metric_that_is_not_one_number_is_named():
    evals = eval_task(metrics=[tl.Fn("Errors", lambda y, t: (y - t) ** 2)])
    with pytest.raises(ValueError, match=r"Errors gives shape \(4, 1\)"):
        line_loop(evals=evals).run_evals()
