"""Integers are numbers: where floats are computed they are taken for floats, as in JAX."""

import numpy as np
import pytest
import torch

from trax_torch import _nest, models, shapes
from trax_torch import layers as tl

TYPES = [np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_]

VALUES = np.random.default_rng(0).integers(0, 2, (2, 6, 4, 4))
SEQUENCES, IMAGES = VALUES[..., 0], VALUES

ELEMENTWISE = (
    *(tl.Relu, tl.ParametricRelu, tl.LeakyRelu, tl.Elu, tl.Selu, tl.Gelu, tl.FastGelu, tl.Sigmoid),
    *(tl.Tanh, tl.HardSigmoid, tl.HardTanh, tl.Softplus, tl.Exp, tl.Log, tl.Swish, tl.Glu),
    *(tl.ThresholdedLinearUnit, tl.Softmax, tl.LogSoftmax, tl.LogSumExp, tl.Mean, tl.Max, tl.Min),
    *(tl.Sum, tl.StopGradient, tl.ToFloat, tl.Flatten, tl.ArgMax, tl.ThresholdToBinary),
    tl.Negate,
)
LAYERS = {
    **{make.__name__: (make, SEQUENCES) for make in ELEMENTWISE},
    "Softmax over rows": (lambda: tl.Softmax(axis=0), SEQUENCES),
    "MaxPool": (lambda: tl.MaxPool((2, 2)), IMAGES),
    "MaxPool, padded": (lambda: tl.MaxPool((3, 3), (2, 2), "SAME"), IMAGES),
    "MaxPool of lines": (lambda: tl.MaxPool((2,), (2,)), SEQUENCES),
    "MaxPool of solids": (lambda: tl.MaxPool((2, 2, 1), padding="SAME"), IMAGES[..., None]),
    "SumPool": (lambda: tl.SumPool((2, 2)), IMAGES),
    "SumPool, padded": (lambda: tl.SumPool((3, 3), (2, 2), "SAME"), IMAGES),
    "SumPool of solids": (lambda: tl.SumPool((2, 2, 1), padding="SAME"), IMAGES[..., None]),
    "AvgPool": (lambda: tl.AvgPool((2, 2)), IMAGES),
    "AvgPool, padded": (lambda: tl.AvgPool((3, 3), (2, 2), "SAME"), IMAGES),
    "AvgPool of solids": (lambda: tl.AvgPool((2, 2, 1), padding="SAME"), IMAGES[..., None]),
    "Dropout": (lambda: tl.Dropout(0.5), SEQUENCES),
    "Dropout along an axis": (lambda: tl.Dropout(0.5, shared_axes=(1,)), SEQUENCES),
    "Dropout, eval": (lambda: tl.Dropout(0.5, mode="eval"), SEQUENCES),
    "LayerNorm": (tl.LayerNorm, SEQUENCES),
    "LayerNorm, not centered": (lambda: tl.LayerNorm(center=False), SEQUENCES),
    "BatchNorm": (tl.BatchNorm, IMAGES),
    "FilterResponseNorm": (tl.FilterResponseNorm, IMAGES),
    "Dense": (lambda: tl.Dense(3), SEQUENCES),
    "Conv": (lambda: tl.Conv(3, (3, 3)), IMAGES),
    "Conv1d": (lambda: tl.Conv1d(3, 2), SEQUENCES),
    "CausalConv": (lambda: tl.CausalConv(3, 2), SEQUENCES),
    "CausalDepthwiseConv": (lambda: tl.CausalDepthwiseConv(3), SEQUENCES),
    "ConvTranspose": (lambda: tl.ConvTranspose(3, (3, 3)), IMAGES),
    "LocallyConnected1d": (lambda: tl.LocallyConnected1d(3, 3), SEQUENCES),
    "PositionalEncoding": (lambda: tl.PositionalEncoding(16), SEQUENCES),
    "ShiftRight": (tl.ShiftRight, SEQUENCES),
    "GRU": (lambda: tl.GRU(5), SEQUENCES),
    "LSTM": (lambda: tl.LSTM(5), SEQUENCES),
    "LSTM with a state": (
        lambda: tl.LSTM(2, return_state=True, initial_state=True),
        (SEQUENCES, SEQUENCES[:, 0]),
    ),
    "LSTM, step by step": (lambda: tl.LSTMCell(2), (SEQUENCES[:, 0], SEQUENCES[:, 1])),
    "GRU, step by step": (lambda: tl.GRUCell(4), (SEQUENCES[:, 0], SEQUENCES[:, 1])),
    "SRU": (lambda: tl.SRU(4), SEQUENCES),
    "Bidirectional": (lambda: tl.Bidirectional(tl.GRU(4)), SEQUENCES),
    "CausalAttention": (lambda: tl.CausalAttention(4, n_heads=2), SEQUENCES),
    "DotProductCausalAttention": (
        tl.DotProductCausalAttention,
        (SEQUENCES, SEQUENCES, SEQUENCES),
    ),
    "L2Loss": (tl.L2Loss, (SEQUENCES, SEQUENCES[::-1], SEQUENCES)),
    "SmoothL1Loss": (tl.SmoothL1Loss, (SEQUENCES, SEQUENCES[::-1], SEQUENCES)),
    "BinaryCrossEntropyLoss": (
        tl.BinaryCrossEntropyLoss,
        (SEQUENCES, SEQUENCES[::-1], SEQUENCES),
    ),
    "WeightedSum": (tl.WeightedSum, (SEQUENCES, SEQUENCES)),
    "Chunk": (lambda: tl.Chunk(tl.Serial(tl.Gelu(), tl.Dense(3)), 1), SEQUENCES),
    "MLP": (lambda: models.MLP((4, 3)), SEQUENCES),
}


