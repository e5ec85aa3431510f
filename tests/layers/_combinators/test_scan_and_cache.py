"""Scan and Cache: a layer for every slice, and what predict mode remembers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from checks import assert_all_close, grads
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import shapes


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


def add_with_carry():
    return tl.Fn("AddWithCarry", lambda x, carry: (x + carry, x + carry), n_out=2)


# Scan.


@pytest.mark.parametrize(("axis", "turn"), [(0, (0, 1)), (1, (1, 0)), (-1, (1, 0)), (-2, (0, 1))])
def test_scan_gives_all_partial_results_and_the_last_carry(axis, turn):
    """Figures of Trax's own test, along either axis."""
    xs = np.array([[0, 1, 2, 3], [0, 10, 20, 30], [0, 100, 200, 300]]).transpose(turn)
    first = np.array([9000, 8000, 7000, 6000])

    ys, carry = tl.Scan(add_with_carry(), axis=axis)((xs, first))

    wanted = [[9000, 8001, 7002, 6003], [9000, 8011, 7022, 6033], [9000, 8111, 7222, 6333]]
    assert ys.transpose(turn).tolist() == wanted
    assert carry.tolist() == [9000, 8111, 7222, 6333]


def test_scan_takes_several_inputs_and_gives_several_outputs():
    layer = tl.Fn("ThreeAndThree", lambda a, b, c: (a + b, b, c + 1), n_out=3)
    a, b = np.array([[0, 1, 2], [0, 10, 20]]), np.array([[4, 5, 6], [40, 50, 60]])

    total, second, count = tl.Scan(layer, axis=1)((a, b, np.array([9000, 8000])))

    assert total.tolist() == (a + b).tolist()
    assert second.tolist() == b.tolist()
    assert count.tolist() == [9003, 8003]


def test_scan_without_carry_maps_the_layer_over_slices():
    x = np.array([[1, 3, 7], [10, 30, 70]])

    y = tl.Scan(tl.Fn("AddOne", lambda x: x + 1), n_carry=0)(x)

    assert y.tolist() == (x + 1).tolist()


def test_scan_along_a_late_axis_hands_out_slices_as_they_are():
    """Trax hands them out transposed, against the shapes it initializes for."""
    seen = []
    layer = tl.Fn("Look", lambda x, c: (seen.append(x.shape) or x, c), n_out=2)

    ys, _ = tl.Scan(layer, axis=2)((torch.randn(2, 3, 4), torch.zeros(())))

    assert seen == [(2, 3)] * 4
    assert ys.shape == (2, 3, 4)


@settings(max_examples=20, deadline=None)
@given(n_steps=st.integers(0, 5), axis=st.integers(0, 1), cell=st.sampled_from(["GRU", "LSTM"]))
def test_scan_equals_a_loop_over_its_layer(n_steps, axis, cell):
    """Outputs, last carry and gradients, for any number of steps, none included."""
    n_state = {"GRU": 4, "LSTM": 8}[cell]
    cell = {"GRU": tl.GRUCell, "LSTM": tl.LSTMCell}[cell](4)
    x = torch.randn(*((n_steps, 2) if axis == 0 else (2, n_steps)), 3)
    first = torch.randn(2, n_state)
    scan = tl.Scan(cell, axis=axis)
    scan.init(shapes.signature((x, first)), rng=0)

    def loop(inputs):
        x, carry = inputs
        ys = []
        for i in range(n_steps):
            y, carry = cell((x.select(axis, i), carry))
            ys.append(y)
        return (torch.stack(ys, axis) if ys else x.new_zeros(*x.shape[:2], 4)), carry

    found = grads(scan, (x, first)) if n_steps else list(scan((x, first)))
    if n_steps:
        scan.zero_grad()
        wanted = loop((x, first))
        sum((y**2).sum() for y in wanted).backward()
        wanted = [y.detach() for y in wanted] + [p.grad for p in scan.parameters()]
    else:
        wanted = loop((x, first))
    assert_all_close(found, wanted, 1e-5)


def test_scan_makes_weights_from_a_sample_without_steps():
    """A sample batch of empty sequences still tells all shapes."""
    scan = tl.Scan(tl.Dense(4), axis=1, n_carry=0)

    scan.init(shapes.ShapeDtype((2, 0, 3)))

    assert scan.weights[0][0].shape == (3, 4)
    assert scan(torch.randn(2, 5, 3)).shape == (2, 5, 4)
    assert scan(torch.randn(2, 0, 3)).shape == (2, 0, 4)


