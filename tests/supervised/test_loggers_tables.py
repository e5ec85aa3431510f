"""Tables of what is logged lose and double no row, whatever becomes of the run."""

import json
import math
import os
import resource
import signal

import pytest
import torch
from noting import EVERY_5, Notes, csv_rows, json_rows, without_clock
from toys import line_loop

from trax_torch.supervised import TrainingStepCallback, loggers

TABLES = {
    "metrics.csv": (loggers.CSVLogger, csv_rows),
    "metrics.jsonl": (loggers.JSONLinesLogger, json_rows),
}


@pytest.fixture(params=TABLES)
def table(request):
    """A file's name, its logger, and what reads it."""
    return request.param, *TABLES[request.param]


def test_a_table_has_a_row_a_step_and_gives_the_very_numbers(tmp_path, table):
    name, make, read = table
    notes = Notes()
    loop = line_loop(tmp_path, loggers=[make(tmp_path / name), notes], log_every=2)
    loop.run(6)

    merged = {}
    for step, values in notes.rows:  # what is logged apart at one step is in one row
        merged.setdefault(step, {"step": step}).update(without_clock(values))
    rows = list(merged.values())
    found = [{k: float(x) for k, x in row.items() if x != ""} for row in read(tmp_path / name)]
    assert found == rows
    assert [row["step"] for row in found] == [1, 2, 4, 5, 6]
    settings = json.loads((tmp_path / "metrics.hparams.json").read_text())
    assert settings["optimizer/lr"] == 0.01
    assert settings["precision"] is None


def test_columns_that_come_later_are_added(tmp_path):
    logger = loggers.CSVLogger(tmp_path / "deep" / "metrics.csv")
    logger.log({"a": 1.0}, 1)
    logger.log({"b": math.nan, "a, c": math.inf}, 2)
    logger.log({"a": 0.1}, 3)

    assert (tmp_path / "deep" / "metrics.csv").read_text() == (
        'step,a,b,"a, c"\n1,1.0,,\n2,,nan,inf\n3,0.1,,\n'
    )


def test_json_has_numbers_that_are_none_as_strings(tmp_path):
    logger = loggers.JSONLinesLogger(tmp_path / "metrics.jsonl")
    logger.log({"a": math.nan, "b": -math.inf, "c": 1}, 1)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": "NaN", "b": "-Infinity", "c": 1.0}
    assert math.isnan(float(row["a"]))


def run_killed_at(folder, name, step):
    """Trains in a child that kills itself after so many steps, in the midst of a row."""
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)

            class Kill(TrainingStepCallback):
                def on_step_end(self, at):
                    if at == step:
                        with open(folder / name, "ab") as file:
                            file.write(b'{"step": 1')
                        os.kill(os.getpid(), signal.SIGKILL)

            logger = TABLES[name][0](folder / name)
            line_loop(folder, loggers=logger, log_every=2, callbacks=[Kill], **EVERY_5).run(20)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_run_that_is_killed_and_goes_on_loses_and_doubles_no_row(tmp_path, table):
    """Killed at step 9, with rows of 6 and 8 behind the checkpoint of step 5, and a torn one."""
    name, make, read = table
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    run_killed_at(tmp_path / "cut", name, 9)
    before = (tmp_path / "cut" / name).read_bytes()
    for folder in ("whole", "cut"):
        path = tmp_path / folder
        logger = make(path / name)
        line_loop(path, loggers=logger, log_every=2, **EVERY_5).run(until=12)

    steps = [int(row["step"]) for row in read(tmp_path / "cut" / name)]
    assert before.count(b"\n") > 4
    assert steps == [2, 4, 5, 6, 8, 10, 12]
    assert read(tmp_path / "cut" / name) == read(tmp_path / "whole" / name)


def test_a_run_that_is_put_back_in_one_process_replaces_its_rows(tmp_path, table):
    name, make, read = table
    loop = line_loop(tmp_path, loggers=make(tmp_path / name), resume_data="restart", **EVERY_5)
    loop.run(10)
    loop.load_checkpoint(str(tmp_path), "model")
    loop.run(5)
    assert [int(row["step"]) for row in read(tmp_path / name)] == [5, 10, 15]

    twin = line_loop(tmp_path, loggers=make(tmp_path / name), resume_from="model", **EVERY_5)
    twin.run(1)
    assert [int(row["step"]) for row in read(tmp_path / name)] == [5, 10, 15, 16]


def test_a_run_from_the_start_keeps_the_table_of_another(tmp_path, table):
    name, make, read = table
    for _ in range(3):
        line_loop(loggers=make(tmp_path / name), **EVERY_5).run(5)

    stem, ending = os.path.splitext(name)
    for each in (name, f"{stem}.1{ending}", f"{stem}.2{ending}"):
        assert [int(row["step"]) for row in read(tmp_path / each)] == [5]


@pytest.mark.parametrize("content", ["time,loss\n1,2\n", "step,a\n1,2,3\n", "\n", '{"a": 1}\n'])
def test_a_file_of_somebody_else_is_not_written_over(tmp_path, capsys, table, content):
    name, make, _ = table
    (tmp_path / name).write_text(content)
    loop = line_loop(loggers=make(tmp_path / name), **EVERY_5)
    loop.run(10)

    said = [line for line in capsys.readouterr().out.splitlines() if "is no file of" in line]
    assert len(said) == 1
    assert "Give it another name, or move it away" in said[0]
    assert (tmp_path / name).read_text() == content
    assert loop.step == 10


def test_a_full_disk_leaves_rows_out_whole_and_ends_no_run(tmp_path, capsys, table):
    name, make, read = table
    no_more = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Disk(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 3:
                size = (tmp_path / name).stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, no_more[1]))
            if step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, no_more)

    loop = line_loop(loggers=make(tmp_path / name), callbacks=[Disk], eval_at=lambda step: True)
    try:
        loop.run(8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_more)

    said = [x for x in capsys.readouterr().out.splitlines() if "The run goes on" in x]
    assert len(said) == 1
    assert f"{make.__name__}.log failed: OSError: [Errno 27] File too large" in said[0]
    assert [int(row["step"]) for row in read(tmp_path / name)] == [1, 2, 6, 7, 8]


def test_a_table_that_was_removed_is_begun_anew(tmp_path, table):
    name, make, read = table

    class Remove(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 3:
                (tmp_path / name).unlink()

    line_loop(loggers=make(tmp_path / name), callbacks=[Remove], eval_at=lambda step: True).run(4)

    assert [int(row["step"]) for row in read(tmp_path / name)] == [3, 4]
