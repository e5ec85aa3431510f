"""What a run says of itself: console lines, TensorBoard files, a progress bar."""

import re
import types

import numpy as np
import pytest
import torch
from toys import line_loop, line_model, train_task

from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, Loop, TrainingStepCallback, TrainTask
from trax_torch.supervised._logging import accumulators


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


def test_a_progress_bar_shows_where_it_is_wanted(capsys):
    """None in a file; where it is asked for, it ends and leaves the console lines whole.

    Beside it stands the loss of the last step.
    """
    Loop(line_model(), train_task()).run(2)
    assert capsys.readouterr().err == ""
    loop = Loop(line_model(), train_task(), progress=True)
    loop.run(3)

    captured = capsys.readouterr()
    assert "step" in captured.err
    assert f"loss={loop.loss:.4g}]" in captured.err
    assert "Step      1: Ran 1 train steps" in captured.out


def test_the_clock_runs_while_the_loop_does(monkeypatch):
    """Steps per second are right however the steps are spread over runs."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(accumulators, "time", clock)

    class Slow(TrainingStepCallback):
        def on_step_end(self, step):
            clock.now += 0.25

    loop = line_loop(callbacks=[Slow], task=train_task(n_steps_per_checkpoint=20))
    for _ in range(20):
        loop.run(1)
        clock.now += 3.0

    speed = loop.history.get("train", "training/steps per second")[-1][1]
    assert speed == pytest.approx(4)


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

    at = {"eval_at": lambda s: True, "save_at_end": False}
    loop = line_loop(tmp_path, checkpoint_at=lambda s: s == 4, **at)
    loop.run(6)
    resumed = line_loop(tmp_path, checkpoint_at=lambda s: False, **at)
    assert resumed.step == 4
    resumed.run(4)

    events = EventAccumulator(str(tmp_path / "eval"))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("metrics/L2Loss")]
    assert [step for step, _ in scalars] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [v for _, v in scalars] == pytest.approx(
        [v for _, v in resumed.history.get("eval", "metrics/L2Loss")]
    )


def test_summaries_of_the_model_are_logged(tmp_path):
    """What SummaryScalar saw in the evals goes to TensorBoard as summary_<name>."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tl.Serial(tl.Dense(8), tl.SummaryScalar("mean_activation"), tl.Dense(1))
    loop = line_loop(tmp_path, model=model)
    loop.run(1)

    events = EventAccumulator(str(tmp_path / "eval"))
    events.Reload()
    assert "summary_mean_activation" in events.Tags()["scalars"]


# Several tasks


def two_tasks(folder=None, prefixes=(None, None), **names):
    """Tasks whose values are 1 and 9, and evals that give 0 and 1, with names alike or not."""
    x = torch.ones(4, 1)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    tasks = [
        TrainTask(
            [(x, x * k)],
            torch.nn.MSELoss(),
            still,
            n_steps_per_checkpoint=4,
            export_prefix=prefix,
            loss_name=names.get(f"loss_{k}"),
        )
        for k, prefix in zip((1, 3), prefixes, strict=True)
    ]
    evals = [
        EvalTask([(x, x * k)], torch.nn.MSELoss(), [names.get(f"metric_{k}", "error")])
        for k in (0, 1)
    ]
    return line_loop(folder, model=model, task=tasks, evals=evals)


def test_tasks_with_one_name_are_told_apart(capsys):
    """By their numbers, in the history and on the console."""
    loop = two_tasks()
    loop.run(4)

    said = capsys.readouterr().out
    for mode, name, wanted in (
        ("train", "0/metrics/MSELoss", 1.0),
        ("train", "1/metrics/MSELoss", 9.0),
        ("train", "0/training/loss", 1.0),
        ("train", "1/training/loss", 9.0),
        ("eval", "0/metrics/error", 0.0),
        ("eval", "1/metrics/error", 1.0),
    ):
        assert loop.history.get(mode, name)[-1] == (4, wanted)
        if "metrics" in name:
            shown = name.replace("metrics/", "")
            assert f"Step      4: {mode:5s} {shown:>9s} |  {wanted:.8f}\n" in said
    assert not [n for n in loop.history.metrics_for_mode("train") if not n.startswith(("0/", "1/"))]
    assert loop.run_evals() == {"0/metrics/error": 0.0, "1/metrics/error": 1.0}


def test_names_of_one_task_alone_are_as_ever():
    """So are all names where there is one task."""
    loop = two_tasks(loss_1="a", loss_3="b", metric_1="other")
    loop.run(4)

    assert loop.history.get("train", "metrics/a")[-1] == (4, 1.0)
    assert loop.history.get("train", "metrics/b")[-1] == (4, 9.0)
    assert loop.run_evals() == {"metrics/error": 0.0, "metrics/other": 1.0}


def test_prefixes_of_logs_tell_tasks_apart_in_the_history():
    loop = two_tasks(prefixes=("en", "fr"))
    loop.run(4)
    assert loop.history.get("train", "en/metrics/MSELoss")[-1] == (4, 1.0)
    assert loop.history.get("train", "fr/training/loss")[-1] == (4, 9.0)

    loop = two_tasks(prefixes=("en", "en"))  # which do not: their numbers do
    loop.run(4)
    assert loop.history.get("train", "1/metrics/MSELoss")[-1] == (4, 9.0)


def test_tensorboard_has_the_tags_of_trax_in_the_folder_of_each_task(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    two_tasks(tmp_path).run(4)
    for place, tag, wanted in (
        ("0/train", "metrics/MSELoss", 1.0),
        ("1/train", "training/loss", 9.0),
        ("1/eval", "metrics/error", 1.0),
    ):
        events = EventAccumulator(str(tmp_path / place))
        events.Reload()
        assert events.Scalars(tag)[-1].value == wanted


def test_what_layers_show_in_evals_is_of_each_task():
    """And what is logged by hand is nobody's."""
    model = tl.Serial(tl.Dense(1), tl.SummaryScalar("mean"))
    evals = [EvalTask([(np.full((2, 3), k, np.float32),) * 2], Mean(), ["m"]) for k in (0, 1)]
    loop = line_loop(model=model, evals=evals)
    found = loop.run_evals()
    loop.log_summary({"mine": 0.5}, None, "training/", "train")

    for k in ("0", "1"):
        ((_, value),) = loop.history.get("eval", f"{k}/summary_mean")
        assert value == pytest.approx(found[f"{k}/metrics/m"])
    assert loop.history.get("train", "training/mine") == [(0, 0.5)]


class Mean(torch.nn.Module):
    def forward(self, output, target):
        return output.mean()