def test_an_empty_scan_leaves_the_running_averages_alone():
    scan = tl.Scan(tl.BatchNorm(axis=0), n_carry=0)
    scan.init(shapes.ShapeDtype((2, 3, 4)))

    scan(torch.zeros(0, 3, 4))

    assert int(scan.state[0][2]) == 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scan_with_remat_gives_the_same_gradients(dropout):
    """What is computed again is what was computed first, random numbers included."""
    cell = tl.Serial(tl.GRUCell(4), tl.Dropout(dropout))
    plain, remat = tl.Scan(cell, axis=1), tl.Scan(cell, axis=1, remat=True)
    inputs = torch.randn(2, 5, 3), torch.randn(2, 4)
    plain.init(shapes.signature(inputs))

    torch.manual_seed(1)
    wanted = grads(plain, inputs)
    torch.manual_seed(1)
    found = grads(remat, inputs)

    assert_all_close(found, wanted)


def test_scan_with_remat_computes_each_step_again():
    calls = []
    layer = tl.Fn("Count", lambda x: (calls.append(1), x.exp())[1])
    scan = tl.Scan(tl.Serial(layer, tl.Dense(2)), n_carry=0, remat=True)
    x = torch.randn(3, 2, requires_grad=True)
    scan.init(x)
    calls.clear()

    y = scan(x)
    n_forward = len(calls)
    y.sum().backward()
    with torch.no_grad():
        scan(x)

    assert (n_forward, len(calls)) == (3, 9)


def test_scan_with_remat_works_inside_torch_func():
    scan = tl.Scan(tl.Dense(2), n_carry=0, remat=True)
    x = torch.randn(3, 2)
    weights, state = scan.init(x)

    found = torch.func.grad(lambda w: scan.pure_fn(x, w, state)[0].sum())(weights)

    assert found[0][0].shape == (2, 2)


def test_hooks_on_a_scanned_cell_see_every_step():
    """A cell that takes all steps at once takes them one by one where someone looks on."""
    scan = tl.Scan(tl.GRUCell(4), axis=1)
    inputs = torch.randn(2, 5, 3), torch.randn(2, 4)
    scan.init(shapes.signature(inputs))
    wanted, calls = scan(inputs), []
    scan.sublayer.register_forward_hook(lambda *args: calls.append(1))

    found = scan(inputs)

    assert len(calls) == 5
    assert_all_close(found, wanted)


def test_scan_follows_a_subclass_that_changes_the_step():
    class Louder(tl.GRUCell):
        def forward(self, x):
            h, _ = super().forward(x)
            return 2 * h, h

    scan = tl.Scan(Louder(4), axis=1)
    inputs = torch.randn(2, 5, 3), torch.randn(2, 4)
    scan.init(shapes.signature(inputs))

    ys, last = scan(inputs)

    torch.testing.assert_close(ys[:, -1], 2 * last)


def test_scan_says_that_its_cell_has_no_weights_yet():
    with pytest.raises(tl.LayerError, match="GRUCell has no weights yet"):
        tl.Scan(tl.GRUCell(4), axis=1)((torch.randn(2, 5, 3), torch.randn(2, 4)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tl.Scan(tl.Relu()), "n_carry=1 more.* Relu with n_in=1"),
        (lambda: tl.Scan(tl.Add(), n_carry=2), "n_carry=2"),
        (lambda: tl.Scan(tl.Fn("F", lambda a, b: (), n_out=0)), "gives 1 at least"),
    ],
)
def test_scan_refuses_a_layer_without_room_for_the_carry(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3)), r"axis 1, which every input must have"),
        ((torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)), r"equally long.*\(2, 3\), \(2, 4"),
        ((torch.zeros(2, 3), torch.zeros(2, 4)), "2 inputs and a carry of 1; got 2 items"),
    ],
)
def test_scan_refuses_inputs_that_cannot_be_sliced(inputs, message):
    layer = tl.Fn("F", lambda a, b, c: (a + b, c), n_out=2)

    with pytest.raises(tl.LayerError, match=message):
        tl.Scan(layer, axis=1)(inputs)


def test_scan_remembers_the_carry_in_predict_mode():
    """Figures of Trax's own test."""
    scan = tl.Scan(add_with_carry(), axis=1, mode="predict")

    first = scan((np.array([[0, 1, 2]]), np.array([90])))
    second = scan((np.array([[3, 4]]), np.array([90])))

    assert [y.tolist() for y in first] == [[[90, 91, 93]], [93]]
    assert [y.tolist() for y in second] == [[[96, 100]], [100]]


def test_a_scan_that_predicts_can_be_reset_reordered_and_put_back():
    scan = tl.Scan(add_with_carry(), axis=1)
    one, zero = torch.ones(2, 1), torch.zeros(2)

    with scan.predict():
        scan((torch.tensor([[1.0], [5.0]]), zero))
        state = scan.state
        scan.reorder_cache(torch.tensor([1, 1]))
        reordered = scan((one, zero))[1]
        scan.state = state
        put_back = scan((one, zero))[1]
        scan.reset_cache()
        afresh = scan((one, zero))[1]

    assert state[1][0].tolist() == [1, 5]
    assert reordered.tolist() == [6, 6]
    assert put_back.tolist() == [2, 6]
    assert afresh.tolist() == [1, 1]
    assert scan.state == ((), ())
    assert scan((one, zero))[1].tolist() == [1, 1]


