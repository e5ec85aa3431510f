"""Evals measure the model as it is, change no training, and tell which was the best."""

import numpy as np
import pytest
import torch
from toys import batches, eval_task, line_loop

from trax_torch import layers as tl
from trax_torch.supervised import EvalTask


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


def test_an_eval_model_sees_buffers_that_were_renewed():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 1)
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.n = self.n + 1
            return self.linear(x)

    loop = line_loop(model=Counting(), eval_model=Counting())
    loop.run(5)

    assert loop.eval_model.n == loop.model.n > 0


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


def test_a_metric_that_is_not_one_number_is_named():
    evals = eval_task(metrics=[tl.Fn("Errors", lambda y, t: (y - t) ** 2)])
    with pytest.raises(ValueError, match=r"Errors gives shape \(4, 1\)"):
        line_loop(evals=evals).run_evals()


# The best so far


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
