"""Where a run ends, and what is saved and reported of its last step."""

import json
import os
import re
import signal

import pytest
import torch
from toys import (
    assert_resumes,
    assert_same_run,
    eval_task,
    history_of,
    line_loop,
    nan_loop,
    train_task,
)

from trax_torch import layers as tl
from trax_torch.optimizers import NonFiniteError
from trax_torch.supervised import Loop, training
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised.callbacks import TrainingStepCallback


def step_in(folder, name="model"):
    return storage.read(str(folder), name)[1]["step"]


def evals_of(loop):
    return [step for step, _ in loop.history.get("eval", "metrics/L2Loss")]


class StopAt7(TrainingStepCallback):
    def on_step_end(self, step):
        if step == 7:
            self._loop.stop("enough")


class TermAt7(TrainingStepCallback):
    def on_step_end(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


# How many steps.


def test_until_counts_the_steps_of_all_runs(tmp_path):
    """A script that is started again takes what is left, and none where nothing is."""
    taken = []
    for _ in range(3):
        loop = line_loop(tmp_path, callbacks=[StopAt7] if not taken else [])
        loop.run(until=13)
        taken.append(loop.step)

    assert taken == [7, 13, 13]
    loop.run(until=4)
    loop.run(2)
    assert loop.step == 15


def test_a_run_until_a_step_is_the_run_of_as_many(tmp_path):
    one, other = line_loop(tmp_path / "one"), line_loop(tmp_path / "other")
    one.run(until=7)
    other.run(7)

    assert_same_run(one, other)


def test_run_takes_one_step_if_nothing_is_asked():
    loop = line_loop()
    loop.run()

    assert loop.step == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_steps": 3, "until": 5}, "got n_steps=3 and until=5. Give one of them"),
        ({"n_steps": 1, "until": 1}, "Give one of them"),
        ({"n_steps": -1}, "0 steps or more; got -1"),
        ({"until": -2}, "0 steps or more; got -2"),
    ],
    ids=str,
)
def test_what_a_run_cannot_take_is_refused(asked, message):
    loop = line_loop()
    with pytest.raises(ValueError, match=message):
        loop.run(**asked)

    assert loop.step == 0


# The last step.


@pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])
@pytest.mark.parametrize("callbacks", [[], [StopAt7]], ids=["count", "callback"])
def test_the_last_step_is_saved_and_reported(callbacks, background, tmp_path, capsys):
    """Due or not: 'model' is of it, and history and console have its training and evals."""
    loop = line_loop(tmp_path, callbacks=callbacks, background_saves=background)
    loop.run(7 if not callbacks else 20)

    assert loop.step == step_in(tmp_path) == 7
    assert evals_of(loop) == [1, 5, 7]
    assert [step for step, _ in loop.history.get("train", "metrics/L2Loss")] == [1, 5, 7]
    assert "Step      7: Ran 2 train steps" in capsys.readouterr().out
    assert line_loop(tmp_path).step == 7


def test_a_last_step_that_was_due_is_saved_and_reported_once(tmp_path, monkeypatch):
    saved = []

    class Mine(Loop):
        def save_checkpoint(self, basename):
            saved.append((self.step, basename))
            super().save_checkpoint(basename)

    loop = Mine(
        tl.Serial(tl.Dense(1)), train_task(), eval_tasks=eval_task(), output_dir=str(tmp_path)
    )
    loop.run(5)
    loop.run(0)
    loop.run(until=5)

    assert saved == [(1, "model"), (5, "model")]
    assert evals_of(loop) == [1, 5]


def test_the_best_so_far_may_be_the_last_step(tmp_path):
    loop = line_loop(tmp_path, checkpoint_low_metric="L2Loss", eval_at=lambda step: False)
    loop.run(7)

    assert step_in(tmp_path, "lowest_L2Loss") == 7
    info = storage.read(str(tmp_path), "lowest_L2Loss")[1]
    assert info["reported_step"] == 7


def test_without_output_dir_the_last_step_is_reported():
    loop = line_loop()
    loop.run(3)

    assert evals_of(loop) == [1, 3]


def test_traxs_way_leaves_the_last_step_alone(tmp_path):
    loop = line_loop(tmp_path, save_at_end=False)
    loop.run(7)

    assert step_in(tmp_path) == 5
    assert evals_of(loop) == [1, 5]
    assert [step for step, _ in loop.history.get("train", "metrics/L2Loss")] == [1, 5]


def test_a_run_of_no_steps_does_nothing_at_first(tmp_path):
    loop = line_loop(tmp_path)
    loop.run(0)
    loop.run(until=0)

    assert history_of(loop) == {}
    assert not list(tmp_path.glob("*.json"))


