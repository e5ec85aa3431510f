"""Evals measure the model as it is, change no training, and tell which was the best."""

import numpy as np
import pytest
import torch
from toys import eval_task, line_loop

from trax_torch import _distributed
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, TrainTask
from trax_torch.supervised._loop.evaluator import Evaluator


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


# What is measured: all rows count alike, or as their weights say


def uneven_batches(kind):
    """Batches of sentences: unevenly many, unevenly long, and with uneven weights."""
    g = torch.Generator().manual_seed(0)
    for n, length in ((4, 5), (4, 2), (1, 7)):
        x = torch.randn(n, length, 3, generator=g, dtype=torch.float64)
        targets = torch.randint(0, 6, (n, length), generator=g)
        weights = torch.rand(n, length, generator=g, dtype=torch.float64).round(decimals=1)
        weights[: n // 2] = 0.0
        if kind == "of rows":
            weights = weights.mean(1, keepdim=True)
        if kind == "ignored":
            targets[weights < 0.3] = -100
        if kind == "numbers":
            targets, weights = x.sum(-1, keepdim=True), weights[..., None]
        yield (x, targets) if kind == "ignored" else (x, targets, weights)


class Swapped(torch.nn.Module):
    """Puts activations where PyTorch's losses want them: (batch, categories, length)."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 6)

    def forward(self, x):
        return self.linear(x).transpose(1, 2)


class Masked(torch.nn.Module):
    """A metric of PyTorch's kind that is given a mask."""

    def forward(self, output, targets, mask):
        right = (output.argmax(-1) == targets).to(mask.dtype)
        return (right * mask).sum() / mask.sum()


def over_items(values, weights):
    """sum(w * value) / sum(w) of batches of values and weights."""
    pairs = [
        (v.flatten(), w.expand(v.shape).flatten()) for v, w in zip(values, weights, strict=True)
    ]
    values, weights = (torch.cat(items) for items in zip(*pairs, strict=True))
    return float((values * weights).sum() / weights.sum())


def measured(model, metric, batches_, **kwargs):
    """What an eval of a metric on these batches gives."""
    task = EvalTask(batches_, metric, metric_names=["it"], **kwargs)
    world = _distributed.World(0, 1, torch.device("cpu"))
    return Evaluator(tl.as_layer(model), task, world).means(0)["it"]


@pytest.mark.parametrize("kind", ["weights", "of rows"])
@pytest.mark.parametrize("metric", [tl.WeightedCategoryAccuracy(), tl.Accuracy(), Masked()])
def test_weights_count_once_for_each_of_their_items(metric, kind):
    """Also those that are broadcast, in batches of other lengths."""
    model, data = torch.nn.Linear(3, 6).double(), list(uneven_batches(kind))
    right = [(model(x).argmax(-1) == y).double() for x, y, _ in data]
    if isinstance(metric, Masked):
        data = [(x, y, w.expand(y.shape)) for x, y, w in data]

    wanted = over_items(right, [w for _, _, w in data])
    assert measured(model, metric, data) == pytest.approx(wanted, rel=1e-6)
    assert measured(model, metric, iter([data[0], *data]), n_eval_batches=3) == pytest.approx(
        wanted, rel=1e-6
    )  # of a generator, too


def test_weighted_losses_are_those_of_one_batch():
    model, data = torch.nn.Linear(3, 1).double(), list(uneven_batches("numbers"))
    errors = [(model(x) - y).detach() ** 2 for x, y, _ in data]

    wanted = over_items(errors, [w for _, _, w in data])
    assert measured(model, tl.L2Loss(), data) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("weight", [None, torch.linspace(0.1, 1, 6, dtype=torch.float64)])
def test_targets_that_torch_ignores_do_not_count(weight):
    model, data = Swapped().double(), list(uneven_batches("ignored"))
    flat = [(model(x).transpose(1, 2).flatten(0, 1), y.flatten()) for x, y in data]
    outputs, targets = (torch.cat(items) for items in zip(*flat, strict=True))
    loss = torch.nn.CrossEntropyLoss(weight)

    wanted = float(loss(outputs.detach(), targets))
    assert measured(model, loss, data) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("metric", [tl.MaskedSequenceAccuracy(), tl.SequenceAccuracy()])
def test_whole_sequences_count_alike(metric):
    """However many of their items are looked at."""
    model, data = torch.nn.Linear(3, 6).double(), list(uneven_batches("weights"))
    right = [((model(x).argmax(-1) == y) | (w == 0)).all(1).double() for x, y, w in data]

    assert 0 < float(torch.cat(right).mean()) < 1
    wanted = float(torch.cat(right).mean())
    assert measured(model, metric, data) == pytest.approx(wanted, rel=1e-12)


def test_rows_count_alike_where_nothing_else_is_known():
    x = torch.arange(9.0, dtype=torch.float64)[:, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x * 0), 4)
    model = torch.nn.Linear(1, 1).double()

    whole = float(torch.nn.MSELoss()(model(x), x * 0).detach())
    assert measured(model, torch.nn.MSELoss(), loader) == pytest.approx(whole, rel=1e-12)
    absolute = tl.Fn("Error", lambda y, t: (y - t).abs().mean())
    whole = float(model(x).detach().abs().mean())
    assert measured(model, absolute, loader) == pytest.approx(whole, rel=1e-12)


def test_a_batch_that_counts_for_nothing_changes_nothing():
    """Its metric is 0 / 0; if nothing counts in any, there is no number."""
    data = [(x, y, w.bool().double()) for x, y, w in uneven_batches("weights")]
    nothing = [(x, y, w * 0) for x, y, w in data]
    model = torch.nn.Linear(3, 6).double()

    alone = measured(model, tl.WeightedCategoryAccuracy(), data)
    with_it = measured(model, tl.WeightedCategoryAccuracy(), [*nothing, *data])
    assert with_it == alone > 0
    assert np.isnan(measured(model, tl.WeightedCategoryAccuracy(), nothing))


def test_a_sum_is_the_mean_of_the_batches_sums():
    x = torch.arange(6.0)[:, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x * 0), 4)

    sums = measured(torch.nn.Identity(), torch.nn.L1Loss(reduction="sum"), loader)
    assert sums == (0 + 1 + 2 + 3 + 4 + 5) / 2


def test_a_model_that_stands_still_is_measured_alike_each_time():
    """The default of a loader: all of it, from its first batch on."""
    x = torch.randn(450, 4)
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    loader = torch.utils.data.DataLoader(data, 64)
    model = torch.nn.Linear(4, 2)
    right = tl.Fn("Right", lambda y, t: (y.argmax(-1) == t).double().mean())
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    task = TrainTask(loader, torch.nn.CrossEntropyLoss(), still, n_steps_per_checkpoint=1)
    loop = line_loop(model=model, task=task, evals=EvalTask(loader, right))
    loop.run(4)

    true = float((model(x).argmax(-1) == data.tensors[1]).double().mean())
    wanted = pytest.approx(true, rel=1e-12)
    assert loop.history.get("eval", "metrics/Right") == [(i, wanted) for i in (1, 2, 3, 4)]


def test_a_metric_that_is_not_one_number_is_named():
    evals = eval_task(metrics=[tl.Fn("Errors", lambda y, t: (y - t) ** 2)])
    with pytest.raises(ValueError, match=r"Errors gives shape \(4, 1\)"):
        line_loop(evals=evals).run_evals()
