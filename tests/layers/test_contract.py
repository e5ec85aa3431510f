"""Every layer runs every law that applies to it; a new layer is one more row."""

import copy
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes


@dataclass(frozen=True)
class Row:
    """A layer, inputs for it, and the laws that do not hold of it."""

    make: Any
    inputs: Any
    without: tuple[str, ...] = ()

    def __repr__(self):
        return self.make().name


def vectors(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def tokens(*shape, vocab=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, vocab, shape, generator=generator)


X = vectors(2, 4, 6)
IMAGE = vectors(2, 6, 6, 3)
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])[:, None, None, :]
SHOWN = MASK[:, 0, 0]

ELEMENTWISE = (
    *(tl.Relu, tl.ParametricRelu, tl.LeakyRelu, tl.Elu, tl.Selu, tl.Gelu, tl.FastGelu, tl.Sigmoid),
    *(tl.Tanh, tl.HardSigmoid, tl.HardTanh, tl.Softplus, tl.Exp, tl.Swish, tl.Softmax),
    *(tl.LogSoftmax, tl.Negate, tl.StopGradient, tl.ToFloat, tl.Mean, tl.Max, tl.Min, tl.Sum),
    *(tl.Flatten, tl.Dup, tl.Drop, tl.FlattenList),
)

CATEGORIES = tokens(2, 4, vocab=6)
UNWEIGHTED = (tl.CategoryAccuracy, tl.CategoryCrossEntropy)
WEIGHTED = (
    *(tl.WeightedCategoryAccuracy, tl.WeightedCategoryCrossEntropy, tl.Accuracy),
    *(tl.SequenceAccuracy, tl.MaskedSequenceAccuracy, tl.CrossEntropySum, tl.CrossEntropyLoss),
    tl.CrossEntropyLossWithLogSoftmax,
)


def always(x):
    return torch.ones((), dtype=torch.bool)


def twice(x):
    return 2 * x


