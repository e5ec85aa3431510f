"""Activations: layers without weights, each a function of PyTorch's, element by element."""

import functools

import torch
from torch.nn import functional as F

from trax_torch.layers.base import PureLayer


def Relu() -> PureLayer:
    """Returns a layer that computes max(0, x)."""
    return PureLayer(F.relu, name="Relu")


def Gelu() -> PureLayer:
    """Returns a layer that computes x times the normal distribution's cumulative probability."""
    return PureLayer(F.gelu, name="Gelu")


def FastGelu() -> PureLayer:
    """Returns a layer that computes Gelu by its tanh approximation."""
    return PureLayer(functools.partial(F.gelu, approximate="tanh"), name="FastGelu")


def Sigmoid() -> PureLayer:
    """Returns a layer that computes 1 / (1 + exp(-x))."""
    return PureLayer(torch.sigmoid, name="Sigmoid")


def Tanh() -> PureLayer:
    """Returns a layer that computes the hyperbolic tangent."""
    return PureLayer(torch.tanh, name="Tanh")


def Swish() -> PureLayer:
    """Returns a layer that computes x * sigmoid(x)."""
    return PureLayer(F.silu, name="Swish")
