"""Layers and models of the Reformer with Trax's weights, and what Trax gave for them."""

import functools

import figures
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes

FOLDER = "reformer"
TOLERANCES = {"double": 2e-6, "single": 2e-4}  # figures are kept in single precision


def inputs_of(name):
    """The inputs of a case, floats in double precision."""
    arrays = [torch.from_numpy(x) for x in figures.parts(name, "in", FOLDER)]
    return figures.bare([x.double() if x.is_floating_point() else x for x in arrays])


def built(name, **changes):
    """The layer or model of a case, with the case's weights, in double precision."""
    info = figures.case(name, FOLDER)
    maker = getattr(tl, info["layer"], None) or getattr(models, info["layer"])
    kwargs = {**info["kwargs"], **changes}
    if "attention" in info and "attention_type" not in changes:
        kwargs["attention_type"] = functools.partial(tl.SelfAttention, **info["attention"])
    layer = maker(**kwargs)
    layer.init(shapes.signature(inputs_of(name)), rng=0)
    figures.set_flat_weights(layer, figures.parts(name, "w", FOLDER))
    return layer.double()


def assert_like_trax(name, layer):
    """Outputs, and gradients by every weight, are Trax's; where c is 0, outputs are not looked at.

    Those are of positions that see nothing: in double precision Trax tells -1e9 from -1e9 + 1.
    """
    tolerance = TOLERANCES[figures.case(name, FOLDER)["precision"]]
    outputs = layer(inputs_of(name))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    (c,) = figures.parts(name, "c", FOLDER)
    first, *others = figures.parts(name, "out", FOLDER)
    figures.assert_close(outputs[0].detach().numpy() * (c != 0), first * (c != 0), tolerance)
    for got, want in zip(outputs[1:], others, strict=True):
        figures.assert_close(got, want, tolerance)
    (outputs[0] * torch.from_numpy(c).double()).sum().backward()
    gradients = figures.parts(name, "grad", FOLDER)
    figures.assert_close_together(figures.flat_gradients(layer), gradients, tolerance)
