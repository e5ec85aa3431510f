"""Metrics with a state are those of all rows of all ranks, whichever rank has how many batches."""

import packages
import pytest
import ranks
import torch
from stateful import Seen, auroc, classes, collection, sorted_rows, trained
from torch import nn

from trax_torch import _distributed
from trax_torch import layers as tl
from trax_torch.supervised import EpochMetric, EvalTask
from trax_torch.supervised._loop.evaluator import Evaluator

SHARES = {"even": (4, 4), "uneven": (1, 7), "none on one": (8, 0), "none on the chief": (0, 8)}


def own_batches(rank, x, y, share, size=8):
    first = sum(SHARES[share][:rank]) * size
    n = SHARES[share][rank] * size
    rows = slice(first, first + n)
    return list(zip(x[rows].split(size), y[rows].split(size), strict=True)) if n else []


def measured(rank, metrics, data, sample, model, n_evals=1):
    world = _distributed.join(2, "cpu", timeout=120.0)
    n = len(data) or 0
    task = EvalTask(data or [sample], metrics, n_eval_batches=n, sample_batch=sample)
    evaluator = Evaluator(tl.as_layer(model), task, world)
    return [evaluator.means(seed) for seed in range(n_evals)][-1]


def own_metrics(rank, share):
    (x, y), metrics = classes(), [Seen(), EpochMetric(lambda o, t: auroc(o[:, 1], t), "auroc")]
    data = own_batches(rank, x, y, share)
    return measured(rank, [*metrics, nn.NLLLoss()], data, (x[:8], y[:8]), trained(), n_evals=2)


@pytest.mark.parametrize("share", SHARES)
def test_objects_and_functions_see_all_rows_of_all_ranks(tmp_path, share):
    x, y = classes()
    outputs = trained()(x).detach()
    found = ranks.values(tmp_path, 2, own_metrics, share)

    assert found[0] == found[1]
    assert found[0] == {
        "Seen": 64,
        "auroc": pytest.approx(float(auroc(outputs[:, 1], y)), abs=1e-9),
        "NLLLoss": pytest.approx(float(nn.NLLLoss()(outputs, y)), rel=1e-6),
    }


def torchmetrics_of(rank, share):
    tm = packages.needed("torchmetrics")
    x, y = classes()
    kinds = tm.classification
    metrics = [
        collection(tm),
        kinds.MulticlassAccuracy(2),
        kinds.MulticlassAveragePrecision(2),
        kinds.MulticlassCohenKappa(2),
    ]
    data = own_batches(rank, x, y, share)
    return measured(rank, metrics, data, (x[:8], y[:8]), trained(), n_evals=2)


@pytest.mark.parametrize("share", SHARES)
def test_torchmetrics_see_all_rows_of_all_ranks(tmp_path, share):
    tm = packages.needed("torchmetrics")
    x, y = classes()
    outputs, kinds = trained()(x).detach(), tm.classification
    wanted = collection(tm)
    wanted.update(outputs, y)
    wanted = wanted.compute()
    found = ranks.values(tmp_path, 2, torchmetrics_of, share)

    assert found[0] == found[1]
    assert found[0] == pytest.approx(
        {
            "MetricCollection/auroc": float(wanted["auroc"]),
            "MetricCollection/f1": float(wanted["f1"]),
            "MetricCollection/recall/0": float(wanted["recall"][0]),
            "MetricCollection/recall/1": float(wanted["recall"][1]),
            "MulticlassAccuracy": float(kinds.MulticlassAccuracy(2)(outputs, y)),
            "MulticlassAveragePrecision": float(kinds.MulticlassAveragePrecision(2)(outputs, y)),
            "MulticlassCohenKappa": float(kinds.MulticlassCohenKappa(2)(outputs, y)),
        },
        abs=1e-6,
    )


def padded(rank):
    x, y = sorted_rows()
    dataset = torch.utils.data.TensorDataset(x[:5].expand(5, 10).clone(), y[:5])
    sampler = torch.utils.data.DistributedSampler(dataset, 2, rank, shuffle=False)
    loader = torch.utils.data.DataLoader(dataset, 2, sampler=sampler)
    world = _distributed.join(2, "cpu", timeout=120.0)
    task = EvalTask(loader, Seen())
    return Evaluator(tl.as_layer(trained()), task, world).means(0)


def test_rows_that_a_sampler_repeats_count_once(tmp_path):
    assert ranks.values(tmp_path, 2, padded) == 2 * [{"Seen": 5}]


class Failing(Seen):
    """Fails on one rank, in an update or when it is computed."""

    def __init__(self, rank, where):
        super().__init__()
        self.rank, self.where = rank, where

    def update(self, outputs, targets):
        if self.where == "update" and self.rank == 0:
            raise KeyError("in update")
        super().update(outputs, targets)

    def compute(self):
        raise KeyError("in compute")


def failing(rank, where):
    x, y = classes()
    data = own_batches(rank, x, y, "even")
    return measured(rank, Failing(rank, where), data, (x[:8], y[:8]), trained())


@pytest.mark.parametrize("where", ["update", "compute"])
def test_what_fails_on_the_chief_fails_on_all(tmp_path, where):
    found = ranks.outcomes(tmp_path, 2, failing, where)

    assert [kind for kind, *_ in found] == ["error", "error"]
    assert found[0][1] == "KeyError"
    assert found[1][1:2] == ("RankError",)
    assert f"in {where}" in found[1][2]


def of_lists(rank):
    tm = packages.needed("torchmetrics")

    class Lists(tm.Metric):
        def __init__(self):
            super().__init__()
            self.add_state("seen", [], dist_reduce_fx=None)

        def update(self, outputs, targets):
            self.seen.append(targets)

        def compute(self):
            return float(len(self.seen))

    x, y = classes()
    data = own_batches(rank, x, y, "uneven")
    return measured(rank, Lists(), data, (x[:8], y[:8]), trained())


def test_states_that_cannot_be_brought_together_are_named(tmp_path):
    packages.needed("torchmetrics")
    found = ranks.outcomes(tmp_path, 2, of_lists)

    for kind, error, text in found:
        assert (kind, error) == ("error", "ValueError")
        assert "The states of Lists cannot be brought together" in text
