"""Layers made of layers: conditions, chunks, both ways in time, and moves of the data stack."""

import copy

import numpy as np
import pytest
import torch
from checks import assert_all_close, grads
from torch import nn

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.layers import combinators


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


# The stack.


def test_items_come_from_the_stack_and_go_back_to_it():
    """The two functions that Trax shows: one item is bare, several are a tuple."""
    assert combinators.inputs_from_stack(("a", "b", "c"), 2) == ("a", "b")
    assert tl.inputs_from_stack(["a", "b"], 1) == "a"
    assert combinators.outputs_onto_stack("x", ("a", "b", "c"), 2) == ("x", "c")
    assert tl.outputs_onto_stack(["x", "y"], "a", 1) == ("x", "y")


def test_gate_mixes_memory_and_candidate():
    memory, gate, candidate = torch.randn(3, 2, 4)

    mixed = tl.Gate()((memory, gate, candidate))

    torch.testing.assert_close(mixed, gate * memory + (1 - gate) * candidate)
    assert repr(tl.Gate()) == "Gate_in3"


def test_flatten_list_makes_one_flat_tuple():
    a, b, c = np.arange(3)

    assert tl.FlattenList()([a, [b, (c,)]]) == (a, b, c)


def test_concatenate_takes_one_item_bare():
    x = torch.randn(2, 3)

    assert torch.equal(tl.Concatenate(n_items=1)(x), x)


# Cond.


def smaller_than(limit):
    return tl.Fn("SmallerThan", lambda x: x < limit)


def divide_by(n):
    return tl.Fn("DivideBy", lambda x: x / n)


@pytest.mark.parametrize(("x", "wanted"), [(2.0, [2.0, 6.0]), (4.0, [1.0, 3.0])])
def test_cond_runs_the_layer_that_its_condition_chooses(x, wanted):
    layer = tl.Cond(smaller_than(3.0), divide_by(2.0), divide_by(4.0))

    y = layer((np.array(x), np.array([4.0, 12.0])))

    assert y.tolist() == wanted


def test_cond_passes_an_item_on_where_no_layer_is_given():
    layer = tl.Cond(smaller_than(3.0), divide_by(2.0))

    y = layer((np.array(4.0), np.array([4.0, 12.0])))

    assert y.tolist() == [4.0, 12.0]
    assert layer.n_in == 2


def test_cond_chooses_without_inputs_too():
    always = tl.Fn("Always", lambda: torch.tensor(True))
    two, five = (tl.Fn("Const", lambda: torch.tensor(2)), tl.Fn("Const", lambda: torch.tensor(5)))

    assert tl.Cond(always, divide_by(2.0), divide_by(4.0))(np.array([2.0])).tolist() == [1.0]
    assert tl.Cond(always, two, five)(()) == 2
    assert tl.Cond(smaller_than(3.0), two, five)(torch.tensor(4.0)) == 5


def test_cond_makes_weights_for_both_branches_and_trains_the_chosen_one():
    layer = tl.Cond(smaller_than(3.0), tl.Dense(5), tl.Dense(5))
    inputs = torch.tensor(2.0), torch.randn(1, 3)
    weights, state = layer.init(shapes.signature(inputs))

    layer(inputs).sum().backward()

    assert weights[0] == ()
    assert not torch.equal(weights[1][0], weights[2][0])
    assert state == ((), (), ())
    assert layer.sublayers[1].weight.grad is not None
    assert layer.sublayers[2].weight.grad is None


