"""Metrics with a state are those of all rows at once: reset before an eval, and computed once."""

import functools

import packages
import pytest
import torch
from stateful import Seen, auroc, classes, collection, sorted_rows, trained
from torch import nn
from toys import batches, eval_task, line_loop

from trax_torch import _distributed, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import EpochMetric, EvalTask, Loop, TrainTask
from trax_torch.supervised._loop.evaluator import Evaluator
from trax_torch.supervised.callbacks import EarlyStopping


class First(nn.Module):
    """Gives a row's number as its score."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, 0] + self.weight


def measured(metrics, data, model=None, **kwargs):
    """What an eval finds, by name."""
    task = EvalTask(data, metrics, **kwargs)
    world = _distributed.World(0, 1, torch.device("cpu"))
    return Evaluator(tl.as_layer(model or First()), task, world).means(0)


def in_batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def test_a_metric_is_reset_before_each_eval_and_computed_once():
    metric, data = Seen(), in_batches(*sorted_rows(), 3)
    task = EvalTask(data, metric)
    world = _distributed.World(0, 1, torch.device("cpu"))
    evaluator = Evaluator(tl.as_layer(First()), task, world)

    assert [evaluator.means(0), evaluator.means(0)] == [{"Seen": 8}, {"Seen": 8}]
    assert metric.calls == 2 * ["reset", "update", "update", "update", "compute"]


def test_a_function_of_all_rows_is_no_mean_of_batches():
    x, y = sorted_rows()
    order = torch.tensor([0, 4, 5, 1, 6, 2, 3, 7])
    x, y = x[order], y[order]
    data = in_batches(x, y, 2)

    found = measured([EpochMetric(lambda o, t: auroc(o, t), "auroc"), nn.L1Loss()], data)
    assert list(found) == ["auroc", "L1Loss"]  # in the order they are given
    assert found["auroc"] == 1.0
    assert found["L1Loss"] == pytest.approx(float((x[:, 0] - y).abs().mean()))


def test_plain_metrics_beside_those_with_a_state_keep_their_numbers():
    data = in_batches(*sorted_rows(), 3)
    alone = measured([nn.L1Loss(), nn.MSELoss()], data)
    both = measured([nn.L1Loss(), Seen(), nn.MSELoss()], data)

    assert {k: v for k, v in both.items() if k != "Seen"} == alone


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
def test_updates_are_in_full_precision_without_gradients():
    metric = Seen()
    task = TrainTask(batches(), tl.L2Loss(), optimizers.SGD(0.1))
    evals = eval_task(metrics=[metric])
    loop = line_loop(task=task, evals=evals, precision="bf16")
    loop.run_evals()

    assert metric.types == [(torch.float32, False, False)]
    task = TrainTask(
        [(torch.ones(2, 3).half(), torch.ones(2, 1).half())], nn.MSELoss(), optimizers.SGD(0.1)
    )
    evals = EvalTask([(torch.ones(2, 3).half(), torch.ones(2, 1).half())], metric)
    line_loop(model=nn.Linear(3, 1).half(), task=task, evals=evals).run_evals()
    assert metric.types[-1] == (torch.float32, False, False)


def test_several_numbers_have_names_below_the_metrics():
    data = in_batches(*sorted_rows(), 3)
    found = measured([Seen({"f1": 0.5, "by": torch.tensor([1.0, 2.0])}), nn.L1Loss()], data)

    assert list(found) == ["Seen/f1", "Seen/by/0", "Seen/by/1", "L1Loss"]


def test_two_values_of_one_name_are_refused():
    data = in_batches(*sorted_rows(), 3)
    with pytest.raises(ValueError, match="Two metrics come to a value called 'a/x'"):
        measured([Seen({"x": 1}), nn.L1Loss()], data, metric_names=["a", "a/x"])


def test_one_metric_serves_two_eval_tasks():
    metric, (x, y) = Seen(), sorted_rows()
    evals = [EvalTask(in_batches(x[:n], y[:n], 2), metric) for n in (4, 6)]
    model = First()
    task = TrainTask([(x, y.float())], nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    loop = Loop(model, task, eval_tasks=evals, progress=False, random_seed=0)

    assert loop.run_evals() == {"0/metrics/Seen": 4, "1/metrics/Seen": 6}


class Falling(Seen):
    """Computes 1, 2, 3, 2, 2, 2, ... as the best of several numbers."""

    def compute(self):
        n = sum(call == "reset" for call in self.calls)
        return {"best": [0, 1, 2, 3][n] if n < 4 else 2, "other": 0}


def test_the_best_and_early_stopping_take_one_of_several_numbers(tmp_path):
    stop = functools.partial(EarlyStopping, metric="it/best", patience=3, mode="max")
    loop = line_loop(
        tmp_path,
        evals=eval_task(metrics=[Falling()], metric_names=["it"]),
        eval_at=lambda step: True,
        checkpoint_high_metric="it/best",
        callbacks=[stop],
    )
    loop.run(20)

    assert [v for _, v in loop.history.get("eval", "metrics/it/best")] == [1, 2, 3, 2, 2, 2]
    assert loop.step == 6
    best = line_loop(tmp_path, resume_from="highest_it_best", evals=eval_task(metrics=[Falling()]))
    assert best.step == 3


@pytest.mark.parametrize("how", ["best", "stopping"])
def test_a_number_that_a_metric_does_not_come_to_is_named(tmp_path, how):
    stop = functools.partial(EarlyStopping, metric="it/f1", patience=3)
    kwargs = {"callbacks": [stop]} if how == "stopping" else {"checkpoint_low_metric": "it/f1"}
    evals = eval_task(metrics=[Falling()], metric_names=["it"])
    loop = line_loop(tmp_path, evals=evals, **kwargs)
    with pytest.raises(ValueError, match="'it/f1' is not among.*it/best, it/other"):
        loop.run(1)


def test_states_are_in_no_checkpoint_and_the_run_goes_on_alike(tmp_path):
    def make(folder):
        return line_loop(
            folder, evals=eval_task(metrics=[Seen(), tl.L2Loss()]), eval_at=lambda step: True
        )

    whole = make(tmp_path / "whole")
    whole.run(6)
    make(tmp_path / "cut").run(3)
    resumed = make(tmp_path / "cut")
    resumed.run(3)

    for name in ("metrics/Seen", "metrics/L2Loss"):
        assert resumed.history.get("eval", name) == whole.history.get("eval", name)


# torchmetrics, as they are


def all_at_once(metric, model, x, y):
    metric.reset()
    metric.update(model(x).detach(), y)
    return metric.compute()


@pytest.mark.parametrize("size", [64, 8, 7, 1])
def test_torchmetrics_are_those_of_all_rows(size):
    tm = packages.needed("torchmetrics")
    kinds, (x, y), model = tm.classification, classes(), trained()
    metrics = [
        kinds.MulticlassF1Score(2, average="macro"),
        kinds.MulticlassAUROC(2),
        kinds.MulticlassAveragePrecision(2),
        tm.MatthewsCorrCoef(task="multiclass", num_classes=2),
    ]
    found = measured(metrics, in_batches(x, y, size), model)

    for metric in metrics:
        name = type(metric).__name__
        assert found[name] == pytest.approx(float(all_at_once(metric, model, x, y)), abs=1e-6)


def test_a_collection_comes_to_a_number_for_each_of_its_names():
    tm = packages.needed("torchmetrics")
    (x, y), model, metric = classes(), trained(), collection(tm)
    found = measured(metric, in_batches(x, y, 8), model, metric_names=["it"])

    wanted = all_at_once(collection(tm), model, x, y)
    assert sorted(found) == ["it/auroc", "it/f1", "it/recall/0", "it/recall/1"]
    assert found["it/auroc"] == pytest.approx(float(wanted["auroc"]), abs=1e-6)
    assert found["it/recall/1"] == pytest.approx(float(wanted["recall"][1]), abs=1e-6)


def test_a_matrix_is_refused_by_name():
    tm = packages.needed("torchmetrics")
    metric = tm.classification.MulticlassConfusionMatrix(2)
    with pytest.raises(ValueError, match="MulticlassConfusionMatrix computes .*shape .2, 2."):
        measured(metric, in_batches(*classes(), 8), trained())


def test_torchmetrics_take_part_in_a_run_as_they_are():
    """The mean of batches is another number than that of all rows; so it is no longer told."""
    tm = packages.needed("torchmetrics")
    (x, y), model = classes(), nn.Linear(10, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    metric = tm.AUROC(task="multiclass", num_classes=2)
    task = TrainTask(loader, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 0.05))
    loop = Loop(model, task, eval_tasks=EvalTask(loader, metric), progress=False, random_seed=0)
    loop.run(30)

    ((_, last),) = loop.history.get("eval", "metrics/MulticlassAUROC")[-1:]
    wanted = all_at_once(tm.AUROC(task="multiclass", num_classes=2), model, x, y)
    assert last == pytest.approx(float(wanted), abs=1e-6)
    assert float(metric.compute()) == pytest.approx(last, abs=1e-6)  # it can be looked at


def test_scikit_learns_functions_are_those_of_all_rows():
    metrics = packages.needed("sklearn.metrics")
    (x, y), model = classes(), trained()
    found = measured(
        [
            EpochMetric(lambda o, t: metrics.roc_auc_score(t, o[:, 1]), "auroc"),
            EpochMetric(lambda o, t: metrics.f1_score(t, o.argmax(1), average="macro"), "f1"),
            EpochMetric(functools.partial(metrics.log_loss, labels=[0, 1])),
        ],
        in_batches(x, y, 7),
        model,
    )

    outputs = model(x).detach()
    assert found == {
        "auroc": pytest.approx(metrics.roc_auc_score(y, outputs[:, 1])),
        "f1": pytest.approx(metrics.f1_score(y, outputs.argmax(1), average="macro")),
        "log_loss": pytest.approx(metrics.log_loss(y.numpy(), outputs.numpy()), rel=1e-6),
    }
    data = in_batches(*sorted_rows(), 2)
    assert measured([EpochMetric(metrics.roc_auc_score)], data) == {"roc_auc_score": 1.0}
    assert measured([metrics.roc_auc_score], data) == {"roc_auc_score": 1.0}


def test_a_function_that_takes_targets_first_is_one_of_all_rows():
    """As scikit-learn's are: of batches, outputs first, it would say something else."""

    def asymmetric(y_true, y_pred):
        return (y_true == 1).sum() + 100 * len(y_pred)

    model = nn.Flatten(0)
    data = in_batches(torch.zeros(5, 1), torch.tensor([1, 1, 1, 0, 0]), 2)
    for metric in (asymmetric, functools.partial(asymmetric)):
        assert measured([metric], data, model) == {"asymmetric": 503.0}