ROWS = [
    *(Row(make, X) for make in ELEMENTWISE),
    Row(lambda: tl.Dense(5), X),
    Row(lambda: tl.Dense(5, use_bias=False), X),
    Row(lambda: tl.Embedding(9, 4), tokens(2, 4)),
    Row(lambda: tl.Weights(tl.RandomNormalInitializer(), (3,)), ()),
    Row(lambda: tl.Dropout(0.5, mode="eval"), X),
    Row(tl.LayerNorm, X),
    Row(tl.BatchNorm, IMAGE),
    Row(tl.FilterResponseNorm, IMAGE),
    Row(lambda: tl.LocallyConnected1d(5, 3), X),
    Row(lambda: tl.Conv(5, (3, 3)), IMAGE),
    Row(lambda: tl.Conv1d(5, 3), X),
    Row(lambda: tl.CausalConv(5, 3), X),
    Row(lambda: tl.ConvTranspose(5, (3, 3)), IMAGE),
    Row(tl.MaxPool, IMAGE),
    Row(tl.AvgPool, IMAGE),
    Row(tl.SumPool, IMAGE),
    Row(lambda: tl.GRU(6), X),
    Row(lambda: tl.LSTM(6), X),
    Row(lambda: tl.SRU(6), X),
    Row(lambda: tl.Bidirectional(tl.GRU(6)), X, without=("prediction",)),
    Row(lambda: tl.CausalAttention(6, n_heads=2), X),
    Row(lambda: tl.Attention(6, n_heads=2), (X, MASK), without=("prediction",)),
    Row(lambda: tl.AttentionQKV(6, n_heads=2), (X, X, X, MASK), without=("prediction",)),
    Row(lambda: tl.PositionalEncoding(16), X),
    Row(tl.ShiftRight, X, without=("prediction",)),
    Row(tl.PaddingMask, tokens(2, 4)),
    Row(lambda: tl.Serial(tl.Dense(4), tl.Relu(), tl.Dense(2)), X),
    Row(lambda: tl.Parallel(tl.Dense(4), tl.Dense(2)), (X, X)),
    Row(lambda: tl.Branch(tl.Dense(4), None), X),
    Row(lambda: tl.Residual(tl.LayerNorm(), tl.Dense(6)), X),
    Row(lambda: tl.Select([1, 0]), (X, X)),
    Row(lambda: tl.Concatenate(), (X, X)),
    Row(lambda: tl.Split(2), X),
    Row(tl.Add, (X, X)),
    Row(tl.SubtractTop, (X, X)),
    Row(tl.Multiply, (X, X)),
    Row(tl.Gate, (X, X, X)),
    Row(tl.Swap, (X, X)),
    Row(lambda: tl.Chunk(tl.Dense(4), 1), X),
    Row(lambda: tl.Chunk(tl.CausalAttention(6, n_heads=2), 1), X),
    Row(lambda: tl.BatchLeadingAxes(tl.Dense(4)), X),
    Row(lambda: tl.Cache(tl.Dense(4)), X, without=("prediction",)),
    Row(lambda: tl.ReversibleHalfResidual(tl.Dense(6)), (X, X)),
    Row(tl.ReversibleSwap, (X, X)),
    *(Row(make, (X, X.abs() + 1, X.abs())) for make in (tl.L2Loss, tl.SmoothL1Loss)),
    *(Row(make, (X, CATEGORIES)) for make in UNWEIGHTED),
    *(Row(make, (X, CATEGORIES, torch.ones(2, 4))) for make in WEIGHTED),
    *(Row(make, (X[0], CATEGORIES[0])) for make in (tl.MacroAveragedFScore, tl.WeightedFScore)),
    Row(tl.BinaryCrossEntropy, (X, (X > 0).float())),
    *(
        Row(make, (X[:, :, :1].sigmoid(), (X[:, :, :1] > 0).float(), torch.ones(2, 4, 1)))
        for make in (tl.BinaryCrossEntropyLoss, tl.BinaryCrossEntropySum)
    ),
    Row(tl.WeightedSum, (X, X)),
    *(Row(make, X) for make in (tl.ArgMax, tl.LogSumExp, tl.Glu, tl.ThresholdToBinary)),
    Row(tl.ThresholdedLinearUnit, X),
    Row(tl.Log, X.abs() + 1),
    Row(lambda: tl.SummaryScalar("x"), X, without=("purity",)),
    Row(lambda: tl.SummaryImage("x", 1), IMAGE, without=("purity", "arrays")),
    Row(lambda: tl.PrintShape(), X, without=("compilation",)),
    Row(lambda: tl.AssertShape("bld"), X),
    Row(lambda: tl.SplitIntoHeads(2), X),
    Row(lambda: tl.MergeHeads(2), X),
    Row(lambda: tl.PureAttention(n_heads=2), (X, X, X, MASK)),
    Row(tl.DotProductAttention, (X, X, X, MASK[:, 0])),
    Row(tl.DotProductCausalAttention, (X, X, X)),
    Row(
        lambda: tl.ConfigurableAttention(
            tl.Dense(6),
            tl.Dense(6),
            tl.Dense(6),
            tl.Dense(6),
            tl.DotProductCausalAttention(),
            n_heads=2,
        ),
        X,
    ),
    Row(tl.EncoderDecoderMask, (X, MASK)),
    Row(lambda: tl.SelfAttention(2, 3, 4), X, without=("prediction",)),
    Row(lambda: tl.SelfAttention(2, 3, 4, causal=True), X),
    Row(lambda: tl.SelfAttention(2, 3, 4, share_qk=True, causal=True, bias=True), X),
    Row(lambda: tl.SelfAttention(2, 3, 4, causal=True, chunk_len=3, n_chunks_before=1), X),
    Row(lambda: tl.SelfAttention(2, 3, 4, masked=True, n_parallel_heads=1), (X, SHOWN)),
    Row(lambda: tl.LSHSelfAttention(2, 3, 4, chunk_len=2, n_hashes=2), X, without=("prediction",)),
    Row(lambda: tl.LSHSelfAttention(2, 3, 4, causal=True, chunk_len=4, n_buckets=[4, 2]), X),
    Row(lambda: tl.LSHSelfAttention(2, 3, 4, masked=True, bias=True), (X, SHOWN)),
    Row(lambda: tl.EncDecAttention(2, 3, 4), (X, X, SHOWN)),
    Row(lambda: tl.CausalDepthwiseConv(), X),
    Row(lambda: tl.GRUCell(6), (X[:, 0], X[:, 1])),
    Row(lambda: tl.LSTMCell(6), (X[:, 0], torch.cat([X[:, 1], X[:, 2]], dim=-1))),
    Row(lambda: tl.ConvGRUCell(3), IMAGE),
    Row(lambda: tl.GeneralGRUCell(lambda: tl.Dense(6)), X),
    Row(tl.InnerSRUCell, (X, X, X)),
    Row(lambda: tl.ScanSRUCell("train"), (X, X, X[:, 0])),
    Row(tl.MakeZeroState, X),
    Row(
        lambda: tl.MultiRNNCell([tl.GRUCell(6), tl.GRUCell(6)]),
        (X[:, 0], torch.cat([X[:, 1], X[:, 2]], dim=-1)),
    ),
    Row(lambda: tl.Scan(tl.GRUCell(6), axis=1), (X, X[:, 0])),
    Row(
        lambda: tl.Cond(tl.Fn("Always", always), tl.Dense(4), tl.Dense(4)),
        (X, X),
        without=("compilation", "all weights"),
    ),
    Row(lambda: tl.SerialWithSideOutputs([tl.Dense(4), tl.Dense(3)], [0, 0]), X),
    Row(lambda: tl.Accelerate(tl.Dense(4), backend="eager"), X, without=("compilation",)),
    Row(lambda: tl.ReversibleSelect([1, 0]), (X, X)),
    Row(lambda: tl.ReversibleConcatenatePair(), (X, X)),
    Row(lambda: tl.ReversibleReshape(X.shape[:1], (1, X.shape[0])), X),
    Row(lambda: tl.ReversiblePrintShape(), X),
    Row(
        lambda: tl.ReversibleSerial(tl.ReversibleHalfResidual(tl.Dense(6)), tl.ReversibleSwap()),
        (X, X),
    ),
    Row(lambda: tl.Fn("Twice", twice), X),
    Row(lambda: models.MLP((8, 4)), X[0]),
    Row(lambda: models.TransformerLM(9, 8, 8, 1, 2, max_len=8, dropout=0.0), tokens(2, 4)),
    Row(
        lambda: models.TransformerDecoder(9, 8, 8, 1, 2, max_len=8, dropout=0.0),
        tokens(2, 4),
    ),
    Row(
        lambda: models.TransformerEncoder(9, 3, 8, 8, 1, 2, max_len=8, dropout=0.0),
        tokens(2, 4),
        without=("prediction",),
    ),
    Row(
        lambda: models.Transformer(9, None, 8, 8, 1, 1, 2, max_len=8, dropout=0.0),
        (tokens(2, 5), tokens(2, 4)),
        without=("prediction",),
    ),
    Row(lambda: models.ReformerLM(9, 8, 8, 4, 4, 2, 2, 0.0, max_len=8), tokens(2, 4)),
    Row(
        lambda: models.ReformerLM(
            9,
            8,
            8,
            4,
            4,
            2,
            2,
            0.0,
            max_len=8,
            attention_type=[tl.SelfAttention, tl.LSHSelfAttention],
        ),
        tokens(2, 4),
    ),
    Row(
        lambda: models.ReformerShortenLM(9, 2, 8, 8, 8, 4, 4, 1, 2, 0.0, max_len=8),
        tokens(2, 4),
        without=("prediction", "all weights"),
    ),
    Row(
        lambda: models.Reformer(9, None, 8, 8, 1, 1, 2, 0.0, max_len=8),
        (tokens(2, 5), tokens(2, 4)),
        without=("prediction",),
    ),
    Row(lambda: models.GRULM(9, 8, 1), tokens(2, 4)),
    Row(lambda: models.RNNLM(9, 8, 1, dropout=0.0), tokens(2, 4)),
]


