"""ProfilerTrace records the steps that were chosen, in whole files or in none."""

import gzip
import json
import types

import pytest
import torch
from callback_runs import Skipping, profiling
from toys import line_loop

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import TrainingStepCallback, TrainTask
from trax_torch.supervised.callbacks import ProfilerTrace


def names_in(path):
    """The names of the events in a trace, which is whole JSON."""
    with gzip.open(path) as file:
        return [event.get("name", "") for event in json.load(file)["traceEvents"]]


def marks_in(path):
    names = {name for name in names_in(path) if name.startswith("ProfilerStep#")}
    return sorted(names)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_trace_shows_the_chosen_steps(tmp_path):
    class Recorded(TrainingStepCallback):
        def on_step_end(self, step):
            if torch.autograd._profiler_enabled():
                recorded.append(step)

    recorded = []
    loop = line_loop(tmp_path, callbacks=[Recorded, profiling(first_step=3, n_steps=2)])
    loop.run(6)

    assert recorded == [3, 4]
    assert files_of(tmp_path / "profile") == ["steps_3_to_4.pt.trace.json.gz"]
    path = tmp_path / "profile" / "steps_3_to_4.pt.trace.json.gz"
    assert marks_in(path) == ["ProfilerStep#3", "ProfilerStep#4"]
    names = names_in(path)
    assert "aten::linear" in names or "aten::addmm" in names
    assert any("Backward" in name for name in names)
    assert not torch.autograd._profiler_enabled()


def test_a_run_that_ends_within_writes_what_it_has(tmp_path):
    """The next one writes the rest; a run beyond the steps writes nothing."""
    folder = tmp_path / "traces" / "mine"
    trace = profiling(first_step=2, n_steps=3, folder=str(folder))
    loop = line_loop(callbacks=[trace])
    loop.run(3)
    assert files_of(folder) == ["steps_2_to_3.pt.trace.json.gz"]
    assert not torch.autograd._profiler_enabled()
    loop.run(1)
    assert len(files_of(folder)) == 2
    loop.run(2)

    assert files_of(folder) == ["steps_2_to_3.pt.trace.json.gz", "steps_4_to_4.pt.trace.json.gz"]
    assert marks_in(folder / "steps_4_to_4.pt.trace.json.gz") == ["ProfilerStep#4"]


def test_a_step_that_failed_is_in_the_trace(tmp_path):
    task = TrainTask(Skipping(3), tl.L2Loss(), optimizers.SGD(0.1), n_steps_per_checkpoint=None)
    trace = profiling(first_step=2, n_steps=5)
    loop = line_loop(tmp_path, task=task, callbacks=[trace])
    with pytest.raises(optimizers.NonFiniteError):
        loop.run(7)

    (name,) = files_of(tmp_path / "profile")
    assert marks_in(tmp_path / "profile" / name) == ["ProfilerStep#2", "ProfilerStep#3"]
    assert not torch.autograd._profiler_enabled()


def test_a_trace_that_cannot_be_written_leaves_nothing_and_ends_no_run(
    tmp_path, monkeypatch, caplog
):
    def broken(self, path):
        with open(path, "w") as file:
            file.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", broken)
    loop = line_loop(tmp_path, callbacks=[profiling(first_step=1, n_steps=1)])
    loop.run(2)

    assert loop.step == 2
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == f"No trace was written to {tmp_path}/profile: disk full. The run goes on."
    assert files_of(tmp_path / "profile") == []
    assert not torch.autograd._profiler_enabled()


def test_the_chief_alone_is_recorded(tmp_path):
    loop = types.SimpleNamespace(is_chief=False, output_dir=str(tmp_path))
    assert not any(map(ProfilerTrace(loop, first_step=1, n_steps=3).call_at, range(9)))
    loop.is_chief = True
    calls = map(ProfilerTrace(loop, first_step=1, n_steps=3).call_at, range(9))
    assert [step for step, is_called in enumerate(calls) if is_called] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"first_step": 0}, "got first_step=0, n_steps=1"),
        ({"n_steps": 0}, "got first_step=1, n_steps=0"),
        ({}, "the Loop has no output_dir. Give either"),
    ],
)
def test_a_trace_of_nothing_or_to_nowhere_is_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        line_loop(callbacks=[profiling(**{"first_step": 1, "n_steps": 1, **kwargs})])
