"""Where layers find their memories, and which layers there are."""

import pytest
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers._predict import modules_in


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
