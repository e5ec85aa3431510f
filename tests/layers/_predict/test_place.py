"""Where layers find their memories, and which layers there are."""

import pytest
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers._predict import look_again, modules_in, with_one_look


def shared():
    inner = tl.Dense(3)
    return tl.Serial(inner, tl.Serial(tl.Relu(), inner), nn.Sequential(nn.ReLU(), nn.Sequential()))


def with_gaps():
    module = nn.ModuleList([nn.Linear(2, 2), nn.GRU(2, 2)])
    module.register_module("none", None)
    module.append(module[0])
    return module


@pytest.mark.parametrize(
    "make", [shared, with_gaps, lambda: models.Transformer(7, None, 8, 8, 2, 2, 2)]
)
def test_modules_are_those_of_torch_in_its_order(make):
    """Each once, where torch comes to it first; places that hold none are left out."""
    model = make()
    assert modules_in(model) == list(model.modules())


def test_one_look_at_a_model_is_enough_in_a_block_and_forgotten_after_it():
    """What joins the model meanwhile is seen by who looks again, and by everyone afterwards."""
    model = shared()

    @with_one_look
    def look():
        before = modules_in(model)
        before.clear()  # is the caller's own
        first = modules_in(model)
        model.add_module("more", nn.ReLU())
        assert modules_in(model) == first
        look_again()
        assert modules_in(model) == list(model.modules()) != first

    look()
    model.add_module("most", nn.ReLU())
    assert modules_in(model) == list(model.modules())


def test_a_look_that_is_broken_off_is_forgotten():
    model = shared()

    @with_one_look
    def look():
        modules_in(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look()
    model.add_module("more", nn.ReLU())
    assert modules_in(model) == list(model.modules())
