"""What is not finite is neither trained on nor saved."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import batches, line_loop, losses_of, nan_loop, state_of, train_task

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._checkpoint import storage


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    """The step is not taken, the error names step, task and loss, and nothing of it is saved."""

    def poisoned():
        for i, (x, y, w) in enumerate(batches()):
            yield (x * np.nan if i == 4 else x), y, w

    task = TrainTask(poisoned(), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=1)
    loop = line_loop(tmp_path, task=task)
    loop.run(3)
    before = [p.clone() for p in loop.model.parameters()]

    with pytest.raises(optimizers.NonFiniteError, match="Step 4: the loss is nan") as caught:
        loop.run(3)

    assert caught.value.__notes__ == ["This was task 0 (L2Loss)."]
    assert loop.step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    assert line_loop(tmp_path).step == 3


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    """Neither weights nor slots nor running statistics; and the run can be saved as it was."""
    loop = nan_loop(tmp_path)
    loop.run(2)
    before = state_of(loop)

    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop.run(1)

    after = state_of(loop)
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert any("mean" in key for key in before)
    loop.save_checkpoint("after")
    assert storage.read(str(tmp_path), "after")[1]["step"] == 2


def test_a_device_may_decide_whether_a_step_is_taken(monkeypatch):
    """As on CUDA, where no step waits for the verdict: it is asked for at the report."""
    loop = nan_loop(steps=(3, 4), save_at_end=False)
    loop.run(2)
    before = state_of(loop)
    trainer = loop._parts.trainers[0]
    trainer.optimizer = torch.optim.Adam(trainer.params, fused=True)
    monkeypatch.setattr(trainer, "_on_cpu", False)
    elsewhere = dataclasses.replace(trainer._gradients, on_cpu=False)
    monkeypatch.setattr(trainer, "_gradients", elsewhere)
    monkeypatch.setattr(trainer, "_decides_on_device", True)

    loop.run(2)
    after = {k: v for k, v in state_of(loop).items() if not k.startswith("slot")}
    assert [k for k, v in after.items() if not torch.equal(before[k], v)] == []
    loop.run(1)
    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop._stepper.check_finite()
    assert trainer.n_skipped == 2
    assert math.isfinite(loop._parts.accumulators[0].means(loop._world)["loss"])


# Steps that are skipped


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    loop = nan_loop(steps=(3, 5), on_nonfinite="skip")
    loop.run(2)
    before = state_of(loop)
    loop.run(1)
    assert [k for k, v in state_of(loop).items() if not torch.equal(before[k], v)] == []
    assert loop.step == 3

    loop.run(97)

    assert loop.history.get("train", "training/skipped steps") == [(3, 1.0), (100, 2.0)]
    assert math.isfinite(losses_of(loop)[-1])


def test_no_more_steps_are_skipped_than_allowed(tmp_path):
    """The count survives a restart."""
    settings = {"steps": (2, 4, 6), "on_nonfinite": 2, "checkpoint_at": lambda step: True}
    nan_loop(tmp_path, **settings).run(5)

    with pytest.raises(optimizers.NonFiniteError, match="Step 6: .* 3 steps were not."):
        nan_loop(tmp_path, **settings).run(5)


# What is saved


def test_what_is_not_finite_is_not_saved(tmp_path):
    """A rate that is no number stops before the step; statistics that are none stop the save."""
    task = train_task(lr_schedule=lambda step: float("nan") if step == 3 else 0.01)
    loop = line_loop(tmp_path, task=task)
    with pytest.raises(ValueError, match="Step 3: the learning rate is nan"):
        loop.run(5)
    assert all(bool(p.isfinite().all()) for p in loop.model.parameters())

    loop.model.sublayers[0].weight.data[0, 0] = torch.nan
    with pytest.raises(optimizers.NonFiniteError, match="0.weight of the weights is not finite"):
        loop.save_checkpoint("model")
    assert line_loop(tmp_path, task=train_task()).step == 1


def test_a_buffer_may_hold_infinities(tmp_path):
    """Masks of attention do, and are saved."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

        def forward(self, x):
            return self.linear(x)

    task = TrainTask(batches(weights=False), nn.MSELoss(), optimizers.SGD(0.01))
    Loop(Masked(), task, output_dir=str(tmp_path), progress=False).run(1)

    assert (tmp_path / "model.json").exists()
