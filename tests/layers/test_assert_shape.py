"""Sentences about shapes. Those that fit and those that do not are Trax's own examples."""

import copy
import pickle

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes


def ones(*sizes):
    return torch.ones(sizes)


FITTING = [
    ("aba,ba", [(10, 5, 10), (5, 10)]),
    ("aba,ba", [(5, 5, 5), (5, 5)]),
    ("a", [(5,)]),
    ("", [()]),
    ("aa", [(3, 3)]),
    ("a,", [(5,), ()]),
    ("a,b,a,ab", [(5,), (2,), (5,), (5, 2)]),
    ("23,1,93", [(2, 3), (1,), (9, 3)]),
    ("b11l", [(7, 1, 1, 4)]),
    ("a...bc,abc", [(1, 5, 5, 2, 3), (1, 2, 3)]),
    ("...bc,abc", [(5, 5, 2, 3), (1, 2, 3)]),
    ("...bc,abc", [(2, 3), (1, 2, 3)]),
    ("...bc,...bc", [(1, 2, 3), (1, 2, 3)]),
    ("bb...,...bb", [(2, 2, 5, 6), (5, 6, 2, 2)]),
    ("...22,...3", [(1, 2, 3, 2, 2), (1, 2, 3, 3)]),
    ("...", [(1, 2, 3)]),
    ("aA", [(1, 2)]),
]

NOT_FITTING = [
    ("24,1,93", [(2, 3), (1,), (9, 3)], "4 is 4 in the sentence, but 3 in input 1"),
    ("ab...cde,2", [(2, 3, 4, 5), (2,)], "'ab...cde' has at least 5 axes, but input 1 has 4"),
    ("b...c,2", [(2,), (2,)], "'b...c' has at least 2 axes, but input 1 has 1"),
    ("...a,...b", [(1, 2, 3, 7), (1, 2, 8)], "... is (1, 2, 3) in input 1, but (1, 2) in input 2"),
    ("...2,...2", [(1, 2, 2), (1, 3, 2)], "... is (1, 2) in input 1, but (1, 3) in input 2"),
    ("aba,ab", [(10, 5, 10), (5, 8)], "a is 10 in input 1, but 5 in input 2"),
    ("aba,ab", [(10, 5, 10), (5, 10, 4)], "'ab' has 2 axes, but input 2 has 3"),
    ("aa", [(10, 5)], "a is 10 in input 1, but 5 in input 1"),
    ("aA,a", [(1, 2), (2,)], "a is 1 in input 1, but 2 in input 2"),
]

NO_SENTENCES = ["b......c,2", "b..c,2", "...c...,2", "a-b", "a b", "a,é"]


def packed(sizes):
    tensors = tuple(ones(*s) for s in sizes)
    return tensors[0] if len(tensors) == 1 else tensors


@pytest.mark.parametrize(("sentence", "sizes"), FITTING)
def test_shapes_that_fit_pass_on(sentence, sizes):
    x = packed(sizes)

    assert tl.AssertShape(sentence)(x) is x


@pytest.mark.parametrize(("sentence", "sizes", "reason"), NOT_FITTING)
def test_shapes_that_do_not_fit_are_told_with_the_letter_and_both_sizes(sentence, sizes, reason):
    with pytest.raises(tl.LayerError) as error:
        tl.AssertShape(sentence)(packed(sizes))

    assert f"The shapes do not fit {sentence!r}: {reason}. " in str(error.value)
    assert f"The input shapes are {', '.join(map(str, sizes))}. " in str(error.value)
    assert f"Defined at {__file__}:" in str(error.value)


@pytest.mark.parametrize("sentence", NO_SENTENCES)
def test_what_is_no_sentence_is_refused(sentence):
    x = packed([(2, 3, 4, 5)] * (sentence.count(",") + 1))

    with pytest.raises(tl.LayerError, match="letters, digits and at most one"):
        tl.AssertShape(sentence)(x)
    with pytest.raises(ValueError, match="letters, digits and at most one"):
        tl.assert_shape(f"{sentence}->a")


def test_a_sentence_has_one_arrow_where_something_is_run_and_none_elsewhere():
    with pytest.raises(ValueError, match=r"the form words->words, .*got 'bld'"):
        tl.assert_shape("bld")
    with pytest.raises(ValueError, match=r"the form words->words, .*got 'a->b->c'"):
        tl.assert_shape("a->b->c")
    with pytest.raises(tl.LayerError, match=r"words without an arrow, .*got 'a->a'"):
        tl.AssertShape("a->a")(ones(2))


