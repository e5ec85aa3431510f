"""Residual networks: Trax's shapes, and sizes counted elsewhere."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes
from trax_torch.models import resnet


def n_weights(model, signature):
    weights, _ = model.weights_and_state_signature(signature)
    flat, _ = tl.flatten_weights_and_state(weights, ())
    return sum(int(np.prod(w.shape)) for w in flat)


def test_resnet50_has_as_many_weights_as_the_papers():
    """Keras counts 25,583,592 trainable ones for the same layers, biases included."""
    signature = shapes.ShapeDtype((1, 224, 224, 3))

    assert n_weights(models.Resnet50(n_output_classes=1000), signature) == 25_583_592


def test_resnet50_maps_images_to_classes():
    """Also where another normalization takes the place of BatchNorm."""
    model = models.Resnet50(d_hidden=4, n_output_classes=10, mode="eval")
    other = models.Resnet50(
        4, 10, norm=tl.FilterResponseNorm, non_linearity=tl.ThresholdedLinearUnit
    )
    x = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), dtype=np.uint8)
    model.init(x, rng=0)
    other.init(x, rng=0)

    assert model(x).shape == (1, 10)
    assert other.output_signature(x).shape == (1, 10)


@pytest.mark.parametrize(("n_blocks", "widen_factor"), [(1, 1), (2, 2)])
def test_wide_resnet_maps_images_to_classes_and_learns(n_blocks, widen_factor):
    model = models.WideResnet(n_blocks, widen_factor, n_output_classes=10, bn_momentum=0.5)
    x = torch.rand(2, 32, 32, 3)
    model.init(x, rng=0)

    y = model(x)
    y.square().sum().backward()

    assert y.shape == (2, 10)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    counts = [m.n_batches.item() for m in model.modules() if isinstance(m, tl.BatchNorm)]
    assert counts == [1] * (6 * n_blocks + 1)


def test_wide_resnet_has_6n_plus_4_layers():
    """Convolutions along one path: 6 n + 1, a shortcut in each group, and a Dense layer."""
    model = models.WideResnet(n_blocks=3)

    convolutions = [m for m in model.modules() if isinstance(m, tl.Conv)]

    assert len(convolutions) == 6 * 3 + 1 + 3


def test_blocks_are_shown_as_in_trax():
    block = resnet.ConvBlock(3, [4, 4, 8], (2, 2), tl.BatchNorm, tl.Relu)
    identity = resnet.IdentityBlock(3, [4, 4, 8], tl.BatchNorm, tl.Relu)
    model = tl.Serial(block, identity)
    model.init(shapes.ShapeDtype((2, 8, 8, 3)))

    assert model.output_signature(shapes.ShapeDtype((2, 8, 8, 3))).shape == (2, 4, 4, 8)
    assert [len(x) for x in (block, identity)] == [2, 2]
    assert len(resnet.WideResnetBlock(4)) == 6
    assert len(resnet.WideResnetGroup(2, 4)) == 2
