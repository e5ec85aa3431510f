"""What a run says of itself: console lines, TensorBoard files, a progress bar."""

import re
import time

import pytest
from toys import line_loop, line_model, train_task

from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainingStepCallback


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
    """None in a file; where it is asked for, it ends and leaves the console lines whole."""
    Loop(line_model(), train_task()).run(2)
    assert capsys.readouterr().err == ""
    Loop(line_model(), train_task(), progress=True).run(3)

    captured = capsys.readouterr()
    assert "step" in captured.err
    assert "Step      1: Ran 1 train steps" in captured.out


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


def test_summaries_of_the_model_are_logged(tmp_path):
    """What SummaryScalar saw in the evals goes to TensorBoard as summary_<name>."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tl.Serial(tl.Dense(8), tl.SummaryScalar("mean_activation"), tl.Dense(1))
    loop = line_loop(tmp_path, model=model)
    loop.run(1)

    events = EventAccumulator(str(tmp_path / "eval"))
    events.Reload()
    assert "summary_mean_activation" in events.Tags()["scalars"]