# What is no layer with a row of its own: constants, base classes, and makers of other things.
NO_ROW = {
    *("EMPTY_STATE", "EMPTY_WEIGHTS", "GET_STATE_FROM_CACHE", "GET_WEIGHTS_FROM_CACHE"),
    *("Layer", "LayerError", "PureLayer", "Wrapped", "ReversibleLayer", "AssertFunction"),
    "Mode",  # a type
    "RandomUniform",  # gives other numbers at each call: tested in test_core.py
}


def test_every_layer_has_a_row():
    """A new layer is one more row."""
    source = Path(__file__).read_text()
    layers = {
        name
        for name in tl.__all__
        if name[0].isupper() and "Initializer" not in name and "Init" not in name
    }

    missing = sorted(n for n in layers - NO_ROW if not re.search(rf"\btl\.{n}\b", source))
    assert missing == []


@pytest.fixture(params=ROWS, ids=repr)
def row(request):
    return request.param


def built(row, seed=0):
    layer = row.make()
    layer.init(shapes.signature(row.inputs), rng=seed)
    return layer.eval()


def flat(outputs):
    if isinstance(outputs, (tuple, list)):
        return [leaf for item in outputs for leaf in flat(item)]
    return [torch.as_tensor(outputs)]


def assert_same(got, want, atol=0.0):
    got, want = flat(got), flat(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.detach(), b.detach(), atol=atol, rtol=atol)


