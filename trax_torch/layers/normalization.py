"""Layers that normalize."""

from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers.base import Layer


class LayerNorm(Layer):
    """Brings the last axis to mean 0 and variance 1, then scales and shifts it by trained weights.

    Args:
      center: False neither subtracts the mean nor adds the bias: the last axis is divided by the
        root of its mean square.
      epsilon: added to the variance.

    Weights in Trax's order: `(scale, bias)`, both (d_feature,), starting at 1 and 0; also where
    `center` is False. Inside they are `weight` and `bias`, as in `torch.nn.LayerNorm`.

    Source: Trax `layers/normalization.py::LayerNorm`; Ba et al. 2016, arXiv:1607.06450.
    """

    _weight_names = ("weight", "bias")

    def __init__(self, center: bool = True, epsilon: float = 1e-6):
        super().__init__()
        self._center = center
        self._epsilon = epsilon
        self.weight: Any
        self.bias: Any
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Makes scale 1 and bias 0."""
        d_feature = input_signature.shape[-1]
        self.weights = torch.ones(d_feature), torch.zeros(d_feature)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape."""
        if self._center:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._epsilon)
        return F.rms_norm(x, self.weight.shape, self.weight, self._epsilon)
