"""The layers most models are made of: Dense, Embedding, Dropout, and functions of one tensor."""

import functools
from typing import Any

import torch
from torch.nn import functional as F

from trax_torch import _nest, shapes
from trax_torch._torch_private import contiguous_in_memory
from trax_torch.layers import base
from trax_torch.layers import initializers as init
from trax_torch.layers._core import LocallyConnected1d as LocallyConnected1d
from trax_torch.layers._core import PrintShape as PrintShape
from trax_torch.layers._core import SummaryImage as SummaryImage
from trax_torch.layers._core import SummaryScalar as SummaryScalar
from trax_torch.layers._core import (
    by_onednn,
    is_quicker_by_onednn,
    is_quicker_turned_round,
    is_slow_bfloat16,
    turned_round,
)
from trax_torch.layers._core import log_gaussian_diag_pdf as log_gaussian_diag_pdf
from trax_torch.layers._core import log_gaussian_pdf as log_gaussian_pdf
from trax_torch.layers._core import log_softmax as log_softmax
from trax_torch.layers._core import logsoftmax_sample as logsoftmax_sample
from trax_torch.layers._core import multigaussian_loss as multigaussian_loss
from trax_torch.layers._core import one_hot as one_hot
from trax_torch.layers._dropout import drop, kept
from trax_torch.layers._ids import can_look, check_ids
from trax_torch.layers._promotion import as_float, as_number
from trax_torch.layers.base import Layer, Mode, PureLayer


class Dense(Layer):
    """Maps vectors of any size to vectors of `n_units`: y = x w + b.

    Applies to the last axis. Integer input is promoted to the weights' type.

    Args:
      n_units: size of the output vectors.
      kernel_initializer: `(shape, rng) -> tensor` for w, shape (d_in, n_units); Glorot uniform by
        default.
      bias_initializer: likewise for b, shape (n_units,); normal with deviation 1e-6 by default.
      use_bias: False leaves b out.
      use_bfloat16: keeps the weights in bfloat16.

    Weights in Trax's order: `(w, b)`, or `w` alone without bias. Inside it is `weight` with shape
    (n_units, d_in), and `bias`, as in `torch.nn.Linear`.

    Source: Trax `layers/core.py::Dense`.
    """

    def __init__(
        self,
        n_units: int,
        kernel_initializer: init.Initializer | None = None,
        bias_initializer: init.Initializer | None = None,
        use_bias: bool = True,
        use_bfloat16: bool = False,
    ):
        super().__init__(name=f"Dense_{n_units}")
        self._n_units = n_units
        self._kernel_initializer = kernel_initializer or init.GlorotUniformInitializer()
        self._bias_initializer = bias_initializer or init.RandomNormalInitializer(1e-6)
        self._use_bias = use_bias
        self._dtype = torch.bfloat16 if use_bfloat16 else None
        self.weight: Any
        self.bias: Any
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws w, and b where there is one."""
        d_in = input_signature.shape[-1]
        w = _typed(self._kernel_initializer((d_in, self._n_units), self.rng), self._dtype)
        if self._use_bias:
            b = _typed(self._bias_initializer((self._n_units,), self.rng), self._dtype)
            self.weights = (w, b)
        else:
            self.weights = w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., d_in) to (..., n_units)."""
        w, b = self.weight, self.bias
        if x.dtype != w.dtype:
            x, w, b = promote(x, w, b)
        if self._memory is not None and is_slow_bfloat16(x):
            return _product(x.float(), w.float(), None if b is None else b.float()).to(x.dtype)
        return F.linear(x, w, b) if self._memory is None else _product(x, w, b)

    def _own_tree(self, kind: str) -> Any:
        if kind == "state" or self.weight is None:
            return ()
        return (self.weight.t(), self.bias) if self._use_bias else self.weight.t()

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "state":
            return super()._own_named(kind, tree)
        names = ("weight", "bias") if self._use_bias else ("weight",)
        tensors = base.expect_tensors(self, tree, names, "(w, b)" if self._use_bias else "w")
        if tensors["weight"].dim() != 2:
            raise ValueError(
                f"{self._name} needs w of shape (d_in, {self._n_units}); "
                f"got {tuple(tensors['weight'].shape)}."
            )
        return {**tensors, "weight": tensors["weight"].t()}


