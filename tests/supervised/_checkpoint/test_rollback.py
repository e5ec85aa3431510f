"""Loading is all or nothing, also where a part that others wrote refuses in the midst of it."""

import copy
import functools

import pytest
import torch
from torch import nn
from toys import batches

from trax_torch import optimizers
from trax_torch._errors import CheckpointError, RestoreError
from trax_torch.supervised import Loop, TrainTask, callbacks
from trax_torch.supervised._checkpoint.rollback import Rollback


def refuse_once(part, why):
    if part.refuses:
        part.refuses = False
        raise KeyError(why)


class Remembers:
    """Counts its steps, and refuses a state half way if it is told to."""

    refuses = False

    def state_dict(self):
        return {"count": self.count, "sums": [torch.tensor(float(self.count))]}

    def load_state_dict(self, state):
        self.count, self.half_loaded = state["count"], True
        refuse_once(type(self), "sums")
        del self.half_loaded


class Counting(Remembers, callbacks.TrainingStepCallback):
    count = 0

    def on_step_end(self, step):
        self.count = step


class Schedule(torch.optim.lr_scheduler.ExponentialLR):
    refuses = False

    def __init__(self, optimizer):
        super().__init__(optimizer, gamma=0.9)

    def load_state_dict(self, state):
        super().load_state_dict({**state, "half_loaded": True})
        refuse_once(type(self), "gamma")
        del self.half_loaded


class Adam(torch.optim.AdamW):
    refuses = False

    def load_state_dict(self, state):
        super().load_state_dict(state)
        refuse_once(type(self), "step")


class Scaled(nn.Module):
    """Keeps a number that is no tensor."""

    refuses = False

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return self.scale * x

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]
        refuse_once(type(self), "scale")


class Data(Remembers):
    """Batches that know their place; they can be gone through again."""

    count = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        return tuple(map(torch.as_tensor, next(batches(self.count, weights=False))))


PARTS = (Counting, Schedule, Adam, Scaled, Data)


def loop_of(folder, model=None, data=None, optimizer=None):
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Scaled(), nn.Linear(4, 1))
    optimizer = optimizer or Adam(model.parameters(), lr=0.1)
    task = TrainTask(data or Data(), nn.MSELoss(), optimizer, Schedule, n_steps_per_checkpoint=5)
    ema = functools.partial(callbacks.ExponentialMovingAverage, decay=0.9)
    callbacks_of = {"callbacks": [ema, Counting], "random_seed": 0, "progress": False}
    return Loop(model, task, output_dir=folder and str(folder), **callbacks_of)


def state_of(loop):
    """Weights, buffers and slots."""
    tensors = [*loop.model.parameters(), *loop.model.buffers()]
    return copy.deepcopy((tensors, loop.optimizers[0].state_dict()["state"]))


def everything(loop):
    """What of a loop a load could change, with copies of tensors."""
    parts = [loop.optimizers[0], loop._parts.pacers[0].scheduler, *loop.callbacks]
    attributes = [sorted(vars(part)) for part in parts]
    numbers = [loop.step, str(loop.history), loop._state.seed, loop._state.n_rngs]
    numbers += [loop._parts.accumulators[0].to_dict()["sums"], loop.model[2].scale]
    place = loop.tasks[0].stream.position()
    states = [part.state_dict() for part in parts]
    return copy.deepcopy((state_of(loop), attributes, numbers, place, states))


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[key] for key in a]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_part_that_refuses_half_way_leaves_all_as_it_was(tmp_path, monkeypatch, part):
    """Weights, slots, rates, numbers, history, places; and the run goes on as if nothing was."""
    loop_of(tmp_path).run(10)
    loop, twin = loop_of(None), loop_of(None)
    loop.run(3)
    before = everything(loop)
    monkeypatch.setattr(part, "refuses", True)

    words = {Counting: "callback Counting0", Scaled: "extra state of 2", Data: "data of task 0"}
    words |= dict.fromkeys((Adam, Schedule), "optimizer of task 0, or its scheduler,")
    match = f"{words[part]} does not take up .* nothing was loaded. KeyError"
    with pytest.raises(RestoreError, match=match) as caught:
        loop.load_checkpoint(str(tmp_path))
    assert_same(everything(loop), before)
    loop.run(7)
    twin.run(10)
    assert_same(state_of(loop), state_of(twin))
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("recipe", [optimizers.Adafactor, optimizers.SM3, optimizers.Momentum])
def test_slots_that_are_filled_in_place_are_put_back(tmp_path, monkeypatch, recipe):
    """What refuses comes after them."""
    loop_of(tmp_path, optimizer=recipe(0.1)).run(10)
    loop = loop_of(None, optimizer=recipe(0.1))
    loop.run(3)
    before = everything(loop)
    monkeypatch.setattr(Counting, "refuses", True)

    with pytest.raises(RestoreError):
        loop.load_checkpoint(str(tmp_path))

    assert_same(everything(loop), before)


def test_what_refused_may_be_loaded_later(tmp_path, monkeypatch):
    loop_of(tmp_path).run(10)
    loop = loop_of(None)
    monkeypatch.setattr(Adam, "refuses", True)
    with pytest.raises(RestoreError):
        loop.load_checkpoint(str(tmp_path))
    loop.load_checkpoint(str(tmp_path))

    assert_same(state_of(loop), state_of(loop_of(tmp_path)))


def test_an_iterator_that_ends_before_its_place_says_so_and_nothing_else_has_changed(tmp_path):
    loop_of(tmp_path).run(10)
    short = iter([next(Data()) for _ in range(6)])
    loop = loop_of(None, data=short)
    before = everything(loop)

    with pytest.raises(RestoreError, match="The data of task 0 .*ended after 6 batches") as caught:
        loop.load_checkpoint(str(tmp_path))
    (note,) = caught.value.__notes__
    assert "The data of task 0 could not be put back, and is to be built anew" in note
    after = everything(loop)
    assert_same(after[:3] + after[4:], before[:3] + before[4:])


def test_one_that_cannot_go_back_keeps_no_other_from_it():
    gone_back = []

    def stuck():
        raise ValueError("it is stuck")

    with (
        pytest.raises(RestoreError, match="third .*KeyError: 'x'") as caught,
        Rollback() as rollback,
    ):
        rollback.put("The first", str, 1, lambda: gone_back.append("first"))
        rollback.put("The second", str, 1, stuck)
        rollback.put("The third", {}.__getitem__, "x", lambda: gone_back.append("third"))

    assert gone_back == ["third", "first"]
    assert caught.value.__notes__ == [
        "The second could not be put back, and is to be built anew: it is stuck"
    ]
