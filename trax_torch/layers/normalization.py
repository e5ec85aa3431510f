"""Layers that normalize."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch.layers._promotion import as_float
from trax_torch.layers.base import Layer, Mode


class BatchNorm(Layer):
    """Brings each feature to mean 0 and variance 1 over a batch, then scales and shifts it.

    While training, mean and variance are the batch's, and running averages of them are kept; in
    other modes the running averages are used. The variance divides by the number of values.

    Args:
      axis: the axes to average over, as an int or a tuple; the others are features.
      epsilon: added to the variance.
      center: False leaves the shift out.
      scale: False leaves the scale out.
      momentum: how much of a running average a step keeps: new = momentum * old + (1 - momentum) *
        batch's. This is 1 minus what `torch.nn.BatchNorm2d` calls momentum.
      mode: `'train'`, `'eval'` or `'predict'`.

    Weights in Trax's order: `(beta, gamma)`, the shift and the scale, with the shape of the
    features, starting at 0 and 1; `()` for one left out. State: `(mean, variance, n_batches)`, the
    first two with size 1 along the averaged axes, starting at 0 and 1. Inside they are `bias`,
    `weight`, `running_mean`, `running_var` and `n_batches`.

    Raises:
      LayerError: if the input lacks one of the axes.

    Source: Trax `layers/normalization.py::BatchNorm`; Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    _state_names = ("running_mean", "running_var", "n_batches")

    def __init__(
        self,
        axis: int | Sequence[int] = (0, 1, 2),
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        momentum: float = 0.999,
        mode: Mode = "train",
    ):
        super().__init__()
        self._axis = (axis,) if isinstance(axis, int) else tuple(axis)
        self._epsilon = epsilon
        self._momentum = momentum
        self._weight_names = ("bias" if center else (), "weight" if scale else ())
        self.weight: Any
        self.bias: Any
        self.running_mean: Any
        self.running_var: Any
        self.n_batches: Any
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)
        self.register_buffer("n_batches", None)
        self._set_mode(mode)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Makes beta 0, gamma 1, mean 0, variance 1, and counts no batch."""
        shape = input_signature.shape
        averaged, kept = self._axes(len(shape))
        features = tuple(shape[i] for i in kept)
        center, scale = self._weight_names
        self.weights = (
            torch.zeros(features) if center else (),
            torch.ones(features) if scale else (),
        )
        of_stats = tuple(1 if i in averaged else n for i, n in enumerate(shape))
        n_batches = torch.zeros((), dtype=torch.int32)
        self.state = torch.zeros(of_stats), torch.ones(of_stats), n_batches

    def _settle(self) -> None:
        super()._settle()
        weight = self.bias if self.weight is None else self.weight
        if self.running_mean is None and weight is not None and self._pass is None:
            # Weights came without statistics: they begin as they would have.
            self.state = torch.zeros_like(weight), torch.ones_like(weight), torch.tensor(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape and type."""
        x = as_float(x)
        averaged, kept = self._axes(x.dim())
        order = [*averaged, *kept]
        sizes = [x.shape[i] for i in order]
        n_values = math.prod(sizes[: len(averaged)])
        n_features = math.prod(sizes[len(averaged) :])
        # All features as the channels of one picture, last in memory: PyTorch's fast case.
        pixels = x.permute(order).reshape(n_values, n_features)
        pixels = pixels.t().unsqueeze(0).unsqueeze(-1)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        gamma, beta = (
            None if t is None else t.reshape(n_features).to(dtype) for t in (self.weight, self.bias)
        )
        mean = self.running_mean.reshape(n_features).to(dtype)
        variance = self.running_var.reshape(n_features).to(dtype)
        of_batch = self.training and n_values > 1
        if self.training and n_values == 1:  # torch divides by one value less than there are
            mean, variance = torch.zeros_like(mean), torch.zeros_like(variance)
            self._count(pixels.detach().reshape(n_features), variance, 1)
            pixels = pixels - pixels
        elif of_batch:
            mean, variance = torch.zeros_like(mean), torch.zeros_like(variance)
        # A momentum of 1 makes torch's running averages the batch's own figures.
        y = torch.batch_norm(
            pixels, gamma, beta, mean, variance, of_batch, 1.0, self._epsilon, True
        )
        if of_batch:
            self._count(mean, variance, n_values)
        y = y.squeeze(0).squeeze(-1).t().reshape(sizes)
        return y.permute([order.index(i) for i in range(x.dim())])

    @torch.no_grad()
    def _count(self, mean: torch.Tensor, variance: torch.Tensor, n_values: int) -> None:
        """Moves the running averages towards a batch's mean and unbiased variance."""
        biased = variance * ((n_values - 1) / n_values)
        for running, value in ((self.running_mean, mean), (self.running_var, biased)):
            running.lerp_(value.view_as(running).to(running.dtype), 1 - self._momentum)
        self.n_batches.add_(1)

    def _axes(self, n_axes: int) -> tuple[list[int], list[int]]:
        if any(not -n_axes <= axis < n_axes for axis in self._axis):
            raise ValueError(
                f"BatchNorm averages over axes {self._axis}, so it needs tensors that have them; "
                f"this one has {n_axes} axes. Build it with other axes: BatchNorm(axis=0)."
            )
        averaged = sorted({axis % n_axes for axis in self._axis})
        return averaged, [i for i in range(n_axes) if i not in averaged]


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

    @property
    def epsilon(self) -> float:
        """What is added to the variance."""
        return self._epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape."""
        x = as_float(x, self.weight.dtype)
        if self._center:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._epsilon)
        return F.rms_norm(x, self.weight.shape, self.weight, self._epsilon)


class FilterResponseNorm(Layer):
    """Divides each channel of each example by the root of its mean square, then scales and shifts.

    The mean is taken over the axes of space, those between the first and the last. No other
    example has a part in it, so that train and eval mode are the same.

    Args:
      mode: Trax's; all modes are alike.
      learn_epsilon: adds the size of a trained number to epsilon.
      init_epsilon: added to the mean square; above 0.
      init_learnt_epsilon: where the trained number starts; above 0.

    Weights in Trax's order: `(gamma, beta, ())`, both (channels,), starting at 1 and 0; or `(gamma,
    beta, (epsilon,))` with a scalar. Inside they are `weight`, `bias` and `epsilon`.

    Raises:
      ValueError: if an epsilon is not above 0.

    Source: Trax `layers/normalization.py::FilterResponseNorm`; Singh and Krishnan 2019,
      arXiv:1911.09737.
    """

    def __init__(
        self,
        mode: Mode | None = None,
        learn_epsilon: bool = False,
        init_epsilon: float = 1e-6,
        init_learnt_epsilon: float = 1e-4,
    ):
        super().__init__()
        if init_epsilon <= 0 or init_learnt_epsilon <= 0:
            raise ValueError(
                f"FilterResponseNorm needs epsilons above 0, against division by 0; got "
                f"init_epsilon={init_epsilon} and init_learnt_epsilon={init_learnt_epsilon}."
            )
        self._learn_epsilon = learn_epsilon
        self._init_epsilon = init_epsilon
        self._init_learnt_epsilon = init_learnt_epsilon
        self._weight_names = ("weight", "bias", ("epsilon",) if learn_epsilon else ())
        self.weight: Any
        self.bias: Any
        self.epsilon: Any
        for name in ("weight", "bias", "epsilon"):
            self.register_parameter(name, None)
        if mode is not None:
            self._set_mode(mode)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Makes gamma 1, beta 0, and the trained epsilon where there is one."""
        n_channels = input_signature.shape[-1]
        learnt = (torch.tensor(self._init_learnt_epsilon),) if self._learn_epsilon else ()
        self.weights = torch.ones(n_channels), torch.zeros(n_channels), learnt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape."""
        x = as_float(x)
        epsilon: Any = self._init_epsilon
        if self._learn_epsilon:
            learned = self.epsilon
            # Its absolute value; the slope at 0 is 1, as in JAX, where that of torch's own is 0.
            epsilon = epsilon + torch.where(learned >= 0, learned, -learned)
        space = tuple(range(1, x.dim() - 1))
        square = x * x
        if space:  # torch takes no axes for all axes
            square = square.mean(dim=space, keepdim=True)
        result: torch.Tensor = x * torch.rsqrt(square + epsilon) * self.weight + self.bias
        return result
