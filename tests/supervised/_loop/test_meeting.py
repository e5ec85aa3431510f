"""How batches meet models: as they come, by name or position, with any loss, as in a bare loop."""

import collections
import dataclasses
import functools

import pytest
import torch
from meetings import (
    CLASSES,
    LOSSES,
    ROW,
    ROWS,
    Batch,
    Both,
    Frozen,
    Named,
    Net,
    Returning,
    WithOwnLoss,
    assert_same,
    bare,
    kind_of,
    seeded,
    trained,
)
from torch import nn
from torch.nn import functional as F

from trax_torch import _nest
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, Loop, TrainTask

BATCHES = [
    {"x": ROWS, "labels": CLASSES},
    {"labels": CLASSES.numpy(), "x": ROWS.numpy()},
    collections.UserDict(x=ROWS, labels=CLASSES),
    Batch(ROWS, CLASSES),
    Frozen(CLASSES, ROWS),
    Named(CLASSES, ROWS),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batch", BATCHES, ids=kind_of)
def test_batches_with_names_train_as_in_a_bare_loop(batch, loss):
    """Whatever they are, and however the loss is given."""
    loop = trained(seeded(Net), batch, loss)

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_batches_with_names_make_up_the_whole(loss):
    """Mappings are cut along the first axis, too."""
    loop = trained(seeded(Net), ROW, loss, n_accumulation_steps=2)

    weights = bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES))
    for name, weight in loop.model.named_parameters():
        torch.testing.assert_close(weight, weights[name])


def test_evals_measure_the_models_own_loss_and_metrics_of_its_outputs():
    """The model is called once for all of them."""
    metrics = ["loss", F.cross_entropy, lambda outputs, batch: outputs["logits"].mean()]
    loop = trained(seeded(Net), ROW, None, evals=metrics)

    model, last = loop.model, lambda name: loop.history.get("eval", f"metrics/{name}")[-1][1]
    logits = model.linear(ROWS).detach()
    assert last("loss") == pytest.approx(F.cross_entropy(logits, CLASSES).item())
    assert last("cross_entropy") == last("loss")
    assert last("metric") == pytest.approx(logits.mean().item())


class Counting:
    """A metric with a state: how many rows are right, of all."""

    def reset(self):
        self.right, self.rows = 0, 0

    def update(self, preds, target):
        self.right += (preds.argmax(-1) == target).sum().item()
        self.rows += len(target)

    def compute(self):
        return self.right / self.rows


def test_metrics_with_a_state_get_the_logits_and_labels_of_batches_with_names():
    """Beside the model's own loss, for which the model gets the labels, too."""
    loop = trained(seeded(Net), ROW, None, evals=["loss", Counting()])

    with torch.no_grad():
        right = (loop.model.linear(ROWS).argmax(-1) == CLASSES).double().mean().item()
    assert loop.history.get("eval", "metrics/Counting")[-1] == (3, pytest.approx(right))


@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_loop_may_compute_the_loss_itself(n_parts):
    """In the place of the task's, with parts, too."""
    loop = trained(seeded(Net), ROW, None, kind=WithOwnLoss, n_accumulation_steps=n_parts)

    def loss_of(model):
        logits = model.linear(ROWS)
        return F.cross_entropy(logits, CLASSES) + logits.square().mean()

    for name, weight in loop.model.named_parameters():
        torch.testing.assert_close(weight, bare(seeded(Net), loss_of)[name])


# What models return.


Outputs = collections.namedtuple("Outputs", "logits hidden")


@dataclasses.dataclass
class Whole:
    hidden: torch.Tensor
    prediction: torch.Tensor


PACKED = [
    lambda y: (y,),
    lambda y: [y, None],
    lambda y: (y, (y, y)),
    lambda y: {"logits": y, "hidden": 2 * y},
    lambda y: {"anything": y, "loss": y.sum()},
    lambda y: Outputs(y, 2 * y),
    lambda y: Whole(2 * y, y),
]


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("batch", [(ROWS, CLASSES), {"x": ROWS, "labels": CLASSES}], ids=kind_of)
def test_a_loss_gets_the_one_tensor_that_can_be_meant(batch, pack):
    """By its name, or because there is no other; in training and evals."""
    loop = trained(seeded(Returning, pack), batch, F.cross_entropy, evals=nn.CrossEntropyLoss())

    assert_same(
        loop, bare(seeded(Returning, pack), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES))
    )
    with torch.no_grad():
        true = F.cross_entropy(loop.model.linear(ROWS), CLASSES).item()
    assert loop.history.get("eval", "metrics/CrossEntropyLoss")[-1] == (3, pytest.approx(true))


