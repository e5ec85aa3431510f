"""What leaves open how a batch meets a model is refused, with what each takes and what to write."""

import collections
import re

import pytest
import torch
from meetings import CLASSES, ROW, ROWS, Both, Frozen, Net, Returning, trained
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask

MISFITS = [
    (
        nn.Linear(4, 3),
        {"x": ROWS, "y": CLASSES},
        F.cross_entropy,
        "needs input.*def forward(self, batch)",
    ),
    (Net(), {"x": ROWS}, nn.CrossEntropyLoss(), "which of x that is, nothing tells"),
    (Net(), {**ROW, "y": CLASSES}, F.cross_entropy, "CrossEnt|cross_entropy.input, target"),
    (Net(), (ROWS, CLASSES), None, "all 2 items of a batch"),
    (Returning(lambda y: y), ROW, None, "it returned .8, 3..*Returning.forward.x, mask=None."),
    (Returning(lambda y: {"a": y, "b": y}), ROW, F.cross_entropy, "dict.a: .8, 3., b: .8, 3.."),
    (Returning(lambda y: y), (ROWS, CLASSES), Both(), "takes 2 outputs .*returned .8, 3."),
    (Net(), (ROWS, ROWS[:, 0], CLASSES), F.cross_entropy, "yield dicts.*as_layer.model, n_in=2."),
    (Net(), ({"x": ROWS}, CLASSES), None, "the loss 0 of the 1 others"),
    (Net(), ({"x": ROWS}, CLASSES, ROWS), F.cross_entropy, "the loss 1 of the 2 others"),
    (Net(), ({"x": ROWS},), nn.CrossEntropyLoss(), "the loss 1 of the 0 others"),
    (tl.Serial(tl.Dense(3)), ROW, tl.L2Loss(), "takes the items of a tuple.*batch.'x'."),
]


@pytest.mark.parametrize(("model", "batch", "loss", "words"), MISFITS)
def test_what_is_left_open_is_refused_with_what_each_takes(model, batch, loss, words):
    """Nothing is guessed: the signatures are shown, and the line to write."""
    with pytest.raises(Exception, match="The model is .*, the loss .*, the batch") as caught:
        Loop(model, TrainTask([batch], loss, optimizers.SGD(0.1)), progress=False).run(1)

    assert re.search(
        words.replace("(self, batch)", r"\(self, batch\)"), str(caught.value), re.DOTALL
    )


def test_a_step_that_fails_tells_how_the_batch_met_the_model():
    loss = lambda outs, labels: F.cross_entropy(outs, labels)  # noqa: E731
    with pytest.raises(tl.LayerError) as caught:
        trained(Net(), ROW, loss)

    (note,) = caught.value.__notes__
    assert "Net(x=), loss(outputs, labels). The model is Net.forward(x, mask=None, labels" in note


def test_a_function_of_torchs_does_not_repeat_outputs_either():
    """As its module: (N, 1) and (N,) would be all pairs."""
    with pytest.raises(tl.LayerError, match=r"one shape; got \(8, 1\) and \(8,\)"):
        trained(nn.Linear(4, 1), (ROWS, ROWS[:, 0]), F.mse_loss)


def test_a_metric_that_does_not_fit_tells_how_the_batch_met_the_model():
    metric = lambda outs, labels: F.cross_entropy(outs, labels)  # noqa: E731
    with pytest.raises(tl.LayerError) as caught:
        trained(Net(), ROW, None, evals=["loss", metric])

    assert any("the batch a dict of x, labels" in note for note in caught.value.__notes__)


def test_batches_must_be_alike():
    """One that lacks what the sample had is told of, with what came."""
    task = TrainTask([ROW, {"x": ROWS}], None, optimizers.SGD(0.1), sample_batch=ROW)
    loop = Loop(Net(), task, progress=False)
    with pytest.raises(ValueError, match=r"had \['x', 'labels'\].* one came with \['x'\]"):
        loop.run(2)


@pytest.mark.parametrize("kind", [dict, collections.UserDict, lambda b: Frozen(**b)])
def test_what_the_sample_had_not_does_not_go_by_in_silence(kind):
    """A mask that later batches have is none that the model never sees."""
    masked = kind({**ROW, "mask": torch.ones(8)})
    task = TrainTask([kind(ROW), masked], None, optimizers.SGD(0.1), sample_batch=kind(ROW))
    loop = Loop(Net(), task, progress=False)
    loop.run(1)

    with pytest.raises(ValueError, match="takes mask, which a batch has, but the sample batch did"):
        loop.run(1)


def test_what_nobody_takes_may_come_and_go():
    rows = {**ROW, "row": torch.arange(8)}
    task = TrainTask([rows, ROW], None, optimizers.SGD(0.1), sample_batch=ROW)
    loop = Loop(Net(), task, progress=False)
    loop.run(2)

    assert loop.step == 2


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (torch.optim.SGD([torch.ones(1)]), "The order is TrainTask"),
        (nn.CrossEntropyLoss, "Make one: CrossEntropyLoss"),
        (tl.L2Loss, "If it makes a loss, call it: L2Loss"),
        (5, "'model' for the model's own loss"),
    ],
)
def test_what_is_no_loss_is_refused(loss, words):
    with pytest.raises((TypeError, ValueError), match=words):
        TrainTask([ROW], loss, optimizers.SGD(0.1))


def test_loss_is_another_name_for_loss_layer():
    task = TrainTask([ROW], loss=F.cross_entropy, optimizer=optimizers.SGD(0.1))

    assert task.loss_name == "cross_entropy"
    with pytest.raises(TypeError, match="Give one of them"):
        TrainTask([ROW], F.cross_entropy, optimizers.SGD(0.1), loss=F.cross_entropy)
    with pytest.raises(TypeError, match="needs an optimizer"):
        TrainTask([ROW], loss=F.cross_entropy)


def test_a_setting_that_a_models_own_loss_cannot_have_is_refused():
    with pytest.raises(ValueError, match="the model computes it itself"):
        trained(Net(), ROW, None, loss_chunk_size=4)


def test_a_computed_loss_is_one_number():
    class Rows(Loop):
        def compute_loss(self, model, batch):
            return model(batch["x"])["logits"]

    with pytest.raises(tl.LayerError, match=r"a tensor of no axes; got \(8, 3\)"):
        trained(Net(), ROW, None, kind=Rows)
