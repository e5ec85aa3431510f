"""EarlyStopping ends a run when its metric has not improved for so many evals, resumed or not."""

import functools
import math
import types

import pytest
from callback_runs import ALWAYS
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import eval_task, line_loop

from trax_torch.supervised import History
from trax_torch.supervised.callbacks import EarlyStopping


def loop_with_metric(values, folder=None, resume_data="exact", **kwargs):
    """A loop whose metric has values[step] at each step."""
    stopping = functools.partial(EarlyStopping, metric="L2Loss", **kwargs)
    loop = line_loop(folder, callbacks=[stopping], resume_data=resume_data, **ALWAYS)
    loop._parts.evaluators[0].means = lambda seed: {"L2Loss": values[loop.step]}
    return loop


def steps_until_stopped(values, **kwargs):
    """The step that EarlyStopping stops at, fed with one value a step; None for none."""
    history, stopped = History(), []
    task = types.SimpleNamespace(metric_names=["loss"], measures=lambda name: name == "loss")
    loop = types.SimpleNamespace(eval_tasks=[task], history=history, stop=stopped.append)
    stopping = EarlyStopping(loop, "loss", **kwargs)
    for step, value in enumerate(values):
        history.append("eval", "metrics/loss", step, value)
        stopping.on_evals_end(step)
        if stopped:
            return step
    return None


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, -3.0, math.nan, math.inf, -math.inf])),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_early_stopping_stops_when_patience_is_at_its_end(values, patience, min_delta):
    """At the first eval after which the last `patience` ones were no better than those before."""

    def improves(i):  # by the definition, over again at each i
        best = math.inf
        for value in values[:i]:
            if math.isfinite(value) and value < best - min_delta:
                best = value
        return math.isfinite(values[i]) and values[i] < best - min_delta

    failed = [not improves(i) for i in range(len(values))]
    want = next((i for i in range(len(values)) if all(failed[max(0, i - patience + 1) : i + 1])
                 and i + 1 >= patience), None)  # fmt: skip

    assert steps_until_stopped(values, patience=patience, min_delta=min_delta) == want
    mirrored = [-value for value in values]
    kwargs = {"patience": patience, "min_delta": min_delta, "mode": "max"}
    assert steps_until_stopped(mirrored, **kwargs) == want


def test_early_stopping_says_why(capsys):
    loop = loop_with_metric([9, 3, 1, 2, 2, 2, 2, 2, 2], patience=3)
    loop.run(8)

    assert loop.step == 5
    line = "Step      5: Stopped: L2Loss has not improved for 3 evals; its best is 1, at step 2."
    assert line in capsys.readouterr().out.splitlines()
    nan = loop_with_metric([math.nan] * 9, patience=2)
    nan.run(8)
    assert nan.step == 2
    assert "has not improved for 2 evals; its best is none." in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_early_stopping_counts_on_after_a_restart(tmp_path, cut):
    values = [9, 3, 1, 2, 2, 2, 2, 2, 2]
    loop_with_metric(values, tmp_path, patience=3).run(cut)
    resumed = loop_with_metric(values, tmp_path, patience=3)
    resumed.run(8)

    assert resumed.step == 5


def test_a_stopped_run_stops_again_unless_it_improves(tmp_path):
    """Resumed before its last evals, it takes no step; in the same process, those to the next."""
    values = [9, 1, 2, 2, 2, 2, 0, 2, 2, 2]
    loop = loop_with_metric(values, tmp_path, patience=2)
    loop.run(9)
    assert loop.step == 3
    resumed = loop_with_metric(values, tmp_path, patience=2)
    resumed.run(9)
    assert resumed.step == 3

    ends = []
    for _ in range(3):
        loop.run(6)
        ends.append(loop.step)
    assert ends == [4, 5, 8]  # better at 6


def test_the_last_of_several_evals_at_a_step_counts():
    values = [9, 1, 2, 2]
    loop = loop_with_metric(values, patience=2)
    loop.run(2)
    values[2] = 0
    loop.run_evals()
    loop.run_evals()
    loop.run(1)

    assert not loop._stopping.is_due


def test_what_was_read_of_the_history_is_not_read_again():
    """So an eval late in a long run costs what an early one does."""

    class Counted(History):
        n_read = 0

        def get(self, *args):
            found = super().get(*args)
            self.n_read += len(found)
            return found

    loop = loop_with_metric([9.0] * 21, patience=20)
    loop._state.history = Counted()
    loop.run(20)

    assert loop.step == 20
    assert loop.history.n_read == 20


def test_patience_is_of_the_run_that_a_checkpoint_leads_back_to(tmp_path):
    """What was measured after it has not happened."""
    values = [9, 5, 1, 1, 1, 1, 1]
    loop = loop_with_metric(values, tmp_path, resume_data="restart", patience=2)
    loop.run(1)
    loop.save_checkpoint("after_1")
    loop.run(2)
    values[2:] = [4, 3, 3, 3, 3]
    loop.load_checkpoint(filename="after_1")
    loop.save_checkpoint("model")
    loop.run(5)

    assert loop.step == 5  # best at 3


def test_an_eval_that_failed_stops_nothing(capsys):
    loop = loop_with_metric([9, 1, 2], patience=1)
    loop.run(5)
    assert loop.step == 2
    with pytest.raises(IndexError):
        loop.run(5)  # there is no value for step 3

    assert capsys.readouterr().out.count("Stopped") == 1


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"metric": "accuracy"}, r"got 'accuracy', and they measure \['L2Loss'\]"),
        ({"patience": 0}, "patience is a number of evals, at least 1; got 0"),
        ({"mode": "low"}, "mode is 'min' or 'max'; got 'low'"),
        ({"min_delta": -1.0}, "min_delta is a finite number, at least 0; got -1.0"),
        ({"min_delta": math.nan}, "min_delta is a finite number"),
    ],
)
def test_early_stopping_refuses_what_it_cannot_follow(kwargs, match):
    with pytest.raises(ValueError, match=match):
        EarlyStopping(line_loop(), **{"metric": "L2Loss", "patience": 1, **kwargs})


def test_early_stopping_refuses_a_metric_of_several_tasks():
    loop = line_loop(evals=[eval_task(), eval_task(1)])
    with pytest.raises(ValueError, match=r"they measure \['L2Loss', 'L2Loss'\]. Give EvalTask"):
        EarlyStopping(loop, "L2Loss", patience=1)
