"""Multilayer perceptrons, written with `tl` alone."""

from collections.abc import Callable, Sequence

from trax_torch import layers as tl


def MLP(
    layer_widths: Sequence[int] = (128, 64),
    activation_fn: Callable[[], tl.Layer] = tl.Relu,
    out_activation: bool = False,
    flatten: bool = True,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a multilayer perceptron: Dense layers with an activation between them.

    It maps (batch, ...) to (batch, layer_widths[-1]).

    Args:
      layer_widths: how many units each Dense layer has; at least one layer.
      activation_fn: makes an activation.
      out_activation: puts one after the last Dense layer, too.
      flatten: merges all axes after the first beforehand; else (..., d_in) is mapped to
        (..., layer_widths[-1]).
      mode: the same layers in every mode.

    Raises:
      ValueError: if there is no width.

    Example:
      >>> print(MLP(layer_widths=(8, 4)))
      Serial[
        Flatten_keep1
        Dense_8
        Relu
        Dense_4
      ]

    Source: Trax `models/mlp.py::MLP`.
    """
    if not layer_widths:
        raise ValueError("An MLP has at least one Dense layer; got no layer_widths.")
    layers: list[tl.Layer] = [tl.Flatten()] if flatten else []
    for width in layer_widths:
        layers += [tl.Dense(width), activation_fn()]
    if not out_activation:
        layers.pop()
    return tl.Serial(layers)
