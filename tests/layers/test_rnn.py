"""Recurrences: a step, all steps, what predict mode remembers, and what their weights are."""

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import shapes


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def randn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


SEQUENCE_LAYERS = {
    "GRU": lambda: tl.GRU(4),
    "LSTM": lambda: tl.LSTM(4),
    "SRU": lambda: tl.SRU(4),
    "SRU of tanh": lambda: tl.SRU(4, activation=tl.Tanh()),
    "two cells": lambda: tl.Serial(
        tl.Branch([], tl.MakeZeroState(depth_multiplier=2)),
        tl.Scan(tl.MultiRNNCell([tl.GRUCell(4), tl.GRUCell(4)]), axis=1),
        tl.Select([0], n_in=2),
    ),
    "causal convolution": lambda: tl.CausalConv(4, kernel_width=3),
    "causal convolution of width 1": lambda: tl.CausalConv(4, kernel_width=1),
    "depthwise convolution": lambda: tl.CausalDepthwiseConv(kernel_size=4),
    "several": lambda: tl.Serial(tl.LSTM(4), tl.CausalConv(4), tl.Residual(tl.SRU(4)), tl.GRU(4)),
}


def built(name, n_features=4):
    layer = SEQUENCE_LAYERS[name]()
    layer.init(shapes.ShapeDtype((2, 5, n_features)), rng=0)
    for p in layer.parameters():  # Trax's GRU starts near 0, where little can go wrong
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    return layer


def in_calls(layer, x, lengths):
    ends = np.cumsum(lengths)
    return torch.cat([layer(x[:, e - n : e]) for n, e in zip(lengths, ends, strict=True)], dim=1)


# One step.


def test_lstm_cell_takes_the_step_of_its_formula():
    cell = tl.LSTMCell(3)
    x, state = randn(2, 4), randn(2, 6)
    (w, b), _ = cell.init(shapes.signature((x, state)))
    y = np.concatenate([x, state[:, 3:]], -1) @ w.detach().numpy() + b.detach().numpy()
    i, j, f, o = np.split(y, 4, -1)

    h, new_state = cell((x, state))

    c = state[:, :3] * sigmoid(f) + sigmoid(i) * np.tanh(j)
    np.testing.assert_allclose(h, np.tanh(c) * sigmoid(o), atol=1e-6)
    np.testing.assert_allclose(new_state, np.concatenate([c, h], -1), atol=1e-6)


def test_gru_cell_takes_the_step_of_its_formula():
    cell = tl.GRUCell(3, kernel_initializer=tl.RandomNormalInitializer(1.0))
    x, h = randn(2, 4), randn(2, 3)
    weights, _ = cell.init(shapes.signature((x, h)))
    w1, b1, w2, b2 = (w.detach().numpy() for w in weights)
    u, r = np.split(sigmoid(np.concatenate([x, h], -1) @ w1 + b1), 2, -1)

    output, new_state = cell((x, h))

    candidate = np.tanh(np.concatenate([x, r * h], -1) @ w2 + b2)
    np.testing.assert_allclose(output, u * h + (1 - u) * candidate, atol=1e-6)
    np.testing.assert_array_equal(new_state, output)


def test_sru_computes_its_formula():
    layer = tl.SRU(4)
    x = randn(2, 5, 4)
    layer.init(x)
    dense = layer.sublayers[0].sublayers[1].sublayers[0]
    r, f, y = np.split(dense(x), 3, -1)
    r, f, c, wanted = sigmoid(r), sigmoid(f), np.zeros((2, 4)), []
    for t in range(5):
        c = f[:, t] * c + (1 - f[:, t]) * y[:, t]
        wanted.append(r[:, t] * c + np.sqrt(3) * (1 - r[:, t]) * x[:, t])

    np.testing.assert_allclose(layer(x), np.stack(wanted, 1), atol=1e-5)