def answer(make, inputs):
    """What a layer says, all its random numbers being the same at each call."""
    layer = make()
    layer.init(shapes.signature(inputs), rng=3)
    return layer(inputs, rng=5)


@pytest.mark.parametrize(("make", "inputs"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", TYPES)
def test_integers_give_what_the_same_numbers_give_as_floats(make, inputs, dtype):
    """All of a layer's inputs, in any type of integers; the outputs may be integers then."""
    ints = answer(make, _nest.map_leaves(lambda x: x.astype(dtype), inputs))
    floats = answer(make, _nest.map_leaves(lambda x: x.astype(np.float32), inputs))

    for ours, theirs in zip(_nest.leaves(ints), _nest.leaves(floats), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=1e-5)


def test_integers_at_the_ends_of_their_types_do_not_overflow():
    """A window's sum is wider than its values; a sign is changed in a type that has signs."""
    top = np.full((1, 4, 1), 255, np.uint8)

    assert tl.SumPool((4,))(top).tolist() == [[[1020]]]
    assert tl.AvgPool((4,))(top).tolist() == [[[255]]]
    assert tl.Negate()(top).ravel().tolist() == [-255] * 4
    assert tl.HardSigmoid()(top).ravel().tolist() == [1] * 4
    assert tl.HardTanh()(np.zeros(1, np.uint8)).tolist() == [0]
    assert tl.MaxPool((2,))(np.array([[[2**62 + 1], [2**62]]])).tolist() == [[[2**62 + 1]]]


def test_integers_that_stay_integers_are_exact():
    """Where no floats are computed, the largest of them come out as they went in."""
    x = np.array([[2**62 + 1, -(2**62)]])

    assert tl.Relu()(x).tolist() == [[2**62 + 1, 0]]
    assert tl.Max()(x).tolist() == [2**62 + 1]
    assert tl.MaxPool((2, 1), padding="SAME")(x[..., None, None]).ravel().tolist() == [
        2**62 + 1,
        -(2**62),
    ]


def test_gradients_are_those_of_floats():
    """What floats a layer makes of integers are numbers; its weights learn from them."""
    layer = tl.Serial(tl.AvgPool((2,)), tl.Dense(3))
    layer.init(shapes.signature(SEQUENCES), rng=1)
    ints = torch.from_numpy(SEQUENCES)

    found = torch.autograd.grad(layer(ints).sum(), list(layer.parameters()))
    expected = torch.autograd.grad(layer(ints.float()).sum(), list(layer.parameters()))

    assert all(map(torch.equal, found, expected))