def test_outputs_are_as_many_as_promised(row):
    outputs = built(row)(row.inputs)

    assert (len(outputs) if isinstance(outputs, tuple) else 1) == row.make().n_out


def test_the_output_signature_is_that_of_the_outputs(row):
    layer = built(row)

    assert layer.output_signature(shapes.signature(row.inputs)) == shapes.signature(
        layer(row.inputs)
    )


def test_the_tree_of_weights_fills_another_layer(row):
    """weights and state of one, set on another of the same kind, make it compute the same."""
    one, other = built(row, seed=0), built(row, seed=1)

    other.weights = one.weights
    other.state = one.state

    assert_same(other(row.inputs), one(row.inputs))


def test_arrays_and_tensors_agree(row):
    layer = built(row)
    if "arrays" in row.without:
        pytest.skip("shows arrays as they come")
    if isinstance(row.inputs, tuple) and not row.inputs:
        pytest.skip("takes nothing")
    several = isinstance(row.inputs, tuple)
    arrays = tuple(x.numpy() for x in row.inputs) if several else row.inputs.numpy()

    outputs = layer(arrays)

    assert all(isinstance(y, (np.ndarray, np.generic)) for y in np_leaves(outputs))
    assert_same(outputs, layer(row.inputs), atol=1e-6)  # without gradients, other kernels may run


def np_leaves(outputs):
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def test_gradients_reach_every_weight(row):
    layer = built(row).train()
    if not list(layer.parameters()):
        pytest.skip("has no weights")
    floats = [y for y in flat(layer(row.inputs)) if y.is_floating_point() and y.requires_grad]

    sum((y * torch.randn(y.shape)).sum() for y in floats).backward()

    missing = [name for name, p in layer.named_parameters() if p.grad is None]
    assert missing == [] or "all weights" in row.without


def test_a_state_dict_goes_into_another_layer(row):
    one, other = built(row, seed=0), built(row, seed=1)

    other.load_state_dict(one.state_dict())

    assert_same(other(row.inputs), one(row.inputs))


def test_copies_and_pickles_compute_the_same(row):
    layer = built(row)

    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(twin(row.inputs), layer(row.inputs))
        assert str(twin) == str(layer)


def test_a_compiled_layer_computes_the_same(row):
    """In one graph, without a break."""
    layer = built(row)
    if "compilation" in row.without:
        pytest.skip("decides on values, prints, or compiles by itself")
    torch.compiler.reset()

    compiled = torch.compile(layer, backend="eager", fullgraph=True)

    assert_same(compiled(row.inputs), layer(row.inputs), atol=1e-6)


def test_pure_fn_computes_the_same(row):
    layer = built(row)

    outputs, _ = layer.pure_fn(row.inputs, layer.weights, layer.state)

    assert_same(outputs, layer(row.inputs), atol=1e-6)


def test_a_layer_that_remembers_predicts_what_it_evaluates(row):
    """Position by position, from a sequence shifted as its own ShiftRight would."""
    layer = built(row)
    if "prediction" in row.without or isinstance(row.inputs, tuple):
        pytest.skip("does not go along a sequence")
    with layer.predict(2, 4):
        if not any(hasattr(m._memory, "reset") for m in layer.modules() if isinstance(m, tl.Layer)):
            pytest.skip("remembers nothing")
    x = row.inputs
    shifts = any(isinstance(m, tl.ShiftRight) for m in layer.modules())
    seen = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1) if shifts else x

    with torch.no_grad(), layer.predict(2, 4):
        steps = [layer(seen[:, i : i + 1]) for i in range(4)]
        layer.reset_cache()
        afresh = layer(seen[:, :2])

    assert_same(torch.cat(steps, dim=1), layer(x), atol=1e-5)
    assert_same(afresh, torch.cat(steps[:2], dim=1), atol=1e-5)