def test_cells_take_any_leading_axes():
    """Shapes of Trax's own tests."""
    gru, lstm = tl.GRUCell(9), tl.LSTMCell(9)
    x = np.ones((8, 7, 9))
    gru.init(shapes.signature((x, x)))
    lstm.init(shapes.signature((x, np.ones((8, 7, 18)))))

    assert [y.shape for y in gru((x, x))] == [(8, 7, 9), (8, 7, 9)]
    assert [y.shape for y in lstm((x, np.ones((8, 7, 18))))] == [(8, 7, 9), (8, 7, 18)]


# First weights.


def test_first_weights_of_cells_are_those_of_trax():
    """GRU kernels uniform up to 0.01, LSTM kernels Glorot uniform, biases near the forget bias."""
    gru, lstm = tl.GRUCell(64), tl.LSTMCell(64)
    gru.init((shapes.ShapeDtype((1, 32)), shapes.ShapeDtype((1, 64))), rng=0)
    lstm.init((shapes.ShapeDtype((1, 32)), shapes.ShapeDtype((1, 128))), rng=0)

    (w1, b1, w2, b2), (w, b) = gru.weights, lstm.weights

    assert [t.shape for t in (w1, b1, w2, b2)] == [(96, 128), (128,), (96, 64), (64,)]
    assert [t.shape for t in (w, b)] == [(96, 256), (256,)]
    assert 0.0099 < w1.abs().max() < 0.01 > w2.abs().max() > 0.0099
    assert 0.99 < w.abs().max() / np.sqrt(6 / (96 + 256)) < 1
    assert max(b1.abs().max(), b2.abs().max(), (b - 1).abs().max()) < 1e-5


def test_forget_biases_are_added_to_the_first_values():
    gru, lstm = tl.GRUCell(4, forget_bias=2.0), tl.LSTMCell(4, forget_bias=3.0)
    gru.init((shapes.ShapeDtype((1, 4)), shapes.ShapeDtype((1, 4))))
    lstm.init((shapes.ShapeDtype((1, 4)), shapes.ShapeDtype((1, 8))))

    assert [round(b.mean().item(), 3) for b in gru.weights[1::2]] == [2, 0]
    assert round(lstm.weights[1].mean().item(), 3) == 3


@pytest.mark.parametrize(
    ("cell", "size", "message"),
    [
        (tl.GRUCell, 8, r"GRUCell needs a state whose last axis has n_units = 4; got.*\(2, 8\)"),
        (tl.LSTMCell, 4, r"c and h, 2 \* n_units = 8 together; got shape \(2, 4\)"),
    ],
)
def test_cells_refuse_a_state_of_another_size(cell, size, message):
    with pytest.raises(tl.LayerError, match=message):
        cell(4).init((shapes.ShapeDtype((2, 3)), shapes.ShapeDtype((2, size))))


# All steps.


def test_recurrent_layers_print_as_in_trax():
    assert [str(x) for x in (tl.LSTM(3), tl.GRU(5), tl.SRU(7))] == ["LSTM_3", "GRU_5", "SRU_7"]
    assert repr(tl.InnerSRUCell()) == "InnerSRUCell_in3_out2"
    assert str(tl.LSTM(3, return_state=True, initial_state=True)) == "LSTM_3_in2_out2"


@pytest.mark.parametrize("layer", [tl.GRU(6), tl.LSTM(6)], ids=str)
def test_inputs_may_have_another_size_than_states(layer):
    """In Trax they may not."""
    layer.init(shapes.ShapeDtype((2, 5, 3)))

    assert layer(torch.randn(2, 5, 3)).shape == (2, 5, 6)


def test_lstm_gives_and_takes_its_state():
    """Two halves, the second begun with the first one's state, are the whole."""
    whole = tl.LSTM(4)
    first, second = tl.LSTM(4, return_state=True), tl.LSTM(4, return_state=True, initial_state=True)
    x = torch.randn(2, 6, 4)
    whole.init(x)
    cell = whole.sublayers[1].weights
    first.init(x)
    second.init((x, torch.zeros(2, 8)))
    first.sublayers[1].weights = second.sublayers[0].weights = cell

    y1, state = first(x[:, :3])
    y2, last = second((x[:, 3:], state))

    torch.testing.assert_close(torch.cat([y1, y2], 1), whole(x))
    torch.testing.assert_close(last[:, 4:], y2[:, -1])
    assert tl.LSTM(4, initial_state=True).n_out == 1


