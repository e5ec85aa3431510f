"""The best so far is kept: of all evals, or of those at checkpoints alone."""

import pytest
from toys import eval_task, line_loop

from trax_torch.supervised import History
from trax_torch.supervised._loop import Best, LoopConfig


def scripted(monkeypatch, values, folder=None, **kwargs):
    """A loop that measures values[step] at each step."""
    loop = line_loop(folder, **kwargs)
    evaluator = loop._parts.evaluators[0]
    monkeypatch.setattr(evaluator, "means", lambda seed: {"L2Loss": values[loop.step]})
    return loop


def step_of(folder, name):
    """The step of a checkpoint; None if there is none."""
    if not (folder / f"{name}.json").exists():
        return None
    loop = line_loop(None, random_seed=5)
    loop.load_checkpoint(str(folder), name)
    return loop.step


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


def test_the_best_of_a_run_s_end_stays_when_the_run_goes_on(tmp_path, monkeypatch):
    """Its evals come after its checkpoint, which a run that goes on goes on from."""
    values = {2: 5.0, 3: 1.0, 4: 3.0, 6: 2.0, 7: 0.5}
    at = {"checkpoint_at": lambda step: step % 2 == 0, "checkpoint_low_metric": "L2Loss"}
    scripted(monkeypatch, values, tmp_path, **at).run(until=3)
    assert step_of(tmp_path, "lowest_L2Loss") == 3

    scripted(monkeypatch, values, tmp_path, **at).run(until=6)
    assert step_of(tmp_path, "lowest_L2Loss") == 3

    scripted(monkeypatch, values, tmp_path, **at).run(until=7)
    assert step_of(tmp_path, "lowest_L2Loss") == 7


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


BETWEEN = {"checkpoint_at": lambda step: step % 4 == 0, "eval_at": lambda step: step % 2 == 0}


@pytest.mark.parametrize(
    ("best_at", "lowest", "highest"),
    [("evals", [2, 6, 6], [2, 2, 8]), ("checkpoints", [None, 4, 4], [None, None, 8])],
)
def test_the_best_between_checkpoints_is_kept(tmp_path, monkeypatch, best_at, lowest, highest):
    """By default; Trax keeps what is best of all at a checkpoint, and so nothing after step 6."""
    values = {2: 8.0, 4: 5.0, 6: 1.0, 8: 9.0}
    metrics = {"checkpoint_low_metric": "L2Loss", "checkpoint_high_metric": "L2Loss"}
    loop = scripted(monkeypatch, values, tmp_path, best_at=best_at, **metrics, **BETWEEN)
    found = []
    for n_steps in (2, 4, 2):
        loop.run(n_steps)
        found.append((step_of(tmp_path, "lowest_L2Loss"), step_of(tmp_path, "highest_L2Loss")))

    assert found == list(zip(lowest, highest, strict=True))


def test_the_best_is_of_the_run_that_a_checkpoint_leads_back_to(monkeypatch, tmp_path):
    """What was measured after it has not happened."""
    values = {1: 3.0, 2: 1.0}
    always = {"checkpoint_at": lambda step: True, "eval_at": lambda step: True}
    settings = {"checkpoint_low_metric": "L2Loss", "resume_data": "restart", **always}
    loop = scripted(monkeypatch, values, tmp_path, **settings)
    loop.run(1)
    loop.save_checkpoint("after_1")
    loop.run(1)
    assert step_of(tmp_path, "lowest_L2Loss") == 2
    values |= {2: 2.5, 3: 2.0}
    loop.load_checkpoint(filename="after_1")
    loop.save_checkpoint("model")
    loop.run(2)

    assert step_of(tmp_path, "lowest_L2Loss") == 3


class Counted(History):
    """A history that counts what is read of it."""

    n_read = 0

    def get(self, *args):
        found = super().get(*args)
        self.n_read += len(found)
        return found


def test_what_was_read_of_the_history_is_not_read_again():
    """So an eval late in a long run costs what an early one does."""
    best = Best(LoopConfig(checkpoint_low_metric="L2Loss"), [eval_task()])
    history = Counted()
    kept = []
    for step in range(100):
        history.append("eval", "metrics/L2Loss", step, float((step - 60) ** 2))
        kept += [step] * len(best.names_at(step, history, at_checkpoint=False))

    assert kept == list(range(61))
    assert history.n_read == 100


def test_a_time_of_the_best_that_is_none_is_refused():
    with pytest.raises(ValueError, match="best_at is 'evals' or 'checkpoints'; got 'end'"):
        line_loop(best_at="end")