def test_the_number_of_tensors_is_part_of_a_sentence():
    pair = tl.Branch(tl.Flatten(), tl.Serial())

    assert len(tl.AssertFunction("a...->ab,a...", pair)(ones(2, 3, 4))) == 2
    with pytest.raises(tl.LayerError, match="it has 3 outputs, but 2 came"):
        tl.AssertFunction("a...->ab,a...,a", pair)(ones(2, 3, 4))
    with pytest.raises(tl.LayerError, match="it has 2 inputs, but 1 came"):
        tl.AssertFunction("a...,a->ab,a...", pair)(ones(2, 3, 4))


def test_letters_are_the_same_in_inputs_and_outputs():
    layer = tl.AssertFunction("ab->ba", tl.Serial())

    assert layer(ones(3, 3)).shape == (3, 3)
    with pytest.raises(tl.LayerError, match=r"b is 4 in input 1, but 3 in output 1.*Defined at"):
        layer(ones(3, 4))


def test_each_call_reads_the_sentence_afresh():
    layer = tl.AssertFunction("ab->a...", tl.Dense(5))
    layer.init(shapes.ShapeDtype((2, 3)))

    layer(ones(2, 3))

    assert layer(ones(4, 3)).shape == (4, 5)


def test_shapes_are_checked_when_the_model_is_initialized():
    with pytest.raises(tl.LayerError, match="'bld' has 3 axes, but input 1 has 2"):
        tl.AssertFunction("bld->bld", tl.Dense(5)).init(shapes.ShapeDtype((2, 3)))


@tl.assert_shape("...d->...")
class Norm(tl.Layer):
    def forward(self, x):
        return x.norm(dim=-1)


@tl.assert_shape("bld->bld")
class NotSquare(tl.Layer):
    def __init__(self, n_units):
        super().__init__()
        self.linear = torch.nn.Linear(4, n_units)

    def forward(self, x):
        return self.linear(x)


@tl.assert_shape("...d->...e")
def two_layers(n_units, name=None):
    """Builds two layers."""
    return tl.Serial(tl.Relu(), tl.Dense(n_units), name=name)


def test_a_decorated_class_checks_what_goes_in_and_what_comes_out():
    assert Norm()(ones(2, 3, 4)).shape == (2, 3)
    assert NotSquare(4)(ones(2, 3, 4)).shape == (2, 3, 4)
    with pytest.raises(tl.LayerError, match="d is 4 in input 1, but 5 in output 1"):
        NotSquare(5)(ones(2, 3, 4))
    with pytest.raises(tl.LayerError, match="at least 1 axes, but input 1 has 0"):
        Norm()(ones())


def test_a_decorated_class_checks_arrays_too():
    with pytest.raises(tl.LayerError, match="d is 4 in input 1, but 5 in output 1"):
        NotSquare(5)(np.ones((2, 3, 4)))


def test_a_decorated_function_returns_the_layer_with_checks_around_it():
    layer = two_layers(5, name="Two")
    weights, _ = layer.init(shapes.ShapeDtype((2, 4)), rng=0)

    assert two_layers.__doc__ == "Builds two layers."
    assert str(layer) == "Serial[\n  Two[\n    Relu\n    Dense_5\n  ]\n]"
    assert weights[0][0] == ()
    assert weights[0][1][0].shape == (4, 5)
    assert layer(ones(2, 4)).shape == (2, 5)
    with pytest.raises(tl.LayerError, match=r"'...d' has at least 1 axes, but input 1 has 0"):
        layer(ones())


def test_a_check_takes_and_gives_as_many_items_as_its_layer():
    layer = tl.AssertFunction("a,a->a", tl.Add())

    assert str(layer) == "Serial_in2[\n  Add_in2\n]"
    assert tl.Serial(layer, tl.Relu())((ones(2), ones(2))).tolist() == [2, 2]


def test_an_assert_layer_prints_only_if_it_is_visible():
    model = tl.Serial(tl.AssertShape("ab"), tl.AssertShape("a,b", visible_layer=True))

    assert str(model) == "Serial_in2_out2[\n  AssertShape_in2_out2\n]"


def test_a_message_of_ones_own_ends_the_error():
    with pytest.raises(tl.LayerError, match="See the paper, section 3"):
        tl.AssertShape("ab", message="See the paper, section 3")(ones(2))


@pytest.mark.parametrize("make", [Norm, lambda: two_layers(5), lambda: tl.AssertShape("...")])
def test_a_checked_layer_copies_pickles_and_compiles(make):
    torch.compiler.reset()
    layer, x = make(), torch.randn(2, 3, 4)
    layer.init(shapes.signature(x))
    want = layer(x)

    twins = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.compile(layer, backend="eager", fullgraph=True),
    ]
    for twin in twins:
        torch.testing.assert_close(twin(x), want)
    with pytest.raises(tl.LayerError, match="Defined at"):
        pickle.loads(pickle.dumps(NotSquare(5)))(ones(2, 3, 4))