def test_what_a_scan_gave_stays_as_it_was():
    """Outputs share no memory with the carry, which later calls overwrite."""
    keep = tl.Scan(tl.Fn("Keep", lambda x, c: (x, c), n_out=2), mode="predict")
    add = tl.Scan(add_with_carry(), mode="predict")
    x = torch.ones(1, 2)

    kept = [keep((x, torch.zeros(2)))[1], keep((x[:0], torch.zeros(2)))[1]]
    added = [add((x, torch.zeros(2)))[1], add((x[:0], torch.zeros(2)))[1]]
    add((x, torch.zeros(2)))

    assert [t.tolist() for t in kept] == [[0, 0], [0, 0]]
    assert [t.tolist() for t in added] == [[1, 1], [1, 1]]


def test_a_scan_with_a_past_refuses_another_batch_size():
    scan = tl.Scan(add_with_carry(), axis=1, mode="predict")
    scan((torch.ones(2, 1), torch.zeros(2)))

    with pytest.raises(tl.LayerError, match=r"carry of shapes \[\(2,\)\].* would be \[\(3,\)\]"):
        scan((torch.ones(3, 1), torch.zeros(3)))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (((), (torch.zeros(2),)), "remembers in predict mode alone"),
        (((),), "has two parts, its layer's and what it remembers; got 1"),
    ],
)
def test_scan_refuses_a_state_that_it_cannot_keep(state, message):
    scan = tl.Scan(add_with_carry())

    with pytest.raises(ValueError, match=message):
        scan.state = state


def test_pure_fn_goes_on_from_the_carry_in_the_state_it_is_given():
    scan = tl.Scan(add_with_carry(), axis=1, mode="predict")
    x, zero = torch.ones(1, 1), torch.zeros(1)
    scan((x, zero))
    state = scan.state

    (_, carry), new_state = scan.pure_fn((x, zero), scan.weights, state)

    assert carry.tolist() == new_state[1][0].tolist() == [2]
    assert scan.state[1][0].tolist() == [1]


def test_a_scan_that_predicts_pickles_with_what_it_remembers():
    scan = tl.Scan(tl.InnerSRUCell(), axis=1, mode="predict")
    x = torch.rand(2, 3, 4)
    scan((x, x, torch.zeros(2, 4)))

    twin = pickle.loads(pickle.dumps(scan))

    assert_all_close(twin((x, x, torch.zeros(2, 4))), scan((x, x, torch.zeros(2, 4))))


# Cache.


def test_cache_is_its_layer_outside_predict_mode():
    layer = tl.Cache(tl.Dense(3))
    x = torch.randn(2, 4)
    layer.init(x)

    assert not torch.equal(layer(x), layer(2 * x))
    assert len(layer.weights) == 1
    assert layer.state == ((), ())


@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_cache_runs_once_in_predict_mode(how):
    layer = tl.Cache(tl.Dense(3), mode="predict" if how == "built to predict" else "train")
    x = torch.randn(2, 4)
    layer.init(x)
    twin = copy.deepcopy(layer.sublayer)

    with layer.predict():
        found = [layer(x), layer(5 * x)]
        layer.reorder_cache(torch.tensor([1, 0]))
        reordered = layer(x)
        layer.reset_cache()
        afresh = layer(5 * x)

    assert_all_close(found, [twin(x)] * 2)
    assert_all_close([reordered, afresh], [twin(x).flip(0), twin(5 * x)])
    assert_all_close(found, [twin(x)] * 2)


def test_cache_remembers_several_outputs_and_shows_them_in_its_state():
    layer = tl.Cache(tl.Fn("Both", lambda a, b: (a + b, a - b), n_out=2), mode="predict")
    a, b = torch.randn(2, 3)
    outputs = layer((a, b))
    state = layer.state

    layer.reset_cache()
    layer.state = state

    assert_all_close(layer((b, b)), outputs)
    assert_all_close(state[0], outputs)
    assert state[1] == ()


def test_layers_in_a_cache_read_whole_sequences():
    """A recurrence inside neither remembers nor counts positions, also after a reset."""
    layer = tl.Cache(tl.Serial(tl.PositionalEncoding(max_len=8), tl.GRU(4)))
    x, y = torch.randn(2, 2, 7, 4)
    layer.init(x)
    layer.eval()
    wanted = layer(x), layer(y)

    with layer.predict(max_length=3):
        found_x = layer(x)
        layer.reset_cache()
        found_y = layer(y)

    assert_all_close((found_x, found_y), wanted)
    assert_all_close((layer(x), layer(y)), wanted)