def test_cond_leaves_the_state_of_the_other_branch_alone():
    layer = tl.Cond(smaller_than(3.0), tl.BatchNorm(axis=0), tl.BatchNorm(axis=0))
    layer.init((shapes.ShapeDtype(()), shapes.ShapeDtype((4, 2))))

    layer((torch.tensor(2.0), torch.randn(4, 2)))

    assert [int(state[2]) for state in layer.state[1:]] == [1, 0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tl.Cond(tl.Dup(), tl.Relu()), "cond with one output"),
        (lambda: tl.Cond(smaller_than(3.0), tl.Relu(), tl.Dup()), "n_out=1 and false.* n_out=2"),
        (lambda: tl.Cond(smaller_than(3.0), tl.Add(), tl.Relu()), "n_in=2.* and false with n_in=1"),
        (lambda: tl.Cond(smaller_than(3.0), tl.Add()), "left out takes and gives one item"),
    ],
)
def test_cond_refuses_layers_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor(2.0), "takes 2 items, 1 to choose by and 1 for the branch; got 1"),
        ((torch.tensor(2.0),) * 3, "got 3"),
        ((torch.tensor([2.0, 5.0]), torch.tensor(1.0)), r"single Boolean; got one of shape \(2,\)"),
    ],
)
def test_cond_refuses_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(tl.LayerError, match=message):
        tl.Cond(smaller_than(3.0), divide_by(2.0))(inputs)


# Chunk.


@pytest.mark.parametrize(
    ("size", "batch"), [(1, 6), (2, 6), (3, 6), (6, 6), (4, 6), (9, 6), (2, 0)]
)
def test_chunks_give_what_the_whole_batch_gives(size, batch):
    """Also where chunks do not divide the batch, and where the batch is empty."""
    layer = tl.Serial(tl.Dense(4), tl.Relu(), tl.Dense(2))
    x = torch.randn(batch, 3)
    layer.init(shapes.ShapeDtype((1, 3)))

    assert_all_close(grads(tl.Chunk(layer, size), x), grads(layer, x), 1e-5)


def test_chunk_works_on_several_inputs_and_outputs():
    layer = tl.Fn("Both", lambda a, b: (a + b, a - b), n_out=2)
    a, b = torch.randn(2, 4, 3)

    total, difference = tl.Chunk(layer, 2)((a, b))

    assert torch.equal(total, a + b)
    assert torch.equal(difference, a - b)


def test_chunk_below_one_is_the_layer_itself():
    layer = tl.Dense(4)

    assert tl.Chunk(layer, 0) is layer


def test_chunk_counts_each_chunk_once_when_it_is_computed_again():
    """Running averages move once per chunk, not once more in the backward pass."""
    layer = tl.BatchNorm(axis=0, momentum=0.5)
    x = torch.randn(6, 3)
    chunks = tl.Chunk(layer, 2)
    chunks.init(x)
    twin = copy.deepcopy(layer)
    for part in x.split(2):
        twin(part)

    chunks(x).sum().backward()

    assert int(layer.state[2]) == 3
    assert_all_close(layer.state, twin.state)


def test_chunk_refuses_what_it_may_not_pass_whole():
    layer = tl.Chunk(tl.Relu(), 4, pass_unchunkable=False)

    with pytest.raises(tl.LayerError, match="chunks of 4 rows, and this one has 6"):
        layer(torch.randn(6, 3))


def test_chunk_names_its_layer_in_errors():
    layer = tl.Chunk(tl.Serial(tl.Dense(3)), 2)
    layer.init(torch.zeros(4, 3))

    with pytest.raises(tl.LayerError, match=r"Dense_3 \(in Serial > Scan > Serial > Dense_3\)"):
        layer(torch.zeros(4, 5))


# In series with side outputs.