def test_lstm_takes_its_steps_as_its_cell_does_in_mixed_precision_too():
    """Where the fused kernel does not apply, the loop does: autocast, and other float types."""
    layer = built("LSTM")
    x = torch.randn(2, 5, 4)
    wanted = layer(x)

    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    mixed.float().sum().backward()
    double = copy.deepcopy(layer).double()(x.double())

    torch.testing.assert_close(mixed.float(), wanted, atol=0.1, rtol=0.1)
    torch.testing.assert_close(double.float(), wanted)


@pytest.mark.parametrize("name", ["GRU", "SRU", "two cells"])
def test_recurrences_work_in_mixed_precision(name):
    layer = built(name)
    x = torch.randn(2, 5, 4)

    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    mixed.float().sum().backward()

    torch.testing.assert_close(mixed.float(), layer(x), atol=0.2, rtol=0.1)


def test_two_cells_equal_the_cells_step_by_step():
    """Running one cell over all steps, then the next, is the stack's meaning step by step."""
    cells = tl.MultiRNNCell([tl.LSTMCell(4), tl.LSTMCell(4)])
    x, state = torch.randn(2, 5, 4), torch.randn(2, 16)
    scan = tl.Scan(cells, axis=1)
    scan.init(shapes.signature((x, state)))
    wanted = tl.Scan(tl.Serial(cells), axis=1)((x, state))

    found = scan((x, state))

    torch.testing.assert_close(found, wanted)


def test_cells_of_other_makes_can_be_stacked():
    class Leaky(tl.Layer):
        def __init__(self):
            super().__init__(n_in=2, n_out=2)

        def forward(self, x):
            state = 0.5 * x[1] + x[0]
            return state, state

    scan = tl.Scan(tl.MultiRNNCell([Leaky(), Leaky()]))

    y, state = scan((torch.ones(2, 1), torch.zeros(2)))

    assert y.tolist() == [[1], [2]]
    assert state.tolist() == [1.5, 2]


def test_recurrences_refuse_what_is_no_sequence_of_vectors():
    layer = tl.GRU(4)

    with pytest.raises(tl.LayerError, match=r"\(batch, length, d\); got shape \(2, 4\)"):
        layer.init(shapes.ShapeDtype((2, 4)))


def test_zero_states_are_zeros_of_the_inputs_type():
    assert tl.MakeZeroState(3)(torch.ones(2, 5, 4)).shape == (2, 12)
    assert tl.MakeZeroState()(torch.ones(2, 5, 4, dtype=torch.float64)).dtype == torch.float64
    assert tl.MakeZeroState()(torch.ones(2, 5, 4, dtype=torch.int64)).dtype == torch.float32


def test_scan_sru_cell_refuses_a_mask():
    with pytest.raises(ValueError, match="only Trax's Terraformer uses; got 'mask'"):
        tl.ScanSRUCell("predict", "mask")


# Cells without input.


def test_conv_gru_cell_keeps_the_shape():
    """Shapes of Trax's own test; the numbers by its parts."""
    cell = tl.ConvGRUCell(9, kernel_size=(3, 3)).eval()
    x = torch.randn(8, 1, 7, 9)
    cell.init(x)
    _, update, candidate = cell.sublayers[0].sublayers[1].sublayers
    convs = [m for m in cell.modules() if isinstance(m, tl.Conv)]

    y = cell(x)

    u, r = (torch.sigmoid(conv(x) + 0.5) for conv in convs[:2])
    torch.testing.assert_close(update(x), u)
    torch.testing.assert_close(candidate(x), torch.tanh(convs[2](r * x)))
    torch.testing.assert_close(y, u * x + (1 - u) * torch.tanh(convs[2](r * x)))


