"""The multilayer perceptron."""

import numpy as np
import pytest

from trax_torch import layers as tl
from trax_torch import models, shapes


def test_mlp_flattens_what_comes_and_ends_in_the_last_width():
    x = np.ones((7, 4, 4, 3), dtype=np.float32)
    model = models.MLP(layer_widths=(32, 16, 8))
    model.init(shapes.signature(x))

    assert model(x).shape == (7, 8)


def test_mlp_prints_its_layers_in_series():
    model = models.MLP((8, 4), activation_fn=tl.Tanh, out_activation=True, flatten=False)

    assert str(model) == "Serial[\n  Dense_8\n  Tanh\n  Dense_4\n  Tanh\n]"


def test_mlp_without_flatten_maps_the_last_axis():
    x = np.ones((2, 3, 5), dtype=np.float32)
    model = models.MLP((4,), flatten=False)
    model.init(shapes.signature(x))

    assert model(x).shape == (2, 3, 4)


def test_mlp_refuses_to_have_no_layer():
    with pytest.raises(ValueError, match="at least one Dense layer; got no layer_widths"):
        models.MLP(layer_widths=())
