"""`loop.eval_model` predicts: never with dropout, always with the weights in training."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import training

X = np.ones((4, 3), np.float32)


def data():
    while True:
        yield X, X[:, :2]


def layers(mode="train"):
    return tl.Serial(tl.Dense(5), tl.BatchNorm(axis=0), tl.Dropout(0.5, mode=mode), tl.Dense(2))


def modules():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))


def loop_of(model, **settings):
    task = training.TrainTask(data(), nn.MSELoss(), optimizers.Adam(0.01))
    evals = training.EvalTask(data(), nn.MSELoss())
    return training.Loop(model, task, eval_tasks=evals, random_seed=1, **settings)


def answer(model):
    with torch.no_grad():
        return model(torch.from_numpy(X))


@pytest.mark.parametrize("make", [layers, modules])
def test_it_predicts_without_dropout_while_the_model_is_in_training(make):
    """After a run, between runs, and of the type that was given."""
    model = make()
    loop = loop_of(model)
    for _ in range(2):
        loop.run(3)

        found = [answer(loop.eval_model) for _ in range(3)]

        assert loop.model is model
        assert all(m.training for m in model.modules())
        assert type(loop.eval_model) is type(model)
        model.eval()
        assert all(torch.equal(f, answer(model)) for f in found)
        model.train()


@pytest.mark.parametrize("make", [layers, modules])
def test_its_tensors_are_the_models_own(make):
    """Held before, it follows the training; what is saved and loaded is the same."""
    loop = loop_of(make())
    held = loop.eval_model
    loop.run(3)

    own, theirs = loop.model.state_dict(keep_vars=True), loop.eval_model.state_dict(keep_vars=True)
    assert held is loop.eval_model
    assert list(own) == list(theirs)
    assert all(theirs[name] is tensor for name, tensor in own.items())


def test_training_is_the_same_whether_or_not_it_is_looked_at():
    losses = []
    for looks in (True, False):
        loop = loop_of(layers())
        for _ in range(3):
            loop.run(1)
            if looks:
                answer(loop.eval_model)
            losses.append(loop.loss)

    assert losses[:3] == losses[3:]


def test_an_eval_model_that_was_given_is_it():
    given = layers("eval")

    assert loop_of(layers(), eval_model=given).eval_model is given


def test_a_model_that_cannot_be_copied_is_it_and_that_is_said():
    class Locked(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.lock = threading.Lock()

    loop = loop_of(Locked())
    with pytest.warns(UserWarning, match="in training, which cannot be copied"):
        assert loop.eval_model is loop.model