class Embedding(Layer):
    """Maps ids to trainable vectors.

    Ids are clipped into [0, vocab_size), as Trax does on every backend; there is a warning if some
    of those that come first are outside. Within `torch.autograd.detect_anomaly()` every batch is
    looked at, and such ids are an error.

    Args:
      vocab_size: number of ids.
      d_feature: size of the vectors.
      use_bfloat16: keeps the weights in bfloat16.
      kernel_initializer: `(shape, rng) -> tensor` for shape (vocab_size, d_feature); by default
        uniform with limit sqrt(3 / d_feature).

    Weights in Trax's order: the table alone, shape (vocab_size, d_feature).

    Raises:
      LayerError: if the ids are not integers; or outside, where every batch is looked at.

    Source: Trax `layers/core.py::Embedding`.
    """

    _weight_names = "weight"

    def __init__(
        self,
        vocab_size: int,
        d_feature: int,
        use_bfloat16: bool = False,
        kernel_initializer: init.Initializer | None = None,
    ):
        super().__init__(name=f"Embedding_{vocab_size}_{d_feature}")
        self._vocab_size = vocab_size
        self._d_feature = d_feature
        self._dtype = torch.bfloat16 if use_bfloat16 else None
        self._kernel_initializer = kernel_initializer or init.ScaledInitializer(
            out_dim=-1, in_dim=-2, scale=1.0, mode="fan_out", distribution="uniform"
        )
        self._has_looked = False
        self.weight: Any
        self.register_parameter("weight", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the table."""
        shape = (self._vocab_size, self._d_feature)
        self.weights = _typed(self._kernel_initializer(shape, self.rng), self._dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps integers (...) to vectors (..., d_feature)."""
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"{self._name} looks up token ids, which are integers; got {x.dtype}. Convert the "
                f"batch, x.astype(np.int32), or put the inputs first in it."
            )
        if not torch.compiler.is_compiling() and (
            not self._has_looked or torch.is_anomaly_enabled()
        ):
            self._look(x)
        return F.embedding(x.clamp(0, self.weight.shape[0] - 1), self.weight)

    def _look(self, x: torch.Tensor) -> None:
        """Says if ids are clipped; once, since on a GPU to look is to wait for it."""
        if self._pass is None and can_look(x):
            self._has_looked = True
            check_ids(self._name, x, self.weight.shape[0])


