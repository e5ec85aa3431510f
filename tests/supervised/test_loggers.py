"""Loggers get what the history gets, from one rank of several; none ends a run."""

import logging

import numpy as np
import pytest
import ranks
import torch
from noting import EVERY_5, Failing, Notes, by_name, csv_rows, recorded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import batches, history_of, line_loop, line_model, state_of, train_task

from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainingStepCallback, TrainTask, loggers
from trax_torch.supervised._logging import Accumulators
from trax_torch.supervised._loop import AfterStep


def test_loggers_get_what_the_history_gets_at_once_for_each_step():
    notes, others = Notes(), Notes()
    loop = line_loop(loggers=[notes, others])
    loop.run(10)

    assert by_name(notes.rows) == recorded(loop)
    assert [step for step, _ in notes.rows] == [1, 5, 10]
    assert {"train/metrics/L2Loss", "eval/metrics/L2Loss"} <= set(notes.rows[0][1])
    assert notes.rows == others.rows
    assert notes.closed == [3]


def test_several_tasks_are_told_apart_as_in_the_history():
    notes = Notes()
    tasks = [train_task(0), train_task(1)]
    loop = Loop(line_model(), tasks, random_seed=0, progress=False, loggers=notes)
    loop.run(5)

    assert by_name(notes.rows) == recorded(loop)
    assert {"train/0/metrics/L2Loss", "train/1/metrics/L2Loss"} <= set(notes.rows[-1][1])


def test_what_users_log_and_measure_by_hand_goes_to_loggers_too():
    notes = Notes()
    loop = line_loop(loggers=notes, save_at_end=False)
    loop.run(2)
    values = loop.run_evals()
    loop.log_summary({"temperature": 0.5}, None, "my/", "train", stdout=False)

    assert notes.rows[-2:] == [
        (2, {f"eval/{name}": value for name, value in values.items()}),
        (2, {"train/my/temperature": 0.5}),
    ]


def test_settings_come_once_before_the_first_value():
    notes = Notes()
    loop = line_loop(loggers=notes, n_accumulation_steps=2)
    loop.run(1)
    loop.run(1)

    (found,) = notes.hparams
    assert found["n_accumulation_steps"] == 2
    assert found["precision"] is None
    assert found["random_seed"] == 0
    assert (found["n_parameters"], found["n_trainable_parameters"]) == (41, 41)
    assert found["loss"] == "L2Loss"
    assert found["optimizer/lr"] == 0.01
    assert all(x is None or isinstance(x, (bool, int, float, str)) for x in found.values())


def test_settings_tell_groups_and_tasks_apart():
    notes = Notes()
    model = torch.nn.Linear(3, 1)
    adam = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}])
    tasks = [
        TrainTask(batches(weights=False), torch.nn.MSELoss(), adam),
        TrainTask(batches(weights=False), torch.nn.L1Loss(), optimizers.Adam(0.25)),
    ]
    Loop(model, tasks, progress=False, loggers=notes).run(1)

    (found,) = notes.hparams
    assert (found["task0/loss"], found["task1/loss"]) == ("MSELoss", "L1Loss")
    assert found["task0/optimizer/name"] == "AdamW"
    assert found["task0/optimizer/group1/lr"] == 0.5
    assert found["task1/optimizer/lr"] == 0.25
    assert found["task0/optimizer/group0/betas"] == "(0.9, 0.999)"


def test_images_come_as_arrays():
    notes = Notes()
    loop = line_loop(loggers=notes)
    loop.log_summary({"picture": np.zeros((4, 6, 3))}, None, "", "eval", stdout=False)

    assert notes.images == [("eval/picture", (4, 6, 3), 0)]


# Training's values every so many steps.


def test_training_is_logged_every_n_steps_apart_from_evals_and_saves(tmp_path):
    notes = Notes()
    at = {"checkpoint_at": lambda step: step == 100, "eval_at": lambda step: step == 100}
    loop = line_loop(tmp_path, loggers=notes, log_every=10, **at)
    loop.run(100)

    found = by_name(notes.rows)
    assert [step for step, _ in found["train/metrics/L2Loss"]] == list(range(10, 101, 10))
    assert [step for step, _ in found["eval/metrics/L2Loss"]] == [100]
    assert found == recorded(loop)
    assert [step for step, _ in notes.rows] == list(range(10, 101, 10))  # evals in the same row


def test_values_are_the_means_over_the_steps_since_the_last_time():
    """Evals between make a report of their own, and no step counts twice or not at all."""
    losses = []

    class Each(TrainingStepCallback):
        def on_step_end(self, step):
            losses.append(self._loop.loss)

    loop = line_loop(log_every=4, eval_at=lambda step: step == 6, callbacks=[Each])
    loop.run(8)

    spans = {4: losses[:4], 6: losses[4:6], 8: losses[6:8]}
    assert loop.history.get("train", "training/loss") == [
        (step, pytest.approx(sum(span) / len(span), rel=1e-12)) for step, span in spans.items()
    ]
    assert [step for step, _ in loop.history.get("train", "training/weights_l2")] == [4, 6, 8]