def test_the_first_of_several_outputs_is_compared_and_said_so_once(caplog):
    """What a tuple's items are, nothing tells; a loss of outputs and batch can."""
    trained(Returning(lambda y: (y, 2 * y)), (ROWS, CLASSES), nn.CrossEntropyLoss())

    said = [r.getMessage() for r in caplog.records if "the first of them" in r.getMessage()]
    assert len(said) == 1
    assert "Returning.forward(x, mask=None)" in said[0]


def test_a_model_may_return_a_tuple_in_eval_mode_alone():
    """The metric compares the first item, whatever training had."""

    class Eval(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if self.training else (y, None)

    loop = trained(seeded(Eval, 4, 3), (ROWS, CLASSES), F.cross_entropy, evals=F.cross_entropy)
    with torch.no_grad():
        true = F.cross_entropy(F.linear(ROWS, loop.model.weight, loop.model.bias), CLASSES).item()

    assert loop.history.get("eval", "metrics/cross_entropy")[-1] == (3, pytest.approx(true))


@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize("batch", [(ROWS, CLASSES), {"x": ROWS, "y": CLASSES}], ids=kind_of)
def test_a_loss_of_two_outputs_gets_both_and_a_metric_the_first(batch, is_said):
    """Whether or not the model says that it gives two."""

    def model():
        return seeded(Returning, lambda y: (y, -y))

    given = tl.as_layer(model(), n_out=2) if is_said else model()
    task = TrainTask([batch], Both(), torch.optim.SGD(given.parameters(), 0.5))
    evals = EvalTask([batch], [nn.CrossEntropyLoss(), Both()])
    loop = Loop(given, task, eval_tasks=evals, progress=False)
    loop.run(3)

    assert_same(loop, bare(model(), lambda m: Both()(*m(ROWS), CLASSES)))
    with torch.no_grad():
        logits = loop.model.linear(ROWS)
    cross_entropy, both = (
        loop.history.get("eval", f"metrics/{name}")[-1][1] for name in ("CrossEntropyLoss", "Both")
    )
    assert cross_entropy == pytest.approx(F.cross_entropy(logits, CLASSES).item())
    assert both == pytest.approx(Both()(logits, -logits, CLASSES).item())


def test_a_loss_of_ones_own_gets_all_that_the_model_returned():
    """It may look into it; what it calls logits is the tensor."""
    seen = []

    def of_all(outputs, y):
        seen.append(type(outputs))
        return F.cross_entropy(outputs["logits"], y)

    trained(Returning(lambda y: {"logits": y, "more": y}), (ROWS, CLASSES), of_all)

    assert set(seen) == {dict}


# How models are called.


class Own(nn.Module):
    """A model of two arguments that returns its loss beside its logits, or alone."""

    def __init__(self, alone):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self._alone = alone

    def forward(self, x, targets=None):
        logits = self.linear(x)
        loss = None if targets is None else F.cross_entropy(logits, targets)
        return loss if self._alone else (logits, loss)


@pytest.mark.parametrize("alone", [True, False])
def test_a_tuple_goes_to_a_model_with_its_own_loss_whole(alone):
    """All of its items, by their positions."""
    metrics = ["loss"] if alone else ["loss", nn.CrossEntropyLoss()]
    loop = trained(seeded(Own, alone), (ROWS, CLASSES), "model", evals=metrics)

    assert_same(loop, bare(seeded(Own, alone), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))
    values = {
        series[-1][1]
        for series in (
            loop.history.get("eval", f"metrics/{name}")
            for name in ("loss", "CrossEntropyLoss")[: len(metrics)]
        )
    }
    assert len(values) == 1


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, lambda outputs, batch: F.cross_entropy(outputs["logits"], batch[1])]
)
def test_the_first_item_of_a_tuple_may_have_the_names(loss):
    """As data sets give it: what goes into the model in a dict, and the targets beside it."""
    loop = trained(seeded(Net), ({"x": ROWS}, CLASSES), loss, evals=nn.CrossEntropyLoss())

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))
    with torch.no_grad():
        true = F.cross_entropy(loop.model.linear(ROWS), CLASSES).item()
    assert loop.history.get("eval", "metrics/CrossEntropyLoss")[-1] == (3, pytest.approx(true))