class Dropout(Layer):
    """Sets a share of the values to zero while training, and scales up the rest to keep the mean.

    Its state is, as in Trax, the rate; assign to it to change the rate.

    Args:
      rate: the probability that a value is dropped; 0 <= rate < 1.
      shared_axes: axes along which values are dropped together.
      mode: `'train'` drops; `'eval'` and `'predict'` pass all values on.

    Raises:
      ValueError: if the rate or the mode is out of range.

    Source: Trax `layers/core.py::Dropout`; Srivastava et al. 2014.
    """

    def __init__(self, rate: float = 0.0, shared_axes: Any = None, mode: Mode = "train"):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout rate is at least 0 and below 1; got {rate}.")
        self._rate = float(rate)
        self._shared_axes = tuple(shared_axes or ())
        self._set_mode(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the same shape, and type; integers become floats where they grow."""
        if not self.training or self._rate == 0:
            return x
        x = as_float(x)
        if not self._shared_axes:
            return drop(x, self._rate)
        shape = list(x.shape)
        axes: Any = self._shared_axes
        for axis in axes:
            shape[axis] = 1
        return x * kept(shape, self._rate, x)

    def _own_tree(self, kind: str) -> Any:
        return torch.tensor(self._rate) if kind == "state" else ()

    def _own_named(self, kind: str, tree: Any) -> dict[str, Any]:
        if kind == "weights":
            return super()._own_named(kind, tree)
        return base.expect_tensors(self, tree, ("_rate",), "a rate") if tree != () else {}

    def _set_own_state(self, attribute: str, value: torch.Tensor) -> None:
        self._rate = float(value)


class Weights(Layer):
    """Gives a trained tensor, and takes nothing.

    Args:
      initializer: `(shape, rng) -> tensor` for its first value.
      shape: its shape; a scalar by default.
      use_bfloat16: keeps it in bfloat16.

    Weights in Trax's order: the tensor alone. Its size owes nothing to any input, so `init(())` and
    `init(None)` do.

    Example:
      >>> layer = Weights(init.RandomNormalInitializer(), shape=(2, 3))
      >>> _ = layer.init(())
      >>> layer, layer().shape
      (Weights_(2, 3)_in0, torch.Size([2, 3]))

    Source: Trax `layers/core.py::Weights`.
    """

    _weight_names = "weight"

    def __init__(self, initializer: init.Initializer, shape: Any = (), use_bfloat16: bool = False):
        super().__init__(n_in=0, name=f"Weights_{shape}")
        self._initializer = initializer
        self._shape = shape
        self._dtype = torch.bfloat16 if use_bfloat16 else None
        self.weight: Any
        self.register_parameter("weight", None)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the tensor."""
        self.weights = _typed(self._initializer(self._shape, self.rng), self._dtype)

    def forward(self, x: Any = ()) -> torch.Tensor:
        """Returns the tensor."""
        result: torch.Tensor = self.weight
        return result


class RandomUniform(Layer):
    """Gives a new tensor of uniform random numbers at each call, and takes nothing.

    Args:
      min_val: they are at least this,
      max_val: and below this.
      shape: of the tensor; a scalar by default.
      dtype: its type, one of floats.
      sync: Trax's wish for the same numbers on all devices; refused, since each rank draws from its
        own generator.

    Raises:
      ValueError: if `sync` is True.
      TypeError: if `dtype` is not a type of floats.

    Source: Trax `layers/core.py::RandomUniform`.
    """

    _state_names = ()

    def __init__(
        self,
        min_val: float = 0.0,
        max_val: float = 1.0,
        shape: Any = (),
        dtype: Any = torch.float32,
        sync: bool = False,
    ):
        super().__init__(n_in=0)
        if sync:
            raise ValueError(
                "RandomUniform draws on each rank from that rank's generator; got sync=True. Build "
                "it without, or draw outside the model and pass the numbers in."
            )
        signature = shapes.ShapeDtype(shape, dtype)
        if not signature.dtype.is_floating_point:
            raise TypeError(
                f"RandomUniform draws floats; got dtype={dtype}. Draw floats and round them."
            )
        self._min_val = min_val
        self._max_val = max_val
        self._signature = signature
        # It has no weights and no input that could tell which device the model is on.
        self._here: torch.Tensor
        self.register_buffer("_here", torch.empty(0), persistent=False)

    def forward(self, x: Any = ()) -> torch.Tensor:
        """Returns new numbers."""
        shape, dtype = self._signature.as_tuple()
        numbers = torch.empty(shape, dtype=dtype, device=self._here.device)
        return numbers.uniform_(self._min_val, self._max_val)


def Flatten(n_axes_to_keep: int = 1) -> PureLayer:
    """Returns a layer that merges all axes after the first `n_axes_to_keep` into one.

    Raises:
      LayerError: if a tensor has no more axes than are kept.

    Example:
      >>> Flatten()(torch.zeros(2, 3, 4)).shape
      torch.Size([2, 12])
    """
    return PureLayer(
        functools.partial(_flatten, n_axes_to_keep=n_axes_to_keep),
        name=f"Flatten_keep{n_axes_to_keep}",
    )


def LogSoftmax(axis: int = -1) -> PureLayer:
    """Returns a layer that computes the logarithm of the softmax along an axis, in nats."""
    return PureLayer(functools.partial(log_softmax, axis=axis), name="LogSoftmax")


def Softmax(axis: int = -1) -> PureLayer:
    """Returns a layer that computes the softmax along an axis."""
    return PureLayer(functools.partial(_softmax, axis=axis), name="Softmax")


def LogSumExp(axis: int = -1) -> PureLayer:
    """Returns a layer that computes log(sum(exp(x))) along an axis, which stays with size 1."""
    f = functools.partial(torch.logsumexp, dim=axis, keepdim=True)
    return PureLayer(f, name="LogSumExp")


def ToFloat() -> PureLayer:
    """Returns a layer that converts a tensor to float32."""
    return PureLayer(_to_float, name="ToFloat")


def Negate() -> PureLayer:
    """Returns a layer that computes -x."""
    return PureLayer(_negate, name="Negate")


def StopGradient() -> PureLayer:
    """Returns a layer that passes a tensor on, and no gradient back."""
    return PureLayer(torch.detach, name="StopGradient")


def ArgMax(axis: int = -1) -> PureLayer:
    """Returns a layer that gives the place of the largest value along an axis, the first of equals.

    With `axis=None` it is the place among all values, row by row.
    """
    return PureLayer(functools.partial(_argmax, axis=axis), name="ArgMax")


def ThresholdToBinary(threshold: float = 0.5) -> PureLayer:
    """Returns a layer that gives 1 (int32) where a value is above `threshold`, and 0 elsewhere."""
    f = functools.partial(_threshold_to_binary, threshold=threshold)
    return PureLayer(f, name="ThresholdToBinary")


def Max(axis: Any = -1, keepdims: bool = False) -> PureLayer:
    """Returns a layer that takes the maximum over an axis, a tuple of axes, or all of them (None).

    Where several values are the largest, they share the gradient.
    """
    return PureLayer(functools.partial(_max, axis=axis, keepdims=keepdims), name="Max")


def Min(axis: Any = -1, keepdims: bool = False) -> PureLayer:
    """Returns a layer like `Max` that takes the minimum."""
    return PureLayer(functools.partial(_min, axis=axis, keepdims=keepdims), name="Min")


def Mean(axis: Any = -1, keepdims: bool = False) -> PureLayer:
    """Returns a layer that takes the mean over an axis, a tuple of axes, or all of them (None)."""
    return PureLayer(functools.partial(_mean, axis=axis, keepdims=keepdims), name="Mean")


def Sum(axis: Any = None, keepdims: bool = False) -> PureLayer:
    """Returns a layer that sums over an axis, a tuple of axes, or, by default, all of them."""
    return PureLayer(functools.partial(torch.sum, dim=axis, keepdim=keepdims), name="Sum")


def is_of_few_rows(x: torch.Tensor, n_rows: int) -> bool:
    """Tells whether x is what a step of decoding on a CPU brings: at most 8 rows of float32."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or n_rows > 8:
        return False
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))


def _product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """Returns x w' + b in the quickest way for decoding: a step, or a prompt."""
    if is_of_few_rows(x, x.numel() // x.shape[-1]):
        if torch.compiler.is_compiling():
            return _row_by_row(x, w, b)
        if is_quicker_turned_round(x, w):
            return turned_round(x, w, b)
    elif is_quicker_by_onednn(x, w):
        return by_onednn(x, w, b)
    return F.linear(x, w, b)


def _row_by_row(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """Returns x w' + b in a form of which the compiler makes one loop over w, for all rows at once.

    Measured with torch 2.13 on AVX2 on the matrices of a small TransformerLM: 1.2 to 3 times as
    quick as MKL, which copies a matrix before it multiplies a few rows. Uncompiled it is slow.
    """
    rows = contiguous_in_memory(x.reshape(-1, x.shape[-1]))
    y = torch.stack([(w * rows[i]).sum(-1) for i in range(rows.shape[0])])
    y = y if b is None else y + b
    return y.reshape(*x.shape[:-1], w.shape[0])


def promote(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns all three in the type their types promote to, as in JAX; autocast sees to itself."""
    if not x.is_floating_point():
        return x.to(weight.dtype), weight, bias
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _flatten(x: torch.Tensor, n_axes_to_keep: int) -> torch.Tensor:
    if x.dim() <= n_axes_to_keep:
        raise ValueError(
            f"Flatten keeps {n_axes_to_keep} axes and merges the rest, so it needs more of them; "
            f"got a tensor of shape {tuple(x.shape)}."
        )
    return x.flatten(n_axes_to_keep)


def _mean(x: torch.Tensor, axis: Any, keepdims: bool) -> torch.Tensor:
    return torch.mean(as_float(x), dim=axis, keepdim=keepdims)


def _negate(x: torch.Tensor) -> torch.Tensor:
    return -as_number(x)


def _argmax(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    return torch.argmax(as_number(x), dim=axis)


def _softmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    return F.softmax(as_float(x), dim=axis)


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x.float()


def _threshold_to_binary(x: torch.Tensor, threshold: float) -> torch.Tensor:
    return (x > threshold).int()


def _max(x: torch.Tensor, axis: Any, keepdims: bool) -> torch.Tensor:
    return x.amax(dim=() if axis is None else axis, keepdim=keepdims)


def _min(x: torch.Tensor, axis: Any, keepdims: bool) -> torch.Tensor:
    return x.amin(dim=() if axis is None else axis, keepdim=keepdims)


def _typed(x: Any, dtype: torch.dtype | None) -> Any:
    """Returns what an initializer made, tensor or array, as a tensor of the wanted type."""
    tensor = _nest.to_tensor(x)
    return tensor if dtype is None else tensor.to(dtype)