def test_side_outputs_come_out_after_the_last_layers_outputs():
    """Three steps of division: the remainders wait below the stack, the first one first."""
    step = tl.Fn("DivMod", lambda x: (x // 10, x % 10), n_out=2)

    outputs = tl.SerialWithSideOutputs([step, step, step])(np.array(1234))

    assert [int(y) for y in outputs] == [1, 4, 3, 2]


def test_side_outputs_leave_the_rest_of_the_stack_to_later_layers():
    add = tl.Fn("AddBoth", lambda x, y: (x + y, x), n_out=2)

    outputs = tl.SerialWithSideOutputs([add, add])(tuple(np.arange(1, 4)))

    assert [int(y) for y in outputs] == [6, 1, 3]


def test_each_layer_may_have_another_number_of_side_outputs():
    dup = tl.Fn("Three", lambda x: (x, 2 * x, 3 * x), n_out=3)
    layer = tl.SerialWithSideOutputs([dup, tl.Relu(), dup], n_side_outputs=[2, 0, 1])

    outputs = layer(np.array(1.0))

    assert outputs == (1, 2, 2, 3, 3)
    assert layer.n_out == 5


@pytest.mark.parametrize("n", [3, [1], [1, 3], [-1, 0]])
def test_side_outputs_are_at_most_all_outputs(n):
    layers = [tl.Dup(), tl.Dup()]

    with pytest.raises(ValueError, match=r"at most all outputs of each layer; got n_side_outputs="):
        tl.SerialWithSideOutputs(layers, n)


# Both ways in time.


def test_bidirectional_reads_from_both_ends():
    """The second half of the output is the copy's, run on the sequence turned round."""
    layer = tl.Bidirectional(tl.GRU(4))
    x = torch.randn(2, 5, 4)
    layer.init(x)
    forward, backward = layer.sublayers[0].sublayers[1].sublayers
    backward = backward.sublayers[1]

    y = layer(x)

    assert y.shape == (2, 5, 8)
    assert_all_close([y[..., :4], y[..., 4:]], [forward(x), backward(x.flip(1)).flip(1)])
    assert not torch.equal(forward.weights[1][0][0], backward.weights[1][0][0])


def test_bidirectional_merges_as_it_is_told():
    layer = tl.Bidirectional(tl.GRU(4), merge_layer=tl.Add())
    layer.init(torch.zeros(2, 5, 4))

    assert layer(torch.zeros(2, 5, 4)).shape == (2, 5, 4)


def test_bidirectional_predicts_only_in_a_cache():
    layer = tl.Bidirectional(tl.GRU(4))
    cached = tl.Cache(layer)
    x = torch.randn(2, 5, 4)
    cached.init(x)
    wanted = layer(x)

    with layer.predict(), pytest.raises(tl.LayerError, match="cannot go on where it left off"):
        layer(x)
    with cached.predict():
        found = cached(x), cached(x)
    assert_all_close(found, [wanted, wanted])


# Leading axes.


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 2, 3), (2, 0)])
def test_leading_axes_are_one_batch(lead):
    seen = []
    layer = tl.Fn("Look", lambda a, b: (seen.append(a.shape), a + b)[1])
    a, b = torch.randn(2, *lead, 4, 5)

    y = tl.BatchLeadingAxes(layer, n_last_axes_to_keep=2)((a, b))

    assert torch.equal(y, a + b)
    assert seen == [(int(np.prod(lead)), 4, 5)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tl.BatchLeadingAxes(tl.Dup()), "one output.*got n_out=2"),
        (lambda: tl.BatchLeadingAxes(tl.Relu(), 0), "at least one axis.*n_last_axes_to_keep=0"),
    ],
)
def test_leading_axes_need_one_output_and_one_axis(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shapes_of", [((2, 3), (4, 3)), ((3,), (3,))])
def test_leading_axes_must_agree(shapes_of):
    layer = tl.BatchLeadingAxes(tl.Add(), n_last_axes_to_keep=1 if len(shapes_of[0]) > 1 else 2)

    with pytest.raises(tl.LayerError, match="those before must agree; got shapes"):
        layer(tuple(torch.zeros(s) for s in shapes_of))


# What all of them can do.


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (tl.Chunk(nn.Linear(3, 2), 2), (4, 3)),
        (tl.Scan(nn.Linear(3, 2), n_carry=0), (4, 3)),
        (tl.Cache(nn.Linear(3, 2)), (4, 3)),
        (tl.BatchLeadingAxes(nn.Linear(3, 2)), (2, 2, 3)),
        (tl.Cond(smaller_than(0.0), nn.Linear(3, 2), nn.Linear(3, 2)), None),
        (tl.SerialWithSideOutputs([nn.Linear(3, 2)], 0), (4, 3)),
        (tl.Bidirectional(nn.Linear(3, 2)), (2, 4, 3)),
    ],
    ids=lambda x: x.name if isinstance(x, tl.Layer) else "",
)
def test_layers_made_of_layers_take_modules(layer, inputs):
    x = torch.randn(inputs) if inputs else (torch.tensor(1.0), torch.randn(4, 3))
    layer.init(shapes.signature(x))

    assert layer(x).shape[-1] in (2, 4)
