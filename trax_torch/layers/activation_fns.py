"""Activations: layers that apply a function of PyTorch's, nearly all of them element by element.

Where a function is one of real numbers, integers are taken for floats, as in JAX.

Where a function has a corner, its gradient there is Trax's in every release of torch, whose own
differ: that of `clamp` at its bounds was 1 until 2.13 and is 0 since 2.14.
"""

import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers._promotion import as_float, as_number
from trax_torch.layers.base import Layer, PureLayer


def Relu() -> PureLayer:
    """Returns a layer that computes max(0, x); its slope at 0 is 0."""
    return PureLayer(_relu, name="Relu")


def ParametricRelu(a: float = 1.0) -> PureLayer:
    """Returns a layer that computes max(0, a x); its slope at 0 is a / 2, as in Trax."""
    return PureLayer(functools.partial(_parametric_relu, a=a), name="ParametricRelu")


def LeakyRelu(a: float = 0.01) -> PureLayer:
    """Returns a layer that computes x where it is positive, and a x elsewhere.

    Its slope at 0 is 1, as in Trax; that of `torch.nn.LeakyReLU` is a.
    """
    return PureLayer(functools.partial(_leaky_relu, a=a), name="LeakyRelu")


def Elu(a: float = 1.0) -> PureLayer:
    """Returns a layer that computes x where it is positive, and a (exp(x) - 1) elsewhere."""
    return PureLayer(functools.partial(_elu, a=a), name="Elu")


def Selu(
    alpha: float = 1.6732632423543772848170429916717,
    lmbda: float = 1.0507009873554804934193349852946,
) -> PureLayer:
    """Returns a layer that computes `lmbda` times an Elu of slope `alpha`.

    Source: Trax `layers/activation_fns.py::Selu`; Klambauer et al. 2017, arXiv:1706.02515.
    """
    return PureLayer(functools.partial(_selu, alpha=alpha, lmbda=lmbda), name="Selu")


def Gelu() -> PureLayer:
    """Returns a layer that computes x times the normal distribution's cumulative probability."""
    return PureLayer(_gelu, name="Gelu")


def FastGelu() -> PureLayer:
    """Returns a layer that computes Gelu by its tanh approximation."""
    return PureLayer(functools.partial(_gelu, approximate="tanh"), name="FastGelu")


def Sigmoid() -> PureLayer:
    """Returns a layer that computes 1 / (1 + exp(-x))."""
    return PureLayer(torch.sigmoid, name="Sigmoid")


def Tanh() -> PureLayer:
    """Returns a layer that computes the hyperbolic tangent."""
    return PureLayer(torch.tanh, name="Tanh")


def HardSigmoid() -> PureLayer:
    """Returns a layer that computes 1 + x, cut off below 0 and above 1.

    Its slope at both corners is 1/2.

    Source: Trax `layers/activation_fns.py::HardSigmoid`, whose code this follows; its formula shows
      x where the code has 1 + x.
    """
    return PureLayer(_hard_sigmoid, name="HardSigmoid")


def HardTanh() -> PureLayer:
    """Returns a layer that computes x, cut off below -1 and above 1; its slope there is 1/2."""
    return PureLayer(_hard_tanh, name="HardTanh")


def Softplus() -> PureLayer:
    """Returns a layer that computes log(1 + exp(x))."""
    return PureLayer(_softplus, name="Softplus")


def Exp() -> PureLayer:
    """Returns a layer that computes exp(x)."""
    return PureLayer(torch.exp, name="Exp")


def Log() -> PureLayer:
    """Returns a layer that computes the natural logarithm; -inf at 0, NaN below."""
    return PureLayer(torch.log, name="Log")


def Swish() -> PureLayer:
    """Returns a layer that computes x * sigmoid(x)."""
    return PureLayer(_swish, name="Swish")


def Glu() -> PureLayer:
    """Returns a layer that gates one half of each vector by the other: a * sigmoid(b).

    It maps (..., 2 d) to (..., d); a is the first half.

    Raises:
      LayerError: if the vectors have an odd size.

    Source: Trax `layers/activation_fns.py::Glu`; Dauphin et al. 2017, arXiv:1612.08083.
    """
    return PureLayer(_glu, name="Glu")


class ThresholdedLinearUnit(Layer):
    """Computes max(x, t) with one trained threshold t for all elements, 0 at first.

    Weights in Trax's order: t alone, a scalar.

    Source: Trax `layers/activation_fns.py::ThresholdedLinearUnit`; Singh and Krishnan 2019,
      arXiv:1911.09737.
    """

    _weight_names = "threshold"

    def __init__(self) -> None:
        super().__init__()
        self.threshold: Any
        self.register_parameter("threshold", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Makes the threshold, 0."""
        self.weights = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape."""
        return torch.maximum(x, self.threshold)


def cut_off(x: torch.Tensor, low: float, high: float | None = None) -> torch.Tensor:
    """Returns x where it lies between two bounds, and the bound elsewhere.

    The gradient at a bound is 1/2, the mean of both sides, as of JAX's maximum and minimum.
    """
    if high is not None:
        x = torch.minimum(x, x.new_full((), high))
    return torch.maximum(x, x.new_full((), low))


def _relu(x: torch.Tensor) -> torch.Tensor:
    return F.relu(as_number(x))


def _parametric_relu(x: torch.Tensor, a: float) -> torch.Tensor:
    return cut_off(a * x, 0)


def _leaky_relu(x: torch.Tensor, a: float) -> torch.Tensor:
    return torch.where(x >= 0, x, a * x)


def _elu(x: torch.Tensor, a: float) -> torch.Tensor:
    return F.elu(as_float(x), a)


def _selu(x: torch.Tensor, alpha: float, lmbda: float) -> torch.Tensor:
    return lmbda * _elu(x, alpha)


def _gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return F.gelu(as_float(x), approximate=approximate)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return F.softplus(as_float(x))


def _swish(x: torch.Tensor) -> torch.Tensor:
    return F.silu(as_float(x))


def _hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return cut_off(1 + as_number(x), 0, 1)


def _hard_tanh(x: torch.Tensor) -> torch.Tensor:
    return cut_off(as_number(x), -1, 1)


def _glu(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] % 2:
        raise ValueError(
            f"Glu splits vectors in two halves, so their size is even; got {x.shape[-1]}. Make the "
            f"layer before it twice as wide as what comes out."
        )
    return F.glu(as_float(x))
