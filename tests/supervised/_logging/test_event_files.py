"""TensorBoard shows every point, however runs follow each other; no disk that fails ends one."""

import errno
import os
import resource
import shutil
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import history_of, line_loop

from trax_torch.supervised import TrainingStepCallback
from trax_torch.supervised._logging import event_files
from trax_torch.supervised._logging.event_files import EventFiles

EACH_STEP = {"checkpoint_at": lambda step: False, "eval_at": lambda step: True}


def shown(folder, tag="metrics/L2Loss"):
    """What TensorBoard shows, which reads files in the order of their names: (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def values_of(loop, mode):
    return loop.history.get(mode, "metrics/L2Loss")


class Each(TrainingStepCallback):
    """Does something once, after a step."""

    does: dict = {}  # noqa: RUF012

    def on_step_end(self, step):
        if step in self.does:
            self.does[step]()


@pytest.fixture
def after_step(monkeypatch):
    """What happens after which step."""
    does = {}
    monkeypatch.setattr(Each, "does", does)
    return does


def test_many_short_runs_show_each_point_in_one_file(tmp_path):
    loop = line_loop(tmp_path, **EACH_STEP)
    for _ in range(12):
        loop.run(1)

    for mode in ("train", "eval"):
        assert shown(tmp_path / mode) == values_of(loop, mode)
        assert [step for step, _ in shown(tmp_path / mode)] == list(range(1, 13))
        assert len(files_in(tmp_path / mode)) == 1


def test_processes_that_begin_in_one_second_are_shown_in_their_order(tmp_path, monkeypatch):
    """Ten of them, whose numbers come in no order, on a clock that stands, and then goes back."""
    for i in range(10):
        now = 1_700_000_000 - 50 * (i > 5)
        monkeypatch.setattr(event_files, "time", types.SimpleNamespace(time=lambda now=now: now))
        monkeypatch.setattr(os, "getpid", lambda i=i: 9999 + 7 * i % 10)
        loop = line_loop(tmp_path, checkpoint_at=lambda step: True, eval_at=lambda step: True)
        loop.run(1)

    assert loop.step == 10
    assert shown(tmp_path / "eval") == values_of(loop, "eval")
    assert len(shown(tmp_path / "eval")) == 10
    assert len(files_in(tmp_path / "eval")) == 10


def test_a_run_that_was_put_back_takes_the_place_of_what_came_after(tmp_path):
    """Within one process, too."""
    at = {"checkpoint_at": lambda step: step == 3, "eval_at": lambda step: True}
    loop = line_loop(tmp_path, resume_data="restart", save_at_end=False, **at)
    loop.run(6)
    loop.load_checkpoint()
    loop.run(2)

    assert [step for step, _ in shown(tmp_path / "eval")] == [1, 2, 3, 4, 5]
    assert shown(tmp_path / "eval") == values_of(loop, "eval")


def test_loops_that_take_turns_in_a_folder_never_write_behind_a_file(tmp_path):
    """TensorBoard goes back to no file that another came after."""
    loops = [EventFiles(None), EventFiles(None)]
    for step, files in enumerate([loops[0], loops[1], loops[0], loops[0]], 1):
        files.begin(step)
        files.at(str(tmp_path)).scalar("x", 0.5 * step, step)
        files.at(str(tmp_path)).flush()

    assert shown(tmp_path, "x") == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert len(files_in(tmp_path)) == 3


def test_a_full_disk_is_said_once_and_ends_no_run(tmp_path, capsys, after_step):
    """What fits again is shown again: no record is torn, that would hide those after it."""
    no_more = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        sizes = [path.stat().st_size for path in (tmp_path / "train").iterdir()]
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] + 30, no_more[1]))

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, no_more)

    after_step.update({4: fill, 7: empty})
    loop, twin = line_loop(tmp_path, callbacks=[Each], **EACH_STEP), line_loop(**EACH_STEP)
    try:
        loop.run(9)
    finally:
        empty()
    said = [x for x in capsys.readouterr().out.splitlines() if "TensorBoard" in x]
    twin.run(9)

    assert len(said) == 1
    assert "cannot be written: [Errno 27] File too large. The run goes on" in said[0]
    assert history_of(loop) == history_of(twin)
    left = [pair for pair in values_of(loop, "train") if pair[0] not in (4, 5, 6)]
    assert shown(tmp_path / "train") == left


@pytest.mark.parametrize("what", [".", "train"])
def test_a_folder_that_was_removed_is_said_once_and_ends_no_run(tmp_path, capsys, after_step, what):
    folder = tmp_path / "run"
    after_step[3] = lambda: shutil.rmtree(folder / what)
    loop = line_loop(folder, callbacks=[Each], save_at_end=False, **EACH_STEP)
    twin = line_loop(**EACH_STEP)
    loop.run(9)
    said = [x for x in capsys.readouterr().out.splitlines() if "TensorBoard" in x]
    twin.run(9)

    assert len(said) == 1
    assert "cannot be written: [Errno 2] No such file or directory: " in said[0]
    assert str(folder / "train") in said[0]
    assert history_of(loop) == history_of(twin)
    if what == "train":  # a new run makes its files anew
        loop.run(2)
        assert [step for step, _ in shown(folder / "train")] == [10, 11]


def test_a_standard_output_that_is_gone_is_logged_once_and_ends_no_run(monkeypatch, caplog):
    class Gone:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    loop = line_loop(**EACH_STEP)
    monkeypatch.setattr(sys, "stdout", Gone())
    loop.run(3)

    assert loop.step == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        "Standard output cannot be written: [Errno 32] Broken pipe. The run goes on."
    )