def test_logits_that_torchmetrics_takes_for_probabilities_in_some_batches_are_told_of():
    """It would rank a part of them as they are among the sigmoids of the rest; once it is said."""
    torchmetrics = packages.needed("torchmetrics")
    x = torch.tensor([[0.2], [0.9], [-3.0], [2.0]])
    data, y = in_batches(x, torch.tensor([0, 1, 0, 1]), 2), torch.tensor([0, 1, 0, 1])
    metric = torchmetrics.classification.BinaryAUROC()
    with pytest.warns(UserWarning, match="BinaryAUROC is given outputs that lie within"):
        measured(metric, data)
    measured(metric, in_batches(x.sigmoid(), y, 2))

    classes_of_logits = torchmetrics.classification.MulticlassAccuracy(2)
    measured(classes_of_logits, in_batches(torch.cat([x, -x], 1), y, 2), model=nn.Identity())


def test_metrics_that_torchmetrics_takes_for_one_are_told_of():
    """Their first batch came out alike, and all others would be counted by the first's settings."""
    tm = packages.needed("torchmetrics")
    x, y = torch.tensor([0.9, 0.1, 0.4, 0.6]), torch.tensor([1, 0, 1, 1])
    data = in_batches(x[:, None], y, 2)

    def collection(**kwargs):
        at = {f"at_{p}": tm.classification.BinaryAccuracy(threshold=p / 100) for p in (30, 50)}
        return tm.MetricCollection(at, **kwargs)

    with pytest.warns(UserWarning, match="at_30 and at_50 as one metric"):
        measured(collection(), data)
    apart = measured(collection(compute_groups=False), data)
    assert sorted(apart.values()) == [0.75, 1.0]
    same = {
        "precision": tm.classification.BinaryPrecision(),
        "recall": tm.classification.BinaryRecall(),
    }
    measured(tm.MetricCollection(same), data)