def test_a_model_may_take_the_first_item_of_a_tuple_whole():
    """Its names are not those of the model's arguments."""
    loop = trained(seeded(OfBatch), ({"x": ROWS}, CLASSES), F.cross_entropy)

    assert_same(loop, bare(seeded(OfBatch), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


class OfBatch(nn.Module):
    """Takes a batch as one object."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, batch):
        return self.linear(batch.x if hasattr(batch, "x") else batch["x"])


class Graph:
    """An object that knows how to move, as batches of graphs do."""

    def __init__(self, x, y, device="cpu"):
        self.x, self.y, self.device = x, y, device

    def to(self, device):
        return Graph(self.x.to(device), self.y.to(device), device)


@pytest.mark.parametrize("batch", [Graph(ROWS, CLASSES), {"x": ROWS, "y": CLASSES}], ids=kind_of)
@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), lambda out, batch: F.cross_entropy(out, _y(batch))]
)
def test_a_model_may_take_a_batch_as_one_object(batch, loss):
    loop = trained(seeded(OfBatch), batch, loss)

    assert_same(loop, bare(seeded(OfBatch), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


def _y(batch):
    return batch.y if hasattr(batch, "y") else batch["y"]


def test_objects_that_know_how_to_move_are_moved():
    moved = _nest.to_tensors(Graph(ROWS, CLASSES), torch.device("meta"))
    both = _nest.to_tensors({"a": [ROWS], "b": Batch(ROWS, CLASSES)}, torch.device("meta"))

    assert (moved.x.device.type, moved.y.device.type) == ("meta", "meta")
    assert {leaf.device.type for leaf in _nest.leaves(both)} == {"meta"}
    assert isinstance(both["b"], Batch)


def test_a_namedtuple_of_other_names_is_a_stack():
    """Its items have their positions, as a tuple's have."""
    batch = collections.namedtuple("Pair", "first second")(ROWS, CLASSES)
    loop = trained(seeded(Net), batch, F.cross_entropy)

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


def test_a_lone_tensor_is_a_batch():
    """For models that need nothing else for their loss."""
    loop = trained(seeded(Returning, lambda y: y.square().mean()), ROWS, None)

    wanted = bare(seeded(Returning, None), lambda m: m.linear(ROWS).square().mean())
    assert_same(loop, wanted)


def test_weights_are_made_for_batches_with_names():
    """Lazy modules see the items that they will be called with."""

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.LazyLinear(3)

        def forward(self, *, features):
            return self.linear(features)

    batch = {"features": ROWS, "labels": CLASSES}
    task = TrainTask([batch], nn.CrossEntropyLoss(), torch.optim.SGD)
    loop = Loop(Lazy(), task, progress=False)
    loop.run(1)

    assert loop.model.linear.weight.shape == (3, 4)


def test_masks_reach_the_model_by_name():
    """An optional argument is given where the batch has it."""
    mask = (torch.arange(8) % 2).float()
    batch = {"x": ROWS, "mask": mask, "labels": CLASSES}
    loop = trained(seeded(Net), batch, nn.CrossEntropyLoss())

    def loss_of(model):
        return F.cross_entropy(model.linear(ROWS) * mask[:, None], CLASSES)

    assert_same(loop, bare(seeded(Net), loss_of))


class TwoInputs(nn.Module):
    """Takes two inputs, one of which has a name that targets often have; gives two outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, y):
        return self.linear(x), self.linear(y)


@pytest.mark.parametrize("is_said", [True, False])
def test_what_a_model_cannot_do_without_is_an_input(is_said):
    """The target is the other item of such a name; a loss may take two outputs before it."""
    model = tl.as_layer(seeded(TwoInputs), n_out=2) if is_said else seeded(TwoInputs)
    target = 1 - 2 * (CLASSES > 1).float()
    batch = {"x": ROWS, "y": ROWS.flip(0), "target": target}
    loss = nn.CosineEmbeddingLoss() if is_said else F.cosine_embedding_loss
    given = loss if is_said else lambda a, b, target: loss(a, b, target)
    loop = trained(model, batch, given)

    assert_same(loop, bare(seeded(TwoInputs), lambda m: loss(*m(ROWS, ROWS.flip(0)), target)))


def test_tasks_may_have_batches_of_different_kinds():
    """Each meets the model in its own way."""
    model = seeded(Net)
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    data = [ROW], [(ROWS, CLASSES)]
    tasks = [
        TrainTask(each, loss, optimizer)
        for each, loss in zip(data, (None, F.cross_entropy), strict=True)
    ]
    loop = Loop(model, tasks, eval_tasks=EvalTask([ROW], "loss"), progress=False)
    loop.run(4)

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES), 4))


def test_what_was_decided_is_said_once(capsys):
    """In a line, where it is not Trax's way; the plain way needs none."""
    batch = {"x": ROWS, "labels": CLASSES, "row": torch.arange(8)}
    trained(Net(), batch, None, evals=["loss", nn.CrossEntropyLoss()])
    lines = capsys.readouterr().out.splitlines()
    trained(nn.Linear(4, 3), (ROWS, CLASSES), nn.CrossEntropyLoss())
    plain = capsys.readouterr().out

    assert [line for line in lines if line.startswith(("Batches", "Evals"))] == [
        "Batches: Net(x=, labels=), its own loss; not used: row.",
        "Evals: Net(x=, labels=), its own loss, CrossEntropyLoss(outputs, labels).",
    ]
    assert "Batches" not in plain
