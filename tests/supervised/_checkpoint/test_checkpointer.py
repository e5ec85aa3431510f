"""A checkpoint holds all that a run goes on with."""

import functools

import pytest
import torch
from toys import batches, line_loop, state_of, train_task

from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.supervised import TrainingStepCallback, TrainTask, training


def test_callbacks_remember(tmp_path):
    """One with a state finds it again, whatever other callbacks there are now."""

    class Count(TrainingStepCallback):
        def __init__(self, loop):
            super().__init__(loop)
            self.n = torch.zeros((), dtype=torch.int64)

        def on_step_end(self, step):
            self.n += 1

        def state_dict(self):
            return {"n": self.n, "twice": (2 * int(self.n), None)}

        def load_state_dict(self, state):
            assert state["twice"] == (2 * int(state["n"]), None)
            self.n = state["n"].clone()

    line_loop(tmp_path, callbacks=[Count]).run(5)
    callbacks = [TrainingStepCallback, Count, Count]
    resumed = line_loop(tmp_path, callbacks=callbacks, save_at_end=False)
    resumed.run(1)

    assert [int(c.n) for c in resumed.callbacks[1:]] == [6, 1]
    fresh = line_loop(None, callbacks=[Count])
    fresh.load_checkpoint(str(tmp_path))
    assert int(fresh.callbacks[0].n) == 5


def test_a_rate_that_a_callback_changes_is_resumed(tmp_path):
    class Lower(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 3:
                self._loop.optimizers[0].param_groups[0]["lr"] = 0.001

    def loop(callbacks):
        task = train_task(optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        return line_loop(tmp_path, task=task, callbacks=callbacks)

    loop([Lower]).run(5)

    assert loop([]).optimizers[0].param_groups[0]["lr"] == 0.001


def _weights(loop):
    return list(loop.model.parameters())


def test_a_run_may_go_back_to_before_there_were_slots(tmp_path):
    data = [batch for _, batch in zip(range(9), batches(), strict=False)]
    task = TrainTask(data, tl.L2Loss(), torch.optim.AdamW, n_steps_per_checkpoint=100)
    evals = training.EvalTask(data, tl.L2Loss())
    loop = line_loop(tmp_path, task=task, evals=evals)
    loop.save_checkpoint("begin")
    loop.run(3)
    loop.load_checkpoint(filename="begin")
    loop.run(3)

    whole = line_loop(
        None,
        task=TrainTask(data, tl.L2Loss(), torch.optim.AdamW, n_steps_per_checkpoint=100),
        evals=training.EvalTask(data, tl.L2Loss()),
    )
    whole.run(3)
    assert all(torch.equal(a, b) for a, b in zip(*map(_weights, (loop, whole)), strict=True))


def test_weights_frozen_since_lose_their_slots_alone(tmp_path):
    def loop(is_frozen):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        model[0].requires_grad_(not is_frozen)
        return line_loop(tmp_path, model=model)

    first = loop(False)
    first.run(5)
    resumed = loop(True)

    assert resumed.step == 5
    assert all(torch.equal(a, b) for a, b in zip(*map(_weights, (first, resumed)), strict=True))
    resumed.run(1)


class Extra(torch.nn.Module):
    """Keeps a count that is no tensor."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)
        self.mask = torch.nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
        self.k = 0

    def get_extra_state(self):
        return {"k": self.k}

    def set_extra_state(self, state):
        self.k = state["k"]

    def forward(self, x):
        self.k += self.training
        return self.linear(x)


def test_a_modules_extra_state_and_masks_are_saved(tmp_path):
    """Also weights that are infinite and not trained."""
    line_loop(tmp_path, model=Extra()).run(5)
    resumed = line_loop(tmp_path, model=Extra())

    assert resumed.model.k >= 5
    assert torch.isinf(resumed.model.mask).any()


def test_an_update_that_is_broken_off_is_not_saved(tmp_path, monkeypatch):
    """Weights that belong to no step: refused until a checkpoint is loaded."""
    loop = line_loop(tmp_path, task=train_task(optimizer=torch.optim.AdamW))
    loop.run(5)
    before = state_of(loop)
    step = torch.optim.AdamW.step

    def broken(self, *args):
        step(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        optimizer = loop._parts.trainers[0].optimizer
        patch.setattr(optimizer, "step", functools.partial(broken, optimizer))
        with pytest.raises(KeyboardInterrupt):
            loop.run(1)
    with pytest.raises(CheckpointError, match="The update of step 6 was broken off"):
        loop.save_checkpoint("model")

    again = line_loop(None, task=train_task(optimizer=torch.optim.AdamW))
    again.load_checkpoint(str(tmp_path))
    assert all(torch.equal(before[k], v) for k, v in state_of(again).items())
    assert again.step == 5


# Verification


def test_a_setup_that_resumes_passes():
    training.verify_resume(lambda folder: line_loop(folder, dropout=0.3), n_steps=7)


def test_a_setup_that_does_not_resume_is_told_where():
    """Data that nobody seeds."""
    counter = iter(range(1000))

    def make_loop(folder):
        return line_loop(folder, task=train_task(seed=next(counter)))

    with pytest.raises(ValueError, match=r"resumed at step 5 differs .* history train metrics/L2"):
        training.verify_resume(make_loop, n_steps=5)


def test_checkpoints_that_are_not_there_are_not_compared(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint model in"):
        training.differences(str(tmp_path), str(tmp_path))
