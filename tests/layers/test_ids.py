"""Ids and targets outside of the vocabulary: told of once, or found by detect_anomaly."""

import warnings

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, optimizers, shapes
from trax_torch.supervised import training

N = 5
LOSSES = {
    "weighted": tl.WeightedCategoryCrossEntropy,
    "of log-probabilities": tl.CrossEntropyLoss,
    "of activations": tl.CrossEntropyLossWithLogSoftmax,
}


def batch_of(ids, targets, weights):
    shape = (2, 4)
    ids, targets = (np.broadcast_to(np.array(x), shape).copy() for x in (ids, targets))
    return ids, targets, np.broadcast_to(np.array(weights, np.float32), shape).copy()


def loop_of(batches, loss=tl.WeightedCategoryCrossEntropy, **settings):
    def data():
        while True:
            yield from batches

    model = tl.Serial(tl.Embedding(N, 4), tl.Dense(N))
    task = training.TrainTask(data(), loss(), optimizers.SGD(0.1))
    return training.Loop(model, task, random_seed=1, **settings)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_sample_batch_with_targets_beyond_the_categories_is_told_of(loss):
    """When the run is built, with the numbers; it trains all the same, as in Trax."""
    with pytest.warns(UserWarning, match=r"tells 5 categories apart.* 4 of 8 targets .* up to 9:"):
        loop = loop_of([batch_of(1, [1, 9, 2, 7], 1)], loss)
    loop.run(2)

    assert np.isfinite(loop.loss)


@pytest.mark.parametrize(
    "batch",
    [
        batch_of(1, [0, 4, 1, 2], 1),
        batch_of(1, [0, -1, -100, 2], 1),
        batch_of(1, [0, 9, 9, 2], [1, 0, 0, 1]),
    ],
    ids=["all are there", "padding", "what has no weight"],
)
def test_targets_that_are_there_or_do_not_count_are_not_told_of(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop_of([batch]).run(2)


def test_models_of_language_are_looked_at():
    def data():
        while True:
            x = np.full((2, 4), 7)
            yield x, x, np.ones(x.shape, np.float32)

    model = models.TransformerLM(6, d_model=4, d_ff=4, n_layers=1, n_heads=2, max_len=8)
    task = training.TrainTask(data(), tl.WeightedCategoryCrossEntropy(), optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="8 of 8 targets are 6 or more, up to 7"):
        loop = training.Loop(model, task)
    with pytest.warns(UserWarning, match="ids from 0 to 7 came, and are clipped"):
        loop.run(1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(
    ("late", "message"),
    [
        (batch_of(8, 1, 1), "ids from 8 to 8 came, and are clipped"),
        (batch_of(1, 8, 1), "8 of 8 targets are 5 or more, up to 8"),
    ],
    ids=["ids", "targets"],
)
def test_a_later_batch_is_found_where_anomalies_are_looked_for(late, message):
    """And passes as in Trax where nobody asked."""
    good = batch_of(1, 1, 1)
    loop_of([good, good, good, late]).run(3)
    loop = loop_of([good, good, good, late])

    with torch.autograd.detect_anomaly():
        loop.run(2)
        with pytest.raises(Exception, match=message):
            loop.run(1)
    assert loop.step == 2


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_layer_alone_looks_at_every_batch_then():
    layer = tl.Embedding(N, 2)
    layer.init(shapes.ShapeDtype((1,), np.int32))
    layer(np.array([1]))
    layer(np.array([9]))

    with torch.autograd.detect_anomaly(), pytest.raises(tl.LayerError, match="ids from 9 to 9"):
        layer(np.array([9]))