def test_logging_often_changes_no_step():
    often, seldom = line_loop(log_every=1, dropout=0.5), line_loop(dropout=0.5)
    often.run(7)
    seldom.run(7)

    assert all(torch.equal(x, state_of(seldom)[name]) for name, x in state_of(often).items())
    assert history_of(often)["eval"] == history_of(seldom)["eval"]


def test_no_number_is_asked_of_the_device_between_reports(monkeypatch):
    """Accumulators stay where they are; only a report reads them."""
    read = []
    means = Accumulators.means
    monkeypatch.setattr(
        Accumulators, "means", lambda self, world: read.append(1) or means(self, world)
    )
    loop = line_loop(log_every=5, eval_at=lambda step: False, save_at_end=False)
    loop.run(14)

    assert len(read) == 2


def test_the_loss_can_be_read_after_each_step():
    loop = line_loop(eval_at=lambda step: True)
    assert loop.loss is None
    for _ in range(3):
        loop.run(1)
        assert loop.loss == loop.history.get("train", "training/loss")[-1][1]


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_log_every_is_a_count_of_steps(bad):
    with pytest.raises(ValueError, match="log_every is after how many steps"):
        line_loop(log_every=bad)


def test_a_run_that_was_cut_between_two_logs_goes_on_with_the_same_means(tmp_path):
    """The checkpoint of step 6 holds the sums of steps 5 and 6."""
    at = {"checkpoint_at": lambda step: step == 6, "eval_at": lambda step: False}
    more = {"log_every": 4, "save_at_end": False, **at}
    whole, cut = line_loop(**more), line_loop(tmp_path, **more)
    whole.run(12)
    cut.run(7)
    resumed = line_loop(tmp_path, **more)
    resumed.run(6)

    assert resumed.step == 12
    assert history_of(resumed) == history_of(whole)


def test_what_a_crash_kept_from_being_logged_is_logged_at_first(tmp_path, monkeypatch):
    """A checkpoint comes before the log of its step."""

    def crash(*args):
        raise KeyError("a crash")

    at = {"checkpoint_at": lambda step: step == 4, "eval_at": lambda step: False}
    more = {"log_every": 4, "save_at_end": False, **at}
    whole = line_loop(**more)
    whole.run(8)
    notes = Notes()
    with monkeypatch.context() as patch, pytest.raises(KeyError, match="a crash"):
        patch.setattr(AfterStep, "report", crash)
        line_loop(tmp_path, **more).run(8)
    resumed = line_loop(tmp_path, loggers=notes, **more)
    resumed.run(4)

    assert [step for step, _ in notes.rows] == [4, 8]
    assert history_of(resumed) == history_of(whole)


# What fails.


@pytest.mark.parametrize("verbose", [True, False])
def test_a_logger_that_raises_is_said_once_and_ends_no_run(capsys, caplog, verbose):
    notes, twin = Notes(), line_loop()
    loop = line_loop(loggers=[Failing(), notes], verbose=verbose)
    loop.run(10)
    twin.run(10)

    caplog.set_level(logging.WARNING)
    said = capsys.readouterr().out.splitlines() if verbose else caplog.messages
    said = [line for line in said if "No space left on device" in line]
    assert len(said) == 1
    assert said[0].startswith("Failing.begin failed: OSError: [Errno 28]")
    assert "The run goes on" in said[0]
    assert history_of(loop) == history_of(twin)
    assert by_name(notes.rows) == recorded(loop)


def test_loggers_are_told_of_an_error_that_ends_the_run_and_closed():
    class Raise(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 7:
                raise KeyError("mine")

    class Told(Notes):
        def failed(self, error):
            self.closed.append(repr(error))

    told = Told()
    loop = line_loop(loggers=told, callbacks=[Raise])
    with pytest.raises(KeyError, match="mine"):
        loop.run(10)

    assert told.closed == ["KeyError('mine')", 2]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (loggers.CSVLogger, "loggers are objects; got the class CSVLogger. Build it"),
        (print, "builtin_function_or_method lacks log, log_hparams, log_image, close"),
        (["metrics.csv"], "A logger has the methods log, log_hparams, .*; str lacks log"),
    ],
)
def test_what_is_no_logger_is_refused(bad, match):
    with pytest.raises(TypeError, match=match):
        line_loop(loggers=bad)


def test_loggers_that_ship_fit_the_protocol(tmp_path):
    for each in (loggers.CSVLogger, loggers.JSONLinesLogger, loggers.TensorBoardLogger):
        assert isinstance(each(tmp_path / "x"), loggers.Logger)
    assert isinstance(Notes(), loggers.Logger)


# TensorBoard.