def test_many_runs_in_a_row_each_save_and_report(tmp_path):
    """Or take as many steps as one, if nobody wants that."""
    loop, quiet, whole = (
        line_loop(tmp_path / name, save_at_end=name == "loop")
        for name in ("loop", "quiet", "whole")
    )
    for step in range(1, 8):
        loop.run(1)
        quiet.run(1)
        assert step_in(tmp_path / "loop") == step
    whole.run(7)

    assert evals_of(loop) == [1, 2, 3, 4, 5, 6, 7]
    assert_same_run(quiet, whole)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loop.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_a_checkpoint_of_the_end_has_not_seen_the_report(tmp_path):
    """So a run that goes on from it is the one that never ended there."""
    assert_resumes(line_loop, tmp_path, first=7, rest=6)
    training.verify_resume(line_loop, n_steps=7)
    training.verify_resume(lambda folder: line_loop(folder, save_at_end=False), n_steps=7)


def test_a_finished_run_that_is_started_again_tells_its_end_again(tmp_path):
    """Whether a crash came between the save and the report, nobody knows."""
    line_loop(tmp_path).run(until=7)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    again = line_loop(tmp_path)
    again.run(until=7)

    assert again.step == 7
    assert evals_of(again) == [1, 5, 7]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == first


def test_an_eval_that_fails_at_the_end_loses_no_step(tmp_path, monkeypatch):
    loop = line_loop(tmp_path)
    run_evals = loop.run_evals

    def fail(*args):
        if loop.step == 7:
            raise KeyError("no batch")
        return run_evals(*args)

    monkeypatch.setattr(loop, "run_evals", fail)
    with pytest.raises(KeyError, match="no batch"):
        loop.run(7)

    assert step_in(tmp_path) == 7


def test_a_run_that_fails_saves_nothing_at_its_end(tmp_path):
    loop = nan_loop(tmp_path, steps=(4,))
    with pytest.raises(NonFiniteError):
        loop.run(6)

    assert step_in(tmp_path) == 1


def test_what_a_signal_ends_is_saved_and_its_training_told(tmp_path, capsys):
    """No evals; and the run goes on as if nothing had been."""
    with pytest.raises(SystemExit) as caught:
        line_loop(tmp_path / "cut", callbacks=[TermAt7]).run(until=13)
    said = capsys.readouterr().out
    resumed, whole = line_loop(tmp_path / "cut"), line_loop(tmp_path / "whole")

    assert caught.value.code == 143
    assert resumed.step == 7
    told = said[said.index("Step      7: Ran 2 train steps") :]
    assert re.search(r"Step      7: train +L2Loss \|", told)
    assert "eval" not in told
    resumed.run(until=13)
    whole.run(until=13)
    assert_same_run(resumed, whole)


def test_what_a_signal_ends_goes_on_in_the_same_process(tmp_path):
    """The report of a run that was broken off is not recorded, so the next one is whole."""
    loop, whole = line_loop(tmp_path / "cut", callbacks=[TermAt7]), line_loop(tmp_path / "whole")
    with pytest.raises(SystemExit):
        loop.run(until=13)
    loop.run(until=13)
    whole.run(until=13)

    assert_same_run(loop, whole)


# By the public methods.


def test_a_run_asks_what_a_subclass_makes_of_the_public_methods(tmp_path):
    """Also where an override takes the name alone, as Trax's does."""
    asked = []

    class Mine(Loop):
        def save_checkpoint(self, basename):
            asked.append(f"save {basename}")
            super().save_checkpoint(basename)

        def run_evals(self, summary_writers=None):
            asked.append("evals")
            return super().run_evals(summary_writers)

        def log_summary(self, values, writer, prefix, kind, stdout=True):
            asked.append(f"log {prefix}{kind}")
            super().log_summary(values, writer, prefix, kind, stdout)

    loop = Mine(
        tl.Serial(tl.Dense(1)),
        train_task(n_steps_per_checkpoint=100),
        eval_tasks=eval_task(),
        output_dir=str(tmp_path),
        permanent_checkpoint_at=lambda step: step == 1,
        checkpoint_low_metric="L2Loss",
    )
    loop.run(1)

    assert [what for what in asked if what != "log eval"] == [
        "save model",
        "save model_1",
        "log metrics/train",
        "log training/train",
        "evals",
        "log metrics/eval",
        "save lowest_L2Loss",
    ]
    assert json.loads((tmp_path / "lowest_L2Loss.json").read_text())