def test_general_gru_cell_is_made_of_what_it_is_given():
    cell = tl.GeneralGRUCell(
        functools.partial(tl.Dense, 4),
        memory_transform_fn=tl.Negate,
        gate_nonlinearity=tl.Relu,
        candidate_nonlinearity=tl.Sigmoid,
        dropout_rate_c=0.5,
        sigmoid_bias=0.25,
    )
    cell.init(torch.zeros(1, 4))
    printed = str(cell)

    assert printed.count("Dense_4") == 3
    assert printed.count("AddSigmoidBias(0.25)") == printed.count("Relu") == 2
    assert all(name in printed for name in ("Negate", "Sigmoid", "Dropout", "Gate_in3"))
    assert cell(torch.zeros(1, 4)).shape == (1, 4)


# Predict mode.


@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5))
@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_predicting_in_calls_equals_evaluating_at_once(name, lengths):
    layer = built(name).eval()
    x = torch.randn(2, sum(lengths), 4)

    with layer.predict():
        found = in_calls(layer, x, lengths)

    torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_a_reset_recurrence_starts_afresh(name):
    layer = built(name).eval()
    x = torch.randn(2, 4, 4)

    with layer.predict():
        layer(torch.randn(3, 5, 4))
        layer.reset_cache()
        found = in_calls(layer, x, [1, 3])

    torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parents", [[1, 1, 0], [2, 0, 1, 1, 0]])
@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_reordered_rows_go_on_from_their_parents_past(name, parents):
    """Also where rows become more, as when beams begin."""
    layer = built(name).eval()
    x, more = torch.randn(3, 4, 4), torch.randn(len(parents), 2, 4)

    with layer.predict():
        layer(x)
        layer.reorder_cache(torch.tensor(parents))
        found = in_calls(layer, more, [1, 1])

    wanted = layer(torch.cat([x[parents], more], dim=1))[:, 4:]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_a_recurrences_state_can_be_read_and_put_back(name):
    layer = built(name).eval()
    x = torch.randn(2, 3, 4)

    with layer.predict():
        layer(x)
        state = layer.state
        wanted = layer(x)
        layer.state = state
        found = layer(x)

    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_a_recurrences_memory_stays_out_of_checkpoints(name):
    layer = built(name)
    keys = set(layer.state_dict())

    with layer.predict():
        layer(torch.randn(2, 3, 4))

        assert set(layer.state_dict()) == keys
    assert set(layer.state_dict()) == keys


@pytest.mark.parametrize("layer", [tl.GRU, tl.LSTM, tl.SRU])
def test_recurrences_built_to_predict_predict(layer):
    predicting, evaluating = layer(4, mode="predict"), layer(4, mode="eval")
    x = torch.randn(2, 5, 4)
    evaluating.init(x)
    predicting.init(x)
    predicting.weights = evaluating.weights

    torch.testing.assert_close(in_calls(predicting, x, [1, 2, 2]), evaluating(x))


@pytest.mark.parametrize("name", ["GRU", "LSTM", "SRU", "causal convolution"])
def test_compiled_steps_equal_eager_ones(name):
    """Writing the carry inside a graph changes nothing, reordering between graphs neither."""
    layer = built(name).eval()
    x = torch.randn(2, 6, 4)
    with layer.predict(), torch.no_grad():
        wanted = in_calls(layer, x[:, :4], [1, 1, 1, 1])
        layer.reorder_cache(torch.tensor([1, 0]))
        wanted = torch.cat([wanted, in_calls(layer, x[:, 4:], [1, 1])], 1)

    with layer.predict(), torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        found = in_calls(compiled, x[:, :4], [1, 1, 1, 1])
        layer.reorder_cache(torch.tensor([1, 0]))
        found = torch.cat([found, in_calls(compiled, x[:, 4:], [1, 1])], 1)

    torch.testing.assert_close(found, wanted)