def test_tensorboard_shows_values_images_and_settings(tmp_path):
    notes = Notes()
    logger = loggers.TensorBoardLogger(tmp_path)
    loop = line_loop(loggers=[logger, notes], log_every=2)
    loop.run(5)
    loop.log_summary({"picture": np.zeros((4, 6, 3))}, None, "", "eval", stdout=False)

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: [(e.step, e.value) for e in scalars] for tag, scalars in found.items()} == {
        name: [(step, pytest.approx(x, rel=1e-6)) for step, x in pairs]
        for name, pairs in by_name(notes.rows).items()
    }
    assert events.Tags()["images"] == ["eval/picture"]
    content = events.PluginTagToContent("hparams")
    assert b"n_trainable_parameters" in content["_hparams_/session_start_info"]


def test_tensorboard_shows_a_run_that_was_put_back_once(tmp_path):
    loop = line_loop(
        tmp_path,
        loggers=loggers.TensorBoardLogger(tmp_path / "all"),
        resume_data="restart",
        save_at_end=False,
        eval_at=lambda step: True,
        checkpoint_at=lambda step: step == 3,
    )
    loop.run(6)
    loop.load_checkpoint()
    loop.run(2)

    events = EventAccumulator(str(tmp_path / "all"))
    events.Reload()
    assert [e.step for e in events.Scalars("eval/metrics/L2Loss")] == [1, 2, 3, 4, 5]


# The console.


def test_verbose_false_prints_nothing_and_logs_all(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "trax_torch")
    quiet = line_loop(tmp_path, verbose=False, random_seed=None)
    quiet.run(5)
    captured = capsys.readouterr()

    assert (captured.out, captured.err) == ("", "")
    assert any("train L2Loss | " in line for line in caplog.messages)
    assert any(line.startswith("Random seed: ") for line in caplog.messages)


@pytest.fixture
def root_handlers():
    """The root's handlers and level, put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_lines_are_not_doubled_by_basic_config(capsys, root_handlers, tmp_path, stream):
    import sys

    file = logging.FileHandler(tmp_path / "log.txt")
    here = logging.StreamHandler(getattr(sys, stream))
    logging.basicConfig(
        level=logging.INFO, format="LOG %(message)s", handlers=[here, file], force=True
    )
    loop = line_loop()
    loop.run(5)
    file.close()

    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    told = [line.removeprefix("LOG ") for line in lines if line.strip()]
    assert len(told) == len(set(told))
    assert sum("train L2Loss" in line for line in captured.out.splitlines()) == 2
    assert any(line.startswith("LOG ") and "learning_rate" in line for line in lines)
    text = (tmp_path / "log.txt").read_text()
    assert text.count("train L2Loss") == 2  # the file has all
    assert text.count("learning_rate") == 2


def test_lines_that_are_not_printed_are_shown_by_basic_config(capsys, root_handlers):
    import sys

    logging.basicConfig(level=logging.INFO, format="LOG %(message)s", stream=sys.stdout, force=True)
    line_loop(verbose=False).run(5)

    lines = capsys.readouterr().out.splitlines()
    assert sum("train L2Loss" in line for line in lines) == 2
    assert all(line.startswith("LOG ") for line in lines)


def test_lines_are_not_doubled_by_rich(capsys, root_handlers):
    rich = pytest.importorskip("rich.logging")
    logging.basicConfig(level=logging.INFO, handlers=[rich.RichHandler()], force=True)
    line_loop().run(5)

    text = capsys.readouterr().out
    assert text.count("train L2Loss") == 2
    assert text.count("learning_rate") == 2


# Ranks.


def train_with_loggers(rank, folder, failing):
    notes = Failing() if failing else Notes()
    tables = [loggers.CSVLogger(f"{folder}/metrics.csv")]
    loop = line_loop(folder, loggers=[notes, *tables], log_every=2, **EVERY_5)
    loop.run(6)
    return notes.rows, recorded(loop), loop.loss


def test_the_chief_alone_logs_what_all_record(tmp_path):
    (chief, told, loss), (other, same, own) = ranks.values(
        tmp_path, 2, train_with_loggers, str(tmp_path), False
    )

    assert by_name(chief) == told
    assert other == []
    assert told.keys() == same.keys()
    assert [int(row["step"]) for row in csv_rows(tmp_path / "metrics.csv")] == [2, 4, 5, 6]
    last = told["train/training/loss"][-1]
    assert last == (6, pytest.approx((loss + own) / 2, rel=1e-6))


def test_a_logger_that_fails_on_the_chief_keeps_no_rank_waiting(tmp_path):
    found = ranks.values(tmp_path, 2, train_with_loggers, str(tmp_path), True)

    assert len(found) == 2
    assert [int(row["step"]) for row in csv_rows(tmp_path / "metrics.csv")] == [2, 4, 5, 6]


def train_unlike(rank):
    line_loop(log_every=2 + rank).run(6)


def test_ranks_that_log_at_other_steps_are_told_so(tmp_path):
    found = ranks.outcomes(tmp_path, 2, train_unlike)

    assert [kind for kind, *_ in found] == ["error", "error"]
    assert all("what is reported differ" in text for _, _, text in found)
